"""Files of refreshes: written and read back equal, older ones too, and refused where they cannot be understood."""

import json
from pathlib import Path

import pytest

from cwdpo.errors import UserError
from cwdpo.negatives.candidates import (
    Candidate,
    Refresh,
    drop_easy,
    drop_similar,
    read_refreshes,
    refresh_path,
    write_refresh,
)

CANDIDATES = [
    Candidate(3, "c", "a blue disc", ids=[5, 6], key="k1", reference_logprob=-1.25, lbar=-0.1),
    Candidate(3, "c", "a red disc", reason="judged_right"),
    Candidate(3, "c", "an own one", key="k2", lbar=-0.3, source="dataset"),
    Candidate(4, "d", "too easy", reason="too_easy", key="k3", lbar=-9.0, source="dataset"),
]


def written(directory: Path, **header: object) -> Path:
    write_refresh(directory, Refresh(number=1, step=7, epoch=0, seed=3, candidates=CANDIDATES))
    path = refresh_path(directory, 1)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | header), *rest]) + "\n")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written(tmp_path)
    (refresh,) = read_refreshes(tmp_path)
    assert refresh == Refresh(number=1, step=7, epoch=0, seed=3, candidates=CANDIDATES)


def test_own_negatives_are_counted_apart(tmp_path: Path) -> None:
    header = json.loads(written(tmp_path).read_text().splitlines()[0])
    assert header["counts"] == {"kept": 1, "judged_right": 1, "dataset": 2}


def test_format_one_is_read(tmp_path: Path) -> None:
    """As it was before there were curricula: samples alone, and no word of where they came from."""
    header = {"format": 1, "number": 2, "step": 4, "epoch": 1, "seed": 0, "details": {}, "error": None}
    line = {"row": 0, "id": "a", "text": "b", "reason": None, "ids": [1], "key": "k", "reference_logprob": -1.0}
    lines = [header | {"counts": {"kept": 1}}, line | {"lbar": None}]
    refresh_path(tmp_path, 2).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (refresh,) = read_refreshes(tmp_path)
    assert refresh.candidates == [Candidate(0, "a", "b", ids=[1], key="k", reference_logprob=-1.0)]
    assert refresh.candidates[0].source == "on_policy"


def test_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path, format=3)
    with pytest.raises(UserError, match=r"refresh-00001\.jsonl.*its format is 3, and this version reads 1 and 2"):
        read_refreshes(tmp_path)


def test_a_missing_own_negative_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="lines are missing"):
        read_refreshes(tmp_path)


def test_dropping_by_a_number_or_a_quantile() -> None:
    made = [Candidate(i, "", f"{i}", lbar=-float(i)) for i in range(5)]
    made.append(Candidate(5, "", "x", reason="cut"))
    assert drop_easy(made, "quantile:0.5") == -2.0
    assert [c.reason for c in made] == [None, None, None, "too_easy", "too_easy", "cut"]
    assert drop_easy(made, -0.5) == -0.5
    assert [c.reason for c in made[:3]] == [None, "too_easy", "too_easy"]
    assert drop_easy(made[3:], -0.5) is None


def test_dropping_what_is_too_similar() -> None:
    made = [Candidate(i, "", f"{i}", ches=float(i)) for i in range(4)]
    assert drop_similar(made, "quantile:0.5") == 1.5
    assert [c.reason for c in made] == [None, None, "too_similar", "too_similar"]
    with pytest.raises(ValueError, match="'0' has no lbar; measure it"):
        drop_easy(made, -1.0)
