"""Examples against the model's own full logits, pieces of text against the decoded answer, and small pictures."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import naive_logprobs

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.engine import make_engine
from cwdpo.probes import ProbeSet, probe_rows
from cwdpo.probes.examples import (
    TokenLogprobs,
    as_numbers,
    example_lines,
    example_rows,
    prompt_text,
    thumbnail,
    token_logprobs,
    token_pieces,
    write_thumbnails,
)

Load = Callable[..., tuple[Any, Any]]


def set_of(processor: Any, rows: Sequence[Row], **options: Any) -> ProbeSet:
    made = probe_rows(rows, greedy=[f"greedy {i}" for i in range(len(rows))])
    return ProbeSet(example_rows(made, [f"end {i}" for i in range(len(rows))]), Encoder(processor), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
@pytest.mark.parametrize("engine", ["plain", "tree"])
def test_every_tokens_log_prob_is_the_models_own(loaded: Load, rows: list[Row], name: str, engine: Any) -> None:
    model, processor = loaded(name)
    probes = set_of(processor, rows, answers_in_a_pass=11)
    found = token_logprobs(model, probes, make_engine(engine))
    count = 0
    for part in probes.batches():
        expected = naive_logprobs.token_logprobs(model, part.batch)
        for i, (row, group) in enumerate(zip(part.rows, part.groups, strict=True)):
            assert found[row][group].ids == part.batch["answer_ids"][i][part.batch["answer_mask"][i]].tolist()
            assert found[row][group].logprobs == pytest.approx(expected[i].tolist(), abs=1e-4)
            count += 1
    assert count == 6 * 5 - 1  # one row has no gentle answer


def test_measuring_examples_leaves_no_trace(loaded: Load, rows: list[Row]) -> None:
    model, processor = loaded()
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    token_logprobs(model, set_of(processor, rows), make_engine())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ranks_share_the_examples(loaded: Load, rows: list[Row]) -> None:
    model, processor = loaded()
    engine = make_engine("plain")
    parts = [token_logprobs(model, set_of(processor, rows, rank=r, ranks=9), engine) for r in range(9)]
    assert [sorted(part) for part in parts] == [[0], [1], [2], [3], [4], [5], [], [], []]


def test_the_first_rows_and_the_groups_that_are_shown(rows: list[Row]) -> None:
    many = probe_rows([*rows, *rows, *rows], greedy=["g"] * 18)
    shown = example_rows(many, [f"end {i}" for i in range(12)])
    assert [row.index for row in shown] == list(range(12))
    assert [answer.group for answer in shown[0].answers] == ["chosen", "rejected", "gentle", "greedy", "greedy_end"]
    assert [answer.text for answer in shown[7].answers][-2:] == ["g", "end 7"]
    assert [answer.group for answer in example_rows(many)[2].answers] == ["chosen", "rejected", "greedy"]


def test_lines_hold_what_was_measured(rows: list[Row]) -> None:
    shown = example_rows(probe_rows(rows[:1], greedy=["g"]), ["e"])
    start = as_numbers(
        {0: {group: TokenLogprobs([7, 8], [-1.0, -2.0]) for group in ("chosen", "rejected", "gentle", "greedy")}}
    )
    end = {0: {group: TokenLogprobs([7, 8], [-0.5, -3.0]) for group in ("chosen", "rejected", "gentle", "greedy_end")}}
    (line,) = example_lines(shown, start, end, pictures=[["pictures/00.png"]], pieces=lambda ids: [str(i) for i in ids])
    assert line["row"] == rows[0].id == "0"
    assert line["pictures"] == ["pictures/00.png"]
    assert line["prompt"] == "Say what the picture shows, please."
    shared = {"tokens": ["7", "8"], "start": [-1.0, -2.0], "end": [-0.5, -3.0]}
    assert line["answers"] == [
        {"group": "chosen", "text": rows[0].chosen, **shared},
        {"group": "rejected", "text": rows[0].rejected[0], **shared},
        {"group": "gentle", "text": rows[0].gentle, **shared},
        {"group": "greedy_end", "text": "e", "tokens": ["7", "8"], "end": [-0.5, -3.0]},  # greedy could not be scored
    ]


def test_prompts_are_told_as_people_read_them() -> None:
    one = Row((Message("user", (ImageSlot(), "What is ", ImageSlot(), "this?\n")),), "x")
    assert prompt_text(one) == "What is this?"
    several = Row((Message("system", ("Be brief.",)), Message("user", (ImageSlot(), "What?"))), "x")
    assert prompt_text(several) == "system: Be brief.\nuser: What?"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "idefics3"])
@pytest.mark.parametrize(
    "text", ["A red disc, number 3.", "\u00e9t\u00e9 \U0001f642 na\u00efve", "two  spaces", "a\nb"]
)
def test_pieces_join_to_the_answer(loaded: Load, name: str, text: str) -> None:
    _, processor = loaded(name)
    encoder = Encoder(processor)
    controls = encoder.template.control_tokens
    ids = encoder.encode(Row((Message("user", ("Say.",)),), text), [text]).answers[0]
    pieces = token_pieces(processor.tokenizer, ids, controls=controls)
    assert len(pieces) == len(ids)
    assert pieces[-1] in controls
    assert "".join(pieces[:-1]).strip() == text
    assert "\ufffd" not in "".join(pieces)


def test_a_broken_character_is_not_lost(loaded: Load) -> None:
    _, processor = loaded("qwen2_5_vl")
    tokenizer: Any = processor.tokenizer
    ids = [*tokenizer("ab")["input_ids"], *tokenizer("\U0001f642")["input_ids"][:2], tokenizer.eos_token_id]
    pieces = token_pieces(tokenizer, ids, controls=[tokenizer.eos_token])
    assert pieces == ["a", "b", "", "\ufffd", tokenizer.eos_token]


class Words:
    """A tokenizer that writes its words with spaces between them, and none before the first."""

    words = ("red", "disc", "<end>")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.words[token]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(self.words[token] for token in ids)


def test_spaces_belong_to_the_token_after_them() -> None:
    assert token_pieces(Words(), [0, 1, 1, 2], controls=["<end>"]) == ["red", " disc", " disc", "<end>"]


def test_pictures_are_small_and_photographs_are_jpeg(tmp_path: Path) -> None:
    rng = random.Random(0)
    noise = Image.frombytes("RGB", (900, 450), rng.randbytes(900 * 450 * 3))
    kind, content = thumbnail(noise)
    assert (kind, Image.open(io.BytesIO(content)).size) == ("jpg", (320, 160))
    assert noise.size == (900, 450)
    drawn = Image.new("RGB", (40, 30), "red")
    kind, content = thumbnail(drawn)
    back = Image.open(io.BytesIO(content))
    assert (kind, back.size) == ("png", (40, 30))
    assert back.convert("RGB").tobytes() == drawn.tobytes()
    rows = [Row((), "a", images=(drawn, noise)), Row((), "b"), Row((), "c", images=(drawn,))]
    assert write_thumbnails(rows, tmp_path / "p") == [["00.png", "01.jpg"], [], ["02.png"]]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["00.png", "01.jpg", "02.png"]
