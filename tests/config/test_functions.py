"""Functions that settings name."""

import sys
from pathlib import Path

import pytest

from cwdpo.config.functions import load_function
from cwdpo.errors import ConfigError


@pytest.mark.parametrize("name", ["nowhere:f", "json:nothing", "json", ":x", "..x:y"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"measure is {name}, which cannot be imported.*Write module:function"):
        load_function(name, setting="measure", advice="Write module:function.")


def test_what_fails_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_rules.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported \(division by zero"):
        load_function("my_broken_rules:f", setting="judge", advice="")


def test_what_is_no_function() -> None:
    with pytest.raises(ConfigError, match="make is json:__doc__, which is a str and not a function"):
        load_function("json:__doc__", setting="make", advice="")


@pytest.mark.parametrize(
    ("name", "called", "said"),
    [
        ("rules.py:better", "", "judge is rules.py:better, a file. Write rules:better."),
        (
            "my/rules.py",
            "",
            "judge is my/rules.py, a file. Write rules:FUNCTION, and put its directory in PYTH",
        ),
        (
            "bisect:bisect",
            "a",
            "judge is bisect:bisect, which is called as bisect(a): missing a required argument:",
        ),
        ("json:dumps", "a, b", "judge is json:dumps, which is called as dumps(a, b): too many positional arguments."),
        ("json:loads", "a, b=", None),
        ("fnmatch:fnmatch", "a, b=", "judge is fnmatch:fnmatch, which is called as fnmatch(a, b=...): missing a"),
    ],
)
def test_a_function_is_called_in_one_way(name: str, called: str, said: str | None) -> None:
    if said is None:
        assert callable(load_function(name, setting="judge", advice="", called=called))
        return
    with pytest.raises(ConfigError) as caught:
        load_function(name, setting="judge", advice="", called=called)
    assert str(caught.value).startswith(said)


def test_a_module_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules_of_taste.py").write_text("def taste(): return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_function("my_rules_of_taste:taste", setting="judge", advice="")() == 7
