"""``cwdpo negatives`` with a model or a server behind it."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import disc_data
from support.chat_server import serving

from cwdpo.cli import app
from cwdpo.cli.negatives import _recipe_of_run
from cwdpo.data.rows import Row
from cwdpo.negatives.hardness import weigh_as
from cwdpo.negatives.server import Endpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "negatives", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return disc_data.write(tmp_path, disc_data.records(6, text_only_every=3))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit(body: dict) -> list[str]:
    right = body["messages"][-2]["content"][0]["text"]
    return [json.dumps({"kind": "attribute", "from": "", "to": "", "negative": right.replace("disc", "square")})]


def test_gentle_from_a_server(run: Run, data: Path, tmp_path: Path) -> None:
    with serving(edit) as server:
        code, out, err = run(
            "gentle", data, "--out", tmp_path / "out.jsonl", "--endpoint", server.url, "--prices", "1,1"
        )
        assert len(server.chats()) == 6
    assert (code, out) == (0, f"wrote {tmp_path}/out.jsonl\n")
    assert "6 made" in err
    assert "60 prompt tokens and 18 completion tokens: 0.0001" in err
    first = lines(tmp_path / "out.jsonl")[0]
    assert first["gentle"] == "A red square on grey, number 0."
    before, after = first["gentle_edit"]["before"], first["gentle_edit"]["after"]
    assert (first["chosen"][slice(*before)], first["gentle"][slice(*after)]) == ("disc", "square")
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_gentle_goes_on_where_the_server_died(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, "sleep", lambda seconds: None)  # bound when it was defined
    out = tmp_path / "out.jsonl"
    with serving(edit) as server:
        server.script = ["ok", "ok", *[500] * 1000]
        code, _, err = run("gentle", data, "--out", out, "--endpoint", server.url, "--concurrency", 1)
        assert code == 2
        assert "4 of 6 rows have no reply" in err
        assert not out.exists()
        server.script, before = [], len(server.chats())
        assert run("gentle", data, "--out", out, "--endpoint", server.url, "--seed", 1)[0] == 2  # another call
        assert run("gentle", data, "--out", out, "--endpoint", server.url)[0] == 0
        assert len(server.chats()) - before == 4  # what was there is not paid for again
    assert [line["gentle"] for line in lines(out)] == [
        row["chosen"].replace("disc", "square") for row in disc_data.records(6)
    ]


def test_settings_of_the_other_kind_of_gentle_are_refused(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("gentle", data, "--out", out, "--endpoint", "http://127.0.0.1:9/v1", "--kinds", "colour")[0] == 2
    assert run("gentle", data, "--out", out, "--prices", "1,1")[0] == 2
    assert run("sample", "m", "--data", data, "--out", out, "--prices", "a")[0] == 2


def right_is_everything_with_an_e(rows: list[Row], answers: list[str]) -> list[bool]:
    return ["e" in answer for answer in answers]


def test_sampling_from_a_server(run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    out = tmp_path / "out.jsonl"
    with serving(lambda body: ["a wrong tin", "a bad cat", "a bad cat"]) as server:
        words = ["sample", "tiny", "--data", data, "--out", out, "--endpoint", server.url, "--k", 3]
        code, _, err = run(*words, "--judge", "test_negatives_models:right_is_everything_with_an_e")
    assert code == 0, err
    found = lines(out)
    assert found[4]["id"] == "4"
    assert found[4]["negatives"] == ["a wrong tin", "a bad cat"]
    assert found[4]["dropped"] == [{"text": "a bad cat", "reason": "repeated"}]


@pytest.mark.slow
def test_sampling_from_a_checkpoint_can_be_repeated_and_mixed(
    run: Run, data: Path, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    words = ["sample", tiny("llava"), "--data", data, "--k", 2, "--max-new-tokens", 400, "--batch-size", 4]
    once, again, other = (tmp_path / name for name in ("1.jsonl", "2.jsonl", "3.jsonl"))
    assert run(*words, "--out", once)[0] == 0
    assert run(*words, "--out", again)[0] == 0
    assert run(*words, "--out", other, "--seed", 1)[0] == 0
    assert once.read_text() == again.read_text() != other.read_text()
    assert all(len(line["negatives"]) + len(line["dropped"]) == 2 for line in lines(once))
    assert run("mix", data, "--on-policy", once, "--out", tmp_path / "mixed.jsonl", "--fraction", "1")[0] == 0


def test_sampling_goes_on_where_it_stopped(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, "sleep", lambda seconds: None)  # bound when it was defined
    out = tmp_path / "out.jsonl"
    with serving(lambda body: ["a wrong one"]) as server:
        words = ["sample", "tiny", "--data", data, "--out", out, "--endpoint", server.url, "--k", 1, "--batch-size", 2]
        server.script = ["ok", "ok", *[500] * 1000]
        assert run(*words, "--concurrency", 1)[0] == 2
        server.script, before = [], len(server.chats())
        assert run(*words)[0] == 0
        assert len(server.chats()) - before == 4
    assert [line["negatives"] for line in lines(out)] == [["a wrong one"]] * 6


def test_filter_by_text(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    code, printed, err = run("filter", data, "--out", out, "--length-gap", "0.4")
    assert code == 0, err
    assert "3 of 6 rows have a negative left" in printed or "rows have a negative left" in printed
    kept = {line["rejected"] for line in lines(out)}
    assert kept == {row["rejected"] for row in disc_data.records(6) if "stock" in row["rejected"]}


def test_a_run_with_a_floor_gives_weights(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: m}\ndata: {train: d}\nstage2: {cooling: {floor: -2.0, temperature: 0.5}}\n"
    )
    recipe = _recipe_of_run(tmp_path)
    assert recipe is not None
    weigh = weigh_as(recipe)
    assert weigh is not None
    assert weigh(-3.0) == pytest.approx(1 / (1 + math.exp(2)))
    assert _recipe_of_run(tmp_path / "none") is None


def test_filter_by_a_model(run: Run, data: Path, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    out = tmp_path / "out.jsonl"
    code, printed, err = run(
        "filter", data, "--out", out, "--drop-easier-than", "quantile:0.5", "--model", tiny("llava")
    )
    assert code == 0, err
    assert "3 of 6 rows have a negative left" in printed
    assert "3 too_easy" in err
    for line in lines(out):
        assert len(line["lbar"]) == len(line["ches"]) == 1
        assert line["lbar"][0] < 0
    assert all("w_c" not in line for line in lines(out))  # a checkpoint has no floor
    assert run("filter", data, "--out", tmp_path / "x", "--drop-easier-than", "-3")[0] == 2
    assert run("filter", data, "--out", tmp_path / "x", "--drop-easier-than", "much", "--model", "m")[0] == 2
