"""``cwdpo chat``: what is typed, what is answered, and whose answer it is."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cwdpo.cli import app
from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.evaluation import chat
from cwdpo.evaluation.chat import Chat, Model, load_models

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Type lines into a chat with models that repeat the question and the names of its images."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    def repeat(model: object, processor: str, rows: list[Row], **_: object) -> list[str]:
        names = "+".join(image.name for image in rows[0].images if isinstance(image, Path))
        return [f"{processor} {rows[0].prompt[0].parts[-1]} {names}"]

    def load(name: str, *, with_base: bool, base: str | None) -> dict[str, Model]:
        models = {"tuned": Model(torch.nn.Identity(), "T")}  # type: ignore[arg-type]
        return {"base": Model(torch.nn.Identity(), base or "B"), **models} if with_base else models  # type: ignore[arg-type]

    monkeypatch.setattr(chat, "generate_answers", repeat)
    monkeypatch.setattr(chat, "load_models", load)

    def call(lines: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "chat", "run", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def test_questions_and_images(say: Say) -> None:
    typed = "one?\n\n/image a.png 'b c.png'\ntwo?\n/none\nthree?\n/quit\nfour?\n"
    code, out, err = say(typed, "--image", "a.png")
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [
        "T one? a.png",
        "asking about a.png, b c.png",
        "T two? a.png+b c.png",
        "T three?",
    ]


@pytest.mark.parametrize("typed", ["", "\n \n"])
def test_no_question_at_all_is_said(say: Say, typed: str) -> None:
    said = "no question came. Write one a line: echo QUESTION | cwdpo chat ...\n"
    assert say(typed) == (2, "", said)


def test_both_answers_stand_side_by_side(say: Say) -> None:
    lines = say("what?\n", "--base")[1].splitlines()
    assert "base" in lines[0]
    assert "tuned" in lines[0]
    assert "B what?" in lines[1]
    assert "T what?" in lines[1]
    assert "other what?" in say("what?\n", "--against", "other")[1]


def test_a_slip_ends_nothing_but_a_wrong_start_does(say: Say) -> None:
    code, out, _ = say("/image none.png\n/what\nstill?\n")
    assert code == 0
    assert "/image: none.png: no such file. Write an image file, such as a.png.\n" in out
    assert "A line is a question." in out
    assert "T still?" in out
    code, _, err = say("x\n", "--image", "none.png")
    assert (code, err) == (2, "--image: none.png: no such file. Write an image file, such as a.png.\n")
    assert say("x\n", "--temperature", "0")[0] == 2


@pytest.mark.slow
def test_the_base_of_adapters_is_the_model_without_them(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    from cwdpo.models.adapters import add_lora
    from cwdpo.models.loading import load_policy, load_processor
    from cwdpo.models.saving import save_checkpoint

    base = tiny("llava")
    adapted = add_lora(load_policy(base), r=2, alpha=64)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    save_checkpoint(adapted, load_processor(base), tmp_path / "tuned")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")

    def answers(models: dict[str, Model]) -> dict[str, str]:
        talk = Chat(models, max_new_tokens=6)
        talk.show([tmp_path / "a.png"])
        return dict(talk.ask("What is this?"))

    both = answers(load_models(str(tmp_path / "tuned"), with_base=True))
    assert both["base"] == answers(load_models(str(base), with_base=False))["tuned"]
    assert both["tuned"] != both["base"]
    with pytest.raises(UserError, match="does not say what it was tuned from"):
        load_models(str(base), with_base=True)
