"""``cwdpo judge`` on files of answers, with rules and a server behind it; once with two tiny models."""

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import disc_data
from support.chat_server import ChatServer, serving

from cwdpo.cli import app
from cwdpo.evaluation.judging.win_rates import length_controlled
from cwdpo.negatives.server import Endpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``cwdpo judge`` in a directory of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    patient = Endpoint.__init__

    def impatient(self: Endpoint, *words: Any, **settings: Any) -> None:
        patient(self, *words, **settings | {"sleep": lambda _: None, "retries": 1})

    monkeypatch.setattr(Endpoint, "__init__", impatient)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "judge", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make(directory: Path, number: int, **answers: Callable[[int], str]) -> None:
    """Rows without pictures, and a file of answers each."""
    write(
        directory / "rows.jsonl", [{"id": f"r{i}", "prompt": "which?", "chosen": f"right {i}"} for i in range(number)]
    )
    for name, answer in answers.items():
        write(directory / f"{name}.jsonl", [{"id": f"r{i}", "answer": answer(i)} for i in range(number)])


def asked(body: Any) -> tuple[str, str]:
    lines = body["messages"][-1]["content"][-1]["text"].splitlines()
    first, second = (json.loads(line[10:]) for line in lines if line.startswith(("Answer A", "Answer B")))
    return first, second


def chance(*parts: str) -> float:
    return random.Random(hashlib.sha256("|".join(parts).encode()).digest()).random()


def says(verdict: str) -> list[str]:
    return [json.dumps({"verdict": verdict})]


@pytest.fixture
def honest() -> Iterator[ChatServer]:
    """Prefers the answer that begins with ``good``; otherwise a tie."""

    def answer(body: Any) -> list[str]:
        first, second = (text.startswith("good") for text in asked(body))
        return says("tie" if first == second else "A" if first else "B")

    with serving(answer) as server:
        yield server


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_and_a_rule(run: Run, tmp_path: Path) -> None:
    # a is right on 30 rows, b on 12 others and on 6 of these; both wrong but different on 8, both the same on 4
    make(
        tmp_path,
        48,
        a=lambda i: f"right {i}" if i < 30 else "same" if i >= 44 else "wrong",
        b=lambda i: f"Right {i}." if 24 <= i < 36 else "same" if i >= 44 else "wrong, and long",
    )
    code, out, err = run("a.jsonl", "b.jsonl", "--data", "rows.jsonl")
    assert code == 0, err
    (pair,) = json.loads((tmp_path / "judge-a-b" / "judge.json").read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["rows"], pair["same_answer"]) == ("a", "b", 48, 4)
    assert (pair["won"], pair["tied"], pair["lost"], pair["inconsistent"]) == (24, 18, 6, 0)
    assert pair["win_rate"]["wilson"]["value"] == pytest.approx((24 + 9) / 48)
    assert pair["win_rate"]["decided"]["value"] == pytest.approx(24 / 30)
    assert pair["order"]["consistent"]["value"] == 1
    texts = [[line["answer"] for line in lines(tmp_path / name)] for name in ("a.jsonl", "b.jsonl")]
    assert pair["mean_characters"] == pytest.approx([sum(map(len, of_model)) / 48 for of_model in texts])
    scores = np.array([(i < 24) + 0.5 * (not (i < 24 or 30 <= i < 36)) for i in range(48)])
    difference = np.array([float(len(one) - len(other)) for one, other in zip(*texts, strict=True)])
    expected = length_controlled(scores, difference)[0]
    assert pair["win_rate"]["length_controlled"]["value"] == pytest.approx(expected)
    assert abs(expected - 33 / 48) > 0.01
    assert "a : b" in out
    assert "68.8%" in out
    assert "4 ties are the same answer" in out
    assert run("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--dry-run")[1] == "0 verdicts, no call of a server\n"


def test_ties_alone_are_answered_with_another_judge(run: Run, tmp_path: Path) -> None:
    make(tmp_path, 3, a=lambda i: f"wrong {i}", b=lambda i: "wrong")
    words = ("a.jsonl", "b.jsonl", "--data", "rows.jsonl")
    assert "nothing but ties: --judge exact" in run(*words)[1]
    assert "nothing but ties" not in run(*words, "--judge", "overlap", "--out", "other")[1]
    make(tmp_path, 3, a=lambda i: f"right {i}", b=lambda i: "wrong")
    assert "nothing but ties" not in run(*words, "--out", "third")[1]


@pytest.mark.slow
def test_a_judge_that_likes_the_first_answer_is_corrected(run: Run, tmp_path: Path) -> None:
    """It says "the first" in 80 % of cases whatever was answered: in 60 % without looking, else it finds the better
    answer. Two models that are equally good must come out even, and not at 80 %."""
    make(
        tmp_path,
        200,
        a=lambda i: f"{'good' if i % 2 else 'bad'} a{i}",
        b=lambda i: f"{'bad' if i % 2 else 'good'} b{i}",
    )

    def answer(body: Any) -> list[str]:
        first, second = asked(body)
        return says("A" if chance("looks", first, second) < 0.6 or first.startswith("good") else "B")

    with serving(answer) as server:
        code, out, err = run("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", f"{server.url}#tiny", "--json")
        assert code == 0, err
        assert len(server.chats()) == 400
    assert err.startswith("400 calls of the server; 0 verdicts are there already.")
    (pair,) = json.loads(out)["pairs"]
    preferred, rate = pair["order"]["first_preferred"], pair["win_rate"]
    assert preferred["low"] < 0.8 < preferred["high"]
    for name in ("wilson", "bootstrap", "length_controlled", "decided"):
        assert rate[name]["low"] < 0.5 < rate[name]["high"], name
    assert rate["wilson"]["high"] - rate["wilson"]["low"] < 0.14
    # P(both orders give the same answer): the better one is found if the order that shows it second is looked at
    assert pair["order"]["consistent"]["low"] < 0.4 < pair["order"]["consistent"]["high"]
    assert pair["inconsistent"] == pair["tied"]


@pytest.mark.slow
def test_a_second_start_asks_only_for_what_is_missing(run: Run, tmp_path: Path, honest: ChatServer) -> None:
    make(tmp_path, 20, a=lambda i: f"good a{i}" if i < 12 else f"bad a{i}", b=lambda i: f"bad b{i}")
    words = ("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", f"{honest.url}#tiny", "--out", "there")
    kept = tmp_path / "there" / "verdicts.jsonl"
    words = (*words, "--concurrency", 1)
    whole = honest.answer

    def dies(body: Any) -> list[str]:
        if len(honest.chats()) > 15:
            honest.script = [401] * 500  # refused from the next one on, as with a key that ran out
        return whole(body)

    honest.answer = dies
    code, _, err = run(*words)
    assert code == 2
    assert "run the same command again" in err
    before = [line for line in lines(kept) if "verdict" in line]
    assert 14 <= len(before) <= 16
    with kept.open("a") as file:
        file.write('{"key": "half a li')  # what a kill leaves
    honest.script, honest.answer = [], whole
    asked_before = len(honest.chats())
    assert run(*words, "--dry-run")[1] == f"{40 - len(before)} calls of the server\n"
    code, out, err = run(*words, "--prices", "1,2")
    assert code == 0, err
    assert f"{len(before)} verdicts are there already" in err
    assert len(honest.chats()) - asked_before == 40 - len(before)
    verdicts = [line for line in lines_that_parse(kept) if "verdict" in line]
    assert len({line["key"] for line in verdicts}) == len(verdicts) == 40
    found = json.loads((tmp_path / "there" / "judge.json").read_text())
    assert (found["pairs"][0]["won"], found["pairs"][0]["tied"]) == (12, 8)
    assert found["cost"]["prompt_tokens"] == 40 * 10  # of both starts
    assert found["cost"]["price"] == pytest.approx(40 * (10 + 2 * 3) / 1e6)
    assert "400 prompt tokens" in out
    # nothing is missing any more; then one answer is corrected, and its row alone is asked again
    assert "0 calls of the server; 40 verdicts" in run(*words)[2]
    make(tmp_path, 20, a=lambda i: "good and new" if i == 19 else f"{'good' if i < 12 else 'bad'} a{i}")
    assert "2 calls of the server; 38 verdicts" in run(*words)[2]


def lines_that_parse(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@pytest.mark.slow
def test_rows_without_a_verdict_are_left_out_or_end_it(
    run: Run, tmp_path: Path, honest: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, 30, a=lambda i: f"good a{i}", b=lambda i: f"bad b{i}")
    words = ("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", f"{honest.url}#tiny", "--concurrency", 1)
    honest.script = ["ok"] * 10 + [500] * 2 + ["ok"] * 6 + [503] * 2
    code, out, err = run(*words)
    assert code == 0, err
    assert "2 rows left out, as the judge gave no verdict" in out
    assert "failed 2 times" in caplog.text
    code, out, err = run(*words)  # they are asked again
    assert "2 calls of the server; 58 verdicts" in err
    assert "left out" not in out
    whole = honest.answer
    honest.answer = lambda body: ["Hm."] if int(asked(body)[0].split()[-1][1:]) % 5 == 0 else whole(body)
    code, _, err = run(*words, "--out", "other")
    assert code == 2
    assert "6 of 30 comparisons have no verdict, more than a tenth" in err
    assert "12 with one that names neither" in err
    assert len(err.strip().splitlines()) == 2
    assert not (tmp_path / "other" / "judge.json").exists()


def test_the_number_of_calls_is_bounded(run: Run, tmp_path: Path, honest: ChatServer) -> None:
    make(tmp_path, 10, a=lambda i: f"good a{i}", b=lambda i: "same" if i < 4 else "bad", c=lambda i: "same")
    words = ("a.jsonl", "b.jsonl", "c.jsonl", "--data", "rows.jsonl", "--judge", f"{honest.url}#tiny")
    assert run(*words, "--dry-run")[1] == "52 calls of the server\n"  # 2 (10 + 10 + 6)
    assert json.loads(run(*words, "--dry-run", "--json")[1]) == {"calls": 52, "exact": True, "verdicts": 52}
    code, _, err = run(*words, "--max-calls", 51)
    assert (code, len(honest.chats())) == (2, 0)
    assert "--max-calls 52" in err
    code, out, _ = run(*words, "--max-calls", 52)
    assert code == 0
    assert "no Bradley-Terry strengths: b, c never won a point against a" in out
    assert run(*words[:3], "--data", "rows.jsonl", "--rows", 5, "--out", "few", *words[5:], "--dry-run")[1].endswith(
        "server\n"
    )


def test_the_key_is_in_no_file_and_no_message(
    run: Run, tmp_path: Path, honest: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-1234"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    make(tmp_path, 6, a=lambda i: f"good a{i}", b=lambda i: f"bad b{i}")
    whole = honest.answer
    honest.answer = lambda body: [f"{key} says hm"] if len(honest.chats()) == 3 else whole(body)
    honest.script, honest.complaint = ["ok", 400], f"bad key {key}"
    words = ("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", f"{honest.url}#tiny", "--concurrency", 1)
    first, second = run(*words), run(*words)
    assert any(head.get("Authorization") == f"Bearer {key}" for head in honest.headers)
    assert (first[0], second[0]) == (2, 0)
    assert key not in "".join(map(str, (*first, *second)))
    for file in (tmp_path / "judge-a-b").iterdir():
        assert key not in file.read_text()


@pytest.mark.slow
def test_more_than_two_are_ranked(run: Run, tmp_path: Path) -> None:
    rng = random.Random(0)
    right = {name: [rng.random() < share for _ in range(120)] for name, share in (("x", 0.8), ("y", 0.5), ("z", 0.3))}
    make(tmp_path, 120, **{n: lambda i, n=n: f"right {i}" if right[n][i] else f"wrong {n}" for n in right})  # type: ignore[misc]
    code, out, _ = run("z.jsonl", "x.jsonl", "y.jsonl", "--data", "rows.jsonl", "--out", "d")
    assert code == 0
    found = json.loads((tmp_path / "d" / "judge.json").read_text())["strengths"]
    assert found["x"]["low"] > found["y"]["high"]
    assert found["y"]["low"] > found["z"]["high"]
    assert sum(one["value"] for one in found.values()) == pytest.approx(0)
    ranking = out[out.index("Bradley-Terry") :]
    assert [line[2] for line in ranking.splitlines() if line.startswith("│")] == ["x", "y", "z"]


BAD: list[tuple[tuple[object, ...], str]] = [
    (("a.jsonl", "--data", "rows.jsonl"), "a comparison needs two models at least"),
    (("a.jsonl", "a.jsonl", "--data", "rows.jsonl"), "a.jsonl is given twice"),
    (("a.jsonl", "gone.jsonl", "--data", "rows.jsonl"), "gone.jsonl: no such file"),
    (("a.jsonl", "short.jsonl", "--data", "rows.jsonl"), "short.jsonl: no answer for 2 of 3 rows, such as 'r1'"),
    (("a.jsonl", "twice.jsonl", "--data", "rows.jsonl"), "twice.jsonl:2: a second answer for the row 'r0'"),
    (("a.jsonl", "form.jsonl", "--data", "rows.jsonl"), "form.jsonl:1: not an answer. Write"),
    (("a.jsonl", "./gone", "--data", "rows.jsonl"), "there is no directory gone"),
    (("a.jsonl", "empty", "--data", "rows.jsonl"), "empty is an empty directory, and a run or a model is needed"),
    (("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", "best"), "is 'best', which is not a judge"),
    (
        ("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", "Overlp"),
        "is not a judge. Did you mean overlap? Write",
    ),
    (("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--temperature", "0"), "--temperature is 0.0, but must be > 0"),
    (("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--out", "full"), "full holds other files"),
    (("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--out", "rows.jsonl"), "is a file, not a directory"),
    (("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--out", "begun"), "begun: was begun with other settings (judge)"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_explained_in_one_line(run: Run, tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    make(tmp_path, 3, a=lambda i: "x", b=lambda i: "y")
    write(tmp_path / "short.jsonl", [{"id": "r0", "answer": "x"}])
    write(tmp_path / "twice.jsonl", [{"id": "r0", "answer": "x"}] * 2)
    write(tmp_path / "form.jsonl", [{"id": "r0", "text": "x"}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    if "begun" in words:
        assert run("a.jsonl", "b.jsonl", "--data", "rows.jsonl", "--judge", "overlap", "--out", "begun")[0] == 0
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_models_answer_once(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    data = disc_data.write(tmp_path / "data", disc_data.records(5, text_only_every=3))
    words = (tiny("llava"), tiny("idefics3"), "--data", data, "--judge", "overlap", "--out", "d", "--max-new-tokens", 6)
    words = (*words, "--batch-size", 2)
    assert run(*words, "--dry-run")[1] == "at most 10 verdicts, no call of a server\n"
    code, out, err = run(*words)
    assert code == 0, err
    first = (tmp_path / "d" / "answers-llava.jsonl").read_text()
    assert len(first.splitlines()) == 5
    assert "answers of llava were cut" in err
    kept = first.splitlines()
    (tmp_path / "d" / "answers-llava.jsonl").write_text("\n".join(kept[:3]) + "\n")
    again = run(*words)
    assert lines(tmp_path / "d" / "answers-llava.jsonl")[3:] == [json.loads(line) for line in kept[2:]]
    assert again[1] == out
    code, _, err = run(*words, "--temperature", 1)
    assert "other settings (answers)" in err
