"""Samples of whole files: what a failing judge must not cost, and whose work continues."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.generation import Generated, Sampling
from cwdpo.negatives.offline_generation import write_samples

HOW = Sampling(k=1, temperature=1.0, top_p=1.0, max_new_tokens=9, batch_size=2)


class Counting:
    """A sampler that numbers its answers."""

    def __init__(self) -> None:
        self.asked = 0

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        self.asked += len(rows)
        return [[Generated(f"a wrong one of {row.chosen}", True)] for row in rows]


def data(folder: Path, ids: Sequence[str] = ("a", "b", "c")) -> Path:
    rows = [{"id": name, "prompt": "x", "chosen": f"y{place}"} for place, name in enumerate(ids)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def write(folder: Path, sampler: Counting, judge: Any = None, name: str = "j") -> list[dict[str, Any]]:
    out = folder / "out.jsonl"
    write_samples(
        folder / "rows.jsonl", out, sampler, HOW, made_by={"model": "m"}, verified_by={"judge": name}, judge=judge
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def raising(rows: Sequence[Row], answers: Sequence[str]) -> list[bool]:
    raise RuntimeError("no such picture")


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (raising, r"the judge failed: RuntimeError: no such picture \(test_offline_generation.py:\d+\)"),
        (lambda rows, answers: [], "the judge failed: ValueError: .*2 answers and gave 0"),
        (lambda rows, answers: None, "the judge failed: TypeError"),
    ],
)
def test_samples_survive_the_judge(tmp_path: Path, judge: Any, message: str) -> None:
    data(tmp_path)
    sampler = Counting()
    with pytest.raises(UserError, match=message):
        write(tmp_path, sampler, judge)
    assert sampler.asked == 2
    lines = write(tmp_path, sampler, lambda rows, answers: [answer.endswith("y1") for answer in answers])
    assert sampler.asked == 3
    assert [len(line["negatives"]) for line in lines] == [1, 0, 1]
    assert lines[1]["dropped"] == [{"text": "a wrong one of y1", "reason": "judged_right"}]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_another_judge_judges_anew_what_is_there(tmp_path: Path) -> None:
    data(tmp_path)
    sampler = Counting()

    def second_time(rows: Sequence[Row], answers: Sequence[str]) -> list[bool]:
        if len(rows) == 1:
            raise RuntimeError
        return [True] * len(rows)

    with pytest.raises(UserError):
        write(tmp_path, sampler, second_time)
    lines = write(tmp_path, sampler, lambda rows, answers: [False] * len(rows), name="k")
    assert [len(line["negatives"]) for line in lines] == [1, 1, 1]
    assert sampler.asked == 3


def test_other_data_of_the_same_name_and_length_is_another_call(tmp_path: Path) -> None:
    file = data(tmp_path)
    with pytest.raises(UserError):
        write(tmp_path, Counting(), raising)
    file.write_text(file.read_text().replace("y2", "z2"))
    with pytest.raises(UserError, match="other settings or other data"):
        write(tmp_path, Counting())


def test_two_rows_of_one_id_are_refused_before_anything_is_paid_for(tmp_path: Path) -> None:
    data(tmp_path, ["a", "b", "a"])
    sampler = Counting()
    with pytest.raises(DataError, match=r"rows.jsonl:3: the id 'a' is also that of .*rows.jsonl:1"):
        write(tmp_path, sampler)
    assert sampler.asked == 0
