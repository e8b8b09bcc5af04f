"""A key is in nothing that a run leaves or says, whatever the server repeats of it."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import serving

from cwdpo.cli import app

KEY = "sk-geheim-0123456789"
Train = Callable[..., tuple[int, str]]


@pytest.mark.slow
def test_a_server_that_repeats_its_headers(
    train: Train, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG, logger="cwdpo")

    def echo(body: dict[str, Any]) -> list[str]:
        return [f"answer {i}: {json.dumps(state.headers[-1])}" for i in range(body["n"])]

    with serving(echo) as state:
        state.complaint = f"no, {KEY}"
        state.script = ["ok", 500, 401]  # the adapter is loaded, then trouble, then a refusal: the run goes on
        code, err = train(
            stage1=None,
            model={"name_or_path": str(tiny("llava")), "lora": {"r": 2}},
            negatives={"endpoint": state.url, "k": 2, "refresh": 1, "on_policy_fraction": 1.0, "max_new_tokens": 400},
            trainer={"max_steps": 3, "save_strategy": "steps", "save_steps": 1},
        )
        assert state.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert code == 0, err
    out = [err, caplog.text]
    for words in (["diagnose", tmp_path / "run"], ["report", tmp_path / "run", "--out", tmp_path / "page.html"]):
        monkeypatch.setattr(sys, "argv", ["cwdpo", *map(str, words)])
        with pytest.raises(SystemExit):
            app.main()
        out.append("".join(capsys.readouterr()))
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("Bearer <secret>" in path.read_text() for path in left if path.name.startswith("refresh-"))
    assert [path for path in left if b"geheim" in path.read_bytes()] == []
    assert "geheim" not in "".join(out)


@pytest.mark.parametrize("setting", ["negatives.endpoint", "negatives.judge"])
def test_a_password_in_a_url_stops_the_run_unsaid(train: Train, tmp_path: Path, setting: str) -> None:
    code, err = train(f"--{setting}", "http://me:geheim@127.0.0.1:9/v1", negatives={})
    assert code == 2
    assert "Put the key into OPENAI_API_KEY" in err
    assert "geheim" not in err
    assert not (tmp_path / "run").exists()


def test_a_token_in_the_recipe_stops_the_run_unsaid(train: Train) -> None:
    code, err = train(trainer={"hub_token": "hf_geheim"})
    assert code == 2
    assert "Put it into HF_TOKEN." in err
    assert "geheim" not in err
