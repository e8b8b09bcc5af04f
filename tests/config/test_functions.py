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


def test_a_module_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules_of_taste.py").write_text("def taste(): return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_function("my_rules_of_taste:taste", setting="judge", advice="")() == 7
