"""Examples of a stage: what they say at both ends, also after interruptions, and of the model that is left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from probes.watching import Crash, Make, Ruin
from support import naive_logprobs

from cwdpo.config.recipe import ProbesConfig
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.rows import Row
from cwdpo.engine import separate_engine
from cwdpo.probes.callback import Probing
from cwdpo.records import RunDirectory, read_jsonl

pytestmark = pytest.mark.slow

STEPS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def rows(sixteen_rows: list[Row]) -> list[Row]:
    """What is trained on; the probe set is some of them."""
    return sixteen_rows


def write(model: Any, some: Sequence[Row]) -> list[str]:
    """Differs with the weights."""
    word = "up" if model.get_output_embeddings().weight.sum().item() > 0 else "down"
    return [f"{word} {len(row.chosen)}" for row in some]


def watch(trainer: Any, rows: Sequence[Row], root: Path, *, greedy: Any = write, **settings: Any) -> Probing:
    root.mkdir(exist_ok=True)
    probing = Probing(
        trainer,
        rows,
        RunDirectory(root),
        "stage2",
        ProbesConfig(**{"every": 1, **settings}),
        engine=separate_engine(trainer.engine, trainer.args.engine, budget=None),
        beta=trainer.args.beta,
        write_greedy=greedy,
    )
    trainer.add_callback(probing)
    return probing


def examples(root: Path) -> list[dict[str, Any]]:
    return read_jsonl(root / "probes/stage2/examples.jsonl").objects


def naive(trainer: Any, row: Row) -> list[float]:
    """Log-probs of the chosen answer's tokens under the trainer's model as it is."""
    batch = AnswerCollator(trainer.encoder, roles=trainer.roles, required=trainer.required)([(0, row)])
    with torch.no_grad():
        return naive_logprobs.token_logprobs(trainer.model.eval(), batch)[0].tolist()


def test_both_ends_are_the_models_own(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    trainer = make_trainer(2, "qwen2_5_vl", **STEPS | {"learning_rate": 1e-2})
    start = [naive(trainer, row) for row in rows[:12]]
    probing = watch(trainer, rows[:14], tmp_path / "run")
    trainer.train()
    assert not (tmp_path / "run/probes/stage2/examples.jsonl").exists()
    note = probing.finish()
    found = examples(tmp_path / "run")
    assert [line["row"] for line in found] == [row.id for row in rows[:12]]
    for line, row, before in zip(found, rows, start, strict=False):
        assert [answer["group"] for answer in line["answers"]] == [
            "chosen",
            "rejected",
            "gentle",
            "greedy",
            "greedy_end",
        ]
        chosen, greedy, end = line["answers"][0], line["answers"][-2], line["answers"][-1]
        assert chosen["text"] == row.chosen
        assert "".join(chosen["tokens"]) == row.chosen + "<|im_end|>"
        assert chosen["start"] == pytest.approx(before, abs=1e-4)
        assert chosen["end"] == pytest.approx(naive(trainer, row), abs=1e-4)
        assert {len(chosen[key]) for key in ("tokens", "start", "end")} == {len(before)}
        assert greedy.keys() == {"group", "text", "tokens", "start", "end"}
        assert end.keys() == {"group", "text", "tokens", "end"}
        assert end["text"] == write(trainer.model, [row])[0]
        assert len(line["pictures"]) == len(row.images)
        for name in line["pictures"]:
            assert max(Image.open(tmp_path / "run/probes/stage2" / name).size) == 32
    assert [line["pictures"] for line in found].count([]) == 2
    assert any(
        abs(a - b) > 0.01 for a, b in zip(found[0]["answers"][0]["start"], found[0]["answers"][0]["end"], strict=True)
    )
    assert note["probes"]["seconds"] > sum(line.get("seconds", 0) for line in probing.lines)


@pytest.mark.parametrize("crash", [1, 3])
def test_a_resumed_stage_shows_what_an_uninterrupted_one_shows(
    make_trainer: Make, rows: list[Row], tmp_path: Path, crash: int
) -> None:
    straight = make_trainer(2, out="straight", **STEPS)
    one = watch(straight, rows[:5], tmp_path / "one")
    straight.train()
    one.finish()
    broken = make_trainer(2, out="broken", callbacks=[Crash(crash)], **STEPS)
    watch(broken, rows[:5], tmp_path / "two")
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = make_trainer(2, out="broken", **STEPS)
    two = watch(resumed, rows[:5], tmp_path / "two")
    resumed.train(resume_from_checkpoint=crash > 1)
    two.finish()
    assert examples(tmp_path / "two") == examples(tmp_path / "one")
    assert len(examples(tmp_path / "one")) == 5


def test_the_end_is_of_the_model_that_is_kept(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    trainer = make_trainer(2, callbacks=[Ruin(3)], **STEPS)
    probing = watch(trainer, rows[:5], tmp_path / "run", keep_best=True)
    trainer.train()
    ruined = naive(trainer, rows[0])
    assert probing.finish()["kept_step"] < 3
    chosen = examples(tmp_path / "run")[0]["answers"][0]
    assert chosen["end"] == pytest.approx(naive(trainer, rows[0]), abs=1e-4)
    assert chosen["end"] != pytest.approx(ruined, abs=0.1)


def test_a_model_that_learns_nothing_ends_as_it_began(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    trainer = make_trainer(2, **STEPS | {"learning_rate": 0.0})
    probing = watch(trainer, rows[:5], tmp_path / "run", groups=["rejected"])
    trainer.train()
    probing.finish()
    for line in examples(tmp_path / "run"):
        assert [answer["group"] for answer in line["answers"]] == ["chosen", "rejected"]
        assert all(answer["start"] == answer["end"] for answer in line["answers"])


def test_without_a_way_to_write_there_are_no_greedy_answers(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    trainer = make_trainer(2, **STEPS | {"max_steps": 1})
    probing = watch(trainer, rows[:3], tmp_path / "run", greedy=None)
    trainer.train()
    probing.finish()
    assert {answer["group"] for line in examples(tmp_path / "run") for answer in line["answers"]} == {
        "chosen",
        "rejected",
        "gentle",
    }


def test_a_stage_that_an_older_version_began_says_that_it_has_none(
    make_trainer: Make, rows: list[Row], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_trainer(2, **STEPS)
    watch(first, rows[:3], tmp_path / "run")
    first.train()
    path = tmp_path / "run/probes/stage2/start.json"
    path.write_text(path.read_text().replace('"examples"', '"other"').replace('"end_seconds"', '"others"'))
    again = make_trainer(2, **STEPS | {"max_steps": 5})
    probing = watch(again, rows[:3], tmp_path / "run")
    again.train(resume_from_checkpoint=True)
    probing.finish()
    assert "no examples" in caplog.text
    assert not (tmp_path / "run/probes/stage2/examples.jsonl").exists()


def test_files_are_whole_or_not_there(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(2, **STEPS | {"max_steps": 1})
    probing = watch(trainer, rows[:3], tmp_path / "run")
    trainer.train()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cwdpo.records.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        probing.finish()
    directory = tmp_path / "run/probes/stage2"
    assert not (directory / "examples.jsonl").exists()
    assert list((directory / "pictures").iterdir()) == []
