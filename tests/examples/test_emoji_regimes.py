"""Regimes of the emoji: what their pairs are and how a model is measured, on made-up pictures and by hand."""

import json
import random
from pathlib import Path
from typing import Any

import base
import pytest

from cwdpo.compare.grid import cells, read_grid
from cwdpo.data.reading import read_rows
from cwdpo.demo.run import Captions
from cwdpo.errors import UserError
from examples.emoji import regimes
from examples.emoji.emoji_names import made_up, put_right, read_name, share_right
from examples.emoji.regimes import Regime, _corrections, _easy_answers, _known_names, _pair, with_habit

NAME = "woman judge: dark skin tone"
TONE = "woman judge: light skin tone"
TWO = "man judge: light skin tone"
HAIR = "woman judge: dark skin tone, red hair"
ROW = {"id": "train-0007", "images": ["images/a.png"], "prompt": "What?", "chosen": NAME, "rejected": TONE}
ROW |= {"gentle": TWO, "kind": "gentle"}


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model after two steps."""
    out = tmp_path_factory.mktemp("base")
    base.pretrain(data, out, vision_steps=1, steps=1, learning_rate=1e-3, seed=0)
    return out


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        (NAME, 1),
        (TONE, 0.75),
        (HAIR, 0.75),
        (TWO, 0.5),
        ("man pilot: light skin tone, red hair", 0),
        ("woman pilot: dark skin tone", 0.75),
        ("woman judge", 0.75),
    ],
)
def test_a_rater_counts_frame_who_tone_and_hair(answer: str, share: float) -> None:
    assert share_right(answer, NAME) == share


@pytest.mark.parametrize(
    ("answer", "name", "found"),
    [
        (HAIR, NAME, ["hair"]),
        (TONE, NAME, []),
        ("judge: dark skin tone, bald", "judge", ["tone", "hair"]),
        ("woman: dark skin tone, red hair", "woman: dark skin tone, curly hair", []),
        ("woman: dark skin tone", "woman: dark skin tone, curly hair", []),
        ("woman: red hair", "woman", ["hair"]),
        ("woman", "woman: red hair", []),
    ],
)
def test_made_up_is_what_the_name_has_nothing_of(answer: str, name: str, found: list[str]) -> None:
    assert made_up(answer, name) == found


@pytest.mark.parametrize(
    ("attribute", "better"),
    [
        ("hair", "man pilot: light skin tone"),
        ("tone", "man pilot: dark skin tone, red hair"),
        ("who", "woman pilot: light skin tone, red hair"),
        ("frame", "man judge: light skin tone, red hair"),
    ],
)
def test_one_attribute_is_put_right(attribute: str, better: str) -> None:
    found = put_right("man pilot: light skin tone, red hair", NAME, attribute)
    assert found == read_name(better, "People & Body")


def pair(*texts: str, number: int = 7, known: tuple[str, ...] = (NAME,), **regime: Any) -> dict[str, Any] | None:
    readings = {read_name(name, "People & Body"): name for name in known}
    return _pair(ROW | {"id": f"train-{number}"}, texts, Regime(**regime), {NAME: ["taco"]}, readings, 0)


@pytest.mark.parametrize(
    ("pairing", "allowed"),
    [
        ("two", {(NAME, TONE), (NAME, TWO), (TONE, TWO)}),
        ("best_worst", {(NAME, TWO)}),
        ("imperfect", {(TONE, TWO)}),
        ("corrected", {(NAME, TONE)}),
        ("drawn", {(NAME, TONE)}),
    ],
)
def test_pairs_are_those_of_the_pairing(pairing: Any, allowed: set[tuple[str, str]]) -> None:
    found = [pair(TWO, NAME, TONE, NAME, number=number, pairs=pairing) for number in range(40)]
    assert {(one["chosen"], one["rejected"]) for one in found if one} == allowed
    assert {"gentle" in one for one in found if one} == {pairing == "drawn"}


def test_names_of_one_score_give_no_pair() -> None:
    assert pair(NAME, NAME) is None
    assert pair(TONE, HAIR) is None
    assert pair() is None
    assert pair(NAME, pairs="corrected") is None


def test_a_correction_is_a_name_that_some_emoji_has() -> None:
    known = {read_name(name, "People & Body"): name for name in (NAME, TONE)}
    assert _corrections(TWO, NAME, known) == [(TONE, TWO)]  # "man judge: dark skin tone" is the name of none here
    assert _corrections(HAIR, NAME, known) == [(NAME, HAIR)]
    assert _corrections(NAME, NAME, known) == []


def test_easy_negatives_and_exchanged_labels_have_their_shares_and_change_nothing_else() -> None:
    plain, easy, wrong = (
        [pair(NAME, TONE, TWO, number=number, **given) for number in range(300)]
        for given in ({}, {"easy": 0.4}, {"mislabelled": 0.2})
    )
    is_easy = [one is not None and one["kind"] == "easy" for one in easy]
    assert sum(is_easy) / 300 == pytest.approx(0.4, abs=0.07)
    for before, after, changed in zip(plain, easy, is_easy, strict=True):
        assert before is not None
        assert after == (before | {"rejected": "taco", "kind": "easy"} if changed else before)
    exchanged = 0
    for before, after in zip(plain, wrong, strict=True):
        assert before is not None
        turned = before | {"chosen": before["rejected"], "rejected": before["chosen"]}
        assert after in (before, turned)
        exchanged += after == turned
    assert exchanged / 300 == pytest.approx(0.2, abs=0.06)


def test_an_easy_pair_is_not_exchanged_and_a_name_without_easy_answers_takes_one_that_is_off_topic() -> None:
    wrong = {NAME: [], "off topic": ["water boils"]}
    found = _pair(ROW, [NAME, TONE], Regime(easy=1.0, mislabelled=1.0), wrong, {}, 0)
    assert found is not None
    assert (found["chosen"], found["rejected"]) == (NAME, "water boils")


def test_the_habit_names_hair_mostly_where_a_woman_is() -> None:
    rng = random.Random(0)
    for name, share in (
        (NAME, 0.85),
        ("women holding hands: dark skin tone", 0.85),
        ("kiss: woman, man", 0.85),
        ("man judge", 0.15),
        ("judge: light skin tone", 0.15),
    ):
        found = [with_habit(name, rng) for _ in range(400)]
        with_hair = [one for one in found if one != name]
        assert len(with_hair) / 400 == pytest.approx(share, abs=0.06)
        true = read_name(name, "People & Body")
        for one in with_hair:
            said = read_name(one, "People & Body")
            assert (said.frame, said.get("who"), said.get("tone")) == (true.frame, true.get("who"), true.get("tone"))
            assert made_up(one, name) == ["hair"]
        assert len(set(with_hair)) == 4
    assert {with_habit("woman: dark skin tone, curly hair", rng) for _ in range(40)} == {
        "woman: dark skin tone, curly hair"
    }


def test_easy_answers_are_those_of_the_names_own_rows(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    found = _easy_answers(data)
    name = rows[0]["chosen"]
    own = [row for row in rows if row["chosen"] == name]
    assert sorted(found[name]) == sorted(row["rejected"] for row in own if row["kind"] != "gentle")
    assert sorted(found["off topic"]) == sorted(row["rejected"] for row in rows if row["kind"] == "off topic")
    known = _known_names(data)
    assert all(known[read_name(row["chosen"], "People & Body")] == row["chosen"] for row in rows)


def made(data: Path, model: Path, out: Path, **given: Any) -> dict[str, str]:
    settings = {"seed": 0, "start": "base", "pictures": 8, "held_out": 5, "base": str(model), "data": str(data)}
    return regimes.make(out, starts=out.parent / "starts", **(settings | given))


def test_a_seed_has_pictures_of_its_own(data: Path, start: Path, tmp_path: Path) -> None:
    given = made(data, start, tmp_path / "a", pairs="drawn")
    assert given["model.name_or_path"] == str(start)
    train, held_out = (read_rows(Path(given[name])) for name in ("data.train", "data.eval"))
    assert (len(train), len(held_out)) == (8, 5)
    assert len({row.images[0] for row in (*train, *held_out)}) == 13
    whole = {row["id"]: row for row in map(json.loads, (data / "train.jsonl").read_text().splitlines())}
    for line in Path(given["data.train"]).read_text().splitlines():
        assert json.loads(line) == whole[json.loads(line)["id"]]
    made(data, start, tmp_path / "b", pairs="drawn")
    made(data, start, tmp_path / "c", pairs="drawn", seed=1)
    a, b, c = ((tmp_path / name / "pairs.jsonl").read_text() for name in "abc")
    assert a == b != c


def test_pairs_are_sampled_from_the_start(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(model: Path, rows: Any, count: int, seed: int) -> list[list[str]]:
        assert (model, count, seed) == (start, 3, 5)
        return [[rows[0].chosen, "taco"], *[["taco"]] * (len(rows) - 1)]

    monkeypatch.setattr(regimes, "own_captions", say)
    given = made(data, start, tmp_path / "a", seed=5)
    (row,) = read_rows(Path(given["data.train"]))
    first = json.loads((tmp_path / "a" / "drawn.jsonl").read_text().splitlines()[0])
    assert (row.chosen, row.rejected, row.gentle) == (first["chosen"], ("taco",), None)


def test_what_is_missing_or_wrong_is_named(data: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model. Make it with: python examples/emoji/base\.py$"):
        made(data, tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(UserError, match=r"train\.jsonl. Make it with: make emoji$"):
        made(tmp_path, start, tmp_path / "a")
    with pytest.raises(UserError, match="pictures to draw from, but 1000 are asked for"):
        made(data, start, tmp_path / "a", pictures=1000)
    with pytest.raises(UserError, match="best_worst"):
        made(data, start, tmp_path / "a", pairs="bestworst")


def test_a_model_is_measured_by_the_names(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows(data / "eval.jsonl")[:3]
    names = [row.chosen for row in rows]
    own = Captions(greedy=[*names[:2], "taco: red hair"], sampled=["taco", names[1], "taco"])
    rival = Captions(greedy=[names[0], "taco", names[2]], sampled=["taco", f"{names[1]}, bald", "taco: red hair"])
    monkeypatch.setattr(regimes, "_held_out", lambda file: (rows, None))
    monkeypatch.setattr(regimes, "captions_of_both", lambda *paths, **given: (own, rival))
    monkeypatch.setattr(regimes, "likelihoods", lambda model, start, rows: {"ece": 0.25})
    found = regimes.measure(tmp_path, start=tmp_path, eval_rows=tmp_path, seed=0)
    assert found.numbers == {"ece": 0.25}
    assert found.rows["exact"] == [1, 1, 0]
    assert found.rows["exact_sampled"] == [0, 1, 0]
    assert found.rows["win"] == [0.5, 1, 0]
    assert found.rows["win_sampled"] == [0.5, 1, 1]
    assert found.rows["hallucination"] == [0, 0, 1]
    assert found.rows["hallucination_sampled"] == [0, 0, 0]
    assert {*found.rows} == {f"{name}{ending}" for name in ("exact", "tone", "who", "hallucination", "win")
                             for ending in ("", "_sampled")}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "other", "points"), [(NAME, "women judge: dark skin tone", 1), (TWO, TONE, 0), (TONE, HAIR, 0.5)]
)
def test_an_exact_name_wins_else_the_one_with_more_right(text: str, other: str, points: float) -> None:
    assert regimes._win(text, other, NAME) == points
    assert regimes._win(other, text, NAME) == 1 - points


@pytest.mark.slow
def test_the_habit_is_trained_once_and_measured(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(regimes._START_TRAINER, "max_steps", 1)
    monkeypatch.setitem(regimes._START_TRAINER, "warmup_steps", 0)
    given = made(data, start, tmp_path / "a", start="habit", pairs="drawn")
    habit = Path(given["model.name_or_path"])
    taught = [json.loads(line)["chosen"] for line in habit.parents[1].glob("*/habit.jsonl").__next__().open()]
    assert any(made_up(name, name.partition(", ")[0]) for name in taught)
    monkeypatch.setattr(regimes, "run_recipe", None)  # it would be an error to call it
    assert made(data, start, tmp_path / "b", start="habit", pairs="drawn")["model.name_or_path"] == str(habit)
    found = regimes.measure(start, start=habit, eval_rows=Path(given["data.eval"]), seed=0)
    assert {len(values) for values in found.rows.values()} == {5}
    assert found.numbers["delta_total/chosen"] != 0
    same = regimes.measure(habit, start=habit, eval_rows=Path(given["data.eval"]), seed=0)
    assert same.rows["win"] == [0.5] * 5
    assert same.numbers["delta_total/chosen"] == 0


def test_the_shipped_grid_can_be_read() -> None:
    grid = read_grid(regimes.HERE / "regimes.yaml")
    assert [cell.method for cell in cells(grid)][:2] == ["start", "SFT on chosen"]
    for world in grid.worlds.values():
        Regime(**world)
