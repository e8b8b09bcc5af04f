"""Negatives of whole files."""

import json
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.reading import read_rows
from cwdpo.errors import ConfigError, DataError, UserError
from cwdpo.negatives import read_lexicon
from cwdpo.negatives.files import write_gentle, write_mixed

LEXICON = read_lexicon()
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "What?", "chosen": "A red car.", "rejected": "No idea.", "own": [1]},
    {"id": "b", "prompt": "What?", "chosen": "Nothing in particular.", "rejected": "x", "gentle": "old"},
    {"id": "c", "prompt": "What?", "chosen": "Two dogs on a couch.", "rejected": "y", "negatives": ["z"]},
]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_keep_everything_and_gain_a_gentle_negative(tmp_path: Path) -> None:
    coverage = write_gentle(written(tmp_path, ROWS), tmp_path / "out.jsonl", lexicon=LEXICON)
    out = read(tmp_path / "out.jsonl")
    for row, new in zip(ROWS, out, strict=True):
        before = {key: value for key, value in row.items() if key != "gentle"}
        assert {key: value for key, value in new.items() if key not in ("gentle", "gentle_edit")} == before
    edit = out[0]["gentle_edit"]
    (start, end), (new_start, new_end) = edit["before"], edit["after"]
    chosen, gentle = out[0]["chosen"], out[0]["gentle"]
    assert chosen[:start] + gentle[new_start:new_end] + chosen[end:] == gentle != chosen
    assert coverage.to_json()["with_gentle"] == 2
    assert coverage.made.total() == 2
    assert coverage.without == [f"{tmp_path}/rows.jsonl:2"]
    assert [row.gentle is None for row in read_rows(tmp_path / "out.jsonl")] == [False, True, False]


def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    longer = [ROWS[0], {**ROWS[1], "chosen": "A blue bus."}, ROWS[2]]
    write_gentle(written(tmp_path, ROWS), tmp_path / "one.jsonl", lexicon=LEXICON, seed=5)
    write_gentle(written(tmp_path, longer, "b.jsonl"), tmp_path / "two.jsonl", lexicon=LEXICON, seed=5)
    assert read(tmp_path / "one.jsonl")[2] == read(tmp_path / "two.jsonl")[2]


def test_seeds_and_kinds(tmp_path: Path) -> None:
    data = written(tmp_path, [{**ROWS[0], "id": str(number)} for number in range(30)])
    for name, seed in (("a.jsonl", 0), ("b.jsonl", 0), ("c.jsonl", 1)):
        write_gentle(data, tmp_path / name, lexicon=LEXICON, seed=seed, kinds=["colour"])
    assert (
        (tmp_path / "a.jsonl").read_bytes()
        == (tmp_path / "b.jsonl").read_bytes()
        != (tmp_path / "c.jsonl").read_bytes()
    )
    assert {row["gentle_edit"]["kind"] for row in read(tmp_path / "a.jsonl")} == {"colour"}
    assert len({row["gentle"] for row in read(tmp_path / "a.jsonl")}) > 5


def test_another_column_and_further_right_answers(tmp_path: Path) -> None:
    row = {"prompt": "x", "chosen": "z", "caption": "a large dog", "others": ["A small dog."]}
    data = written(tmp_path, [row])
    options: dict[str, Any] = {"lexicon": LEXICON, "kinds": ["size"], "column": "caption"}
    write_gentle(data, tmp_path / "a.jsonl", **options)
    write_gentle(data, tmp_path / "b.jsonl", **options, positives="others")
    assert read(tmp_path / "a.jsonl")[0]["gentle"] == "a small dog"
    assert "gentle" not in read(tmp_path / "b.jsonl")[0]
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row has no `captions`"):
        write_gentle(data, tmp_path / "c.jsonl", lexicon=LEXICON, column="captions")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS)
    with pytest.raises(UserError, match="nothing is overwritten"):
        write_gentle(data, data, lexicon=LEXICON)
    with pytest.raises(UserError, match="there is no directory"):
        write_gentle(data, tmp_path / "no" / "out.jsonl", lexicon=LEXICON)


@pytest.mark.parametrize("name", ["new.csv", "new.json", "new"])
def test_a_name_by_which_rows_would_not_be_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows are written as JSON lines. Write --out .*new.jsonl"):
        write_gentle(written(tmp_path, ROWS), tmp_path / name, lexicon=LEXICON)
    assert not (tmp_path / name).exists()


def test_mixing_takes_the_asked_share(tmp_path: Path) -> None:
    samples = written(
        tmp_path, [{"id": "a", "negatives": ["s1", "A RED CAR"]}, {"id": "q", "negatives": ["s"]}], "s.jsonl"
    )
    mixed = write_mixed(
        written(tmp_path, ROWS), samples, tmp_path / "out.jsonl", fraction=[[0, 0], [1, 1]], progress=1.0
    )
    out = read(tmp_path / "out.jsonl")
    assert [(row["rejected"], row.get("negatives")) for row in out[:2]] == [("s1", None), ("x", None)]
    assert {out[2]["rejected"], *out[2]["negatives"]} == {"y", "z"}
    assert (mixed.sources["on_policy"], mixed.sources["dataset"], mixed.without_samples) == (1, 3, 2)
    assert mixed.unused_ids == ("q",)
    assert [row["negative_sources"] for row in out] == [["on_policy"], ["dataset"], ["dataset", "dataset"]]


def test_mixing_refuses_what_is_no_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_policy_fraction is"):
        write_mixed(written(tmp_path, ROWS), tmp_path / "s.jsonl", tmp_path / "out.jsonl", fraction=[[1, 0], [0, 1]])


def test_a_right_sample_is_no_negative(tmp_path: Path) -> None:
    samples = written(tmp_path, [{"id": "a", "negatives": ["a red car", "A red car."]}], "s.jsonl")
    write_mixed(written(tmp_path, ROWS), samples, tmp_path / "out.jsonl", fraction=1.0)
    assert read(tmp_path / "out.jsonl")[0]["rejected"] == "No idea."


def test_a_mixed_file_is_read_in_its_own_format(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    data = written(tmp_path, [{"id": "a", "conversations": turns}])
    write_mixed(
        data,
        written(tmp_path, [{"id": "a", "negatives": ["s", "t"]}], "s.jsonl"),
        tmp_path / "o.jsonl",
        fraction=1.0,
        count=2,
    )
    (row,) = read_rows(tmp_path / "o.jsonl")
    assert (row.chosen, set(row.rejected)) == ("A cat.", {"s", "t"})


def test_samples_of_another_form_are_told(tmp_path: Path) -> None:
    samples = written(tmp_path, [{"id": "a", "negatives": "s"}], "s.jsonl")
    with pytest.raises(DataError, match=r"s.jsonl:1: a line of samples must be"):
        write_mixed(written(tmp_path, ROWS), samples, tmp_path / "out.jsonl", fraction=0.5)


def test_rows_of_one_id_are_refused_with_both_lines(tmp_path: Path) -> None:
    samples = written(tmp_path, [{"id": "a", "negatives": ["s"]}], "s.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl:3: the id 'a' is also that of .*rows.jsonl:1"):
        write_mixed(written(tmp_path, [*ROWS[:2], ROWS[0]]), samples, tmp_path / "out.jsonl", fraction=0.5)
    unnamed = [{**ROWS[0], "id": "1"}, {key: value for key, value in ROWS[2].items() if key != "id"}]
    with pytest.raises(DataError, match="the id '1' is also"):  # the second row's number
        write_mixed(written(tmp_path, unnamed), samples, tmp_path / "out.jsonl", fraction=0.5)


def test_what_is_right_for_another_row_of_the_prompt_is_no_negative(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "What?", "chosen": "a large dog", "rejected": "x", "longer": "a dog that is large"},
        {"id": "b", "prompt": "What?", "chosen": "A small dog.", "rejected": "y"},
        {"id": "c", "prompt": "Who?", "chosen": "A tiny dog.", "rejected": "y"},
    ]
    texts = ["a small dog", "A dog that is large.", "a tiny dog"]
    samples = written(tmp_path, [{"id": "a", "negatives": texts}], "s.jsonl")
    write_mixed(written(tmp_path, rows), samples, tmp_path / "out.jsonl", fraction=1.0, count=3)
    assert {read(tmp_path / "out.jsonl")[0][key] for key in ("rejected",)} == {"a tiny dog"}
    assert read(tmp_path / "out.jsonl")[0]["negatives"] == ["x"]
    write_gentle(tmp_path / "rows.jsonl", tmp_path / "g.jsonl", lexicon=LEXICON, kinds=["size"])
    assert ["gentle" in row for row in read(tmp_path / "g.jsonl")] == [False, False, True]


def test_an_edit_in_several_places_tells_each(tmp_path: Path) -> None:
    data = written(
        tmp_path, [{"prompt": "x", "chosen": "A dog sits. An old dog.", "lbar": {"gentle": 1, "rejected": 2}}]
    )
    write_gentle(data, tmp_path / "out.jsonl", lexicon=LEXICON, kinds=["object"])
    (row,) = read(tmp_path / "out.jsonl")
    edit, animal = row["gentle_edit"], row["gentle"].split()[1]
    assert [row["chosen"][slice(*part["before"])] for part in edit["parts"]] == ["dog", "dog"]
    assert [row["gentle"][slice(*part["after"])] for part in edit["parts"]] == [animal, animal]
    assert row["lbar"] == {"rejected": 2}  # what was measured of an older gentle negative is not this one's


TURNS = [{"from": "human", "value": "<image>What?"}]
OTHER_FORMS: dict[str, dict[str, Any]] = {
    "rlhf-v": {"text": json.dumps({"question": "What?", "chosen": "red", "rejected": "cat"}), "image": "a.png"},
    "llava-rlhf": {"conversations": TURNS, "output_1": "cat", "output_2": "red", "preference": 2, "image": "a.png"},
    "alpaca": {"instruction": "What?", "output": ["red", "cat"], "images": ["a.png"]},
    "povid": {
        "conversations": [*TURNS, {"from": "gpt", "value": "red"}],
        "rejected_conversations": [*TURNS, {"from": "gpt", "value": "cat"}],
        "image": "a.png",
    },
    "ms-swift": {
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "red"}],
        "rejected_messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "cat"}],
        "images": ["a.png"],
    },
    "trl-implicit": {
        "chosen": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "red"}],
        "rejected": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "cat"}],
        "images": ["a.png"],
    },
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_rows_of_every_form_take_new_negatives(name: str, tmp_path: Path) -> None:
    data = written(tmp_path, [{**OTHER_FORMS[name], "id": "a", "own": 1}])
    (before,) = read_rows(data)
    samples = written(tmp_path, [{"id": "a", "negatives": ["dog", "cow"]}], "samples.jsonl")
    write_mixed(data, samples, tmp_path / "out.jsonl", fraction=1.0, count=2)
    (after,) = read_rows(tmp_path / "out.jsonl")
    assert (after.prompt, after.chosen, after.images) == (before.prompt, before.chosen, before.images)
    assert (before.rejected, sorted(after.rejected)) == (("cat",), ["cow", "dog"])
    assert read(tmp_path / "out.jsonl")[0]["own"] == 1
