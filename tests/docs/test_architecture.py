"""What docs/architecture.md says of the code is so."""

import re
import tomllib
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import cwdpo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PARTS = {path.stem for path in Path(cwdpo.__file__).parent.iterdir()}
NAMES = [name for name in re.findall(r"`([a-z]\w*(?:[./]\w+)*)`", PAGE) if re.split("[./]", name)[0] in PARTS]
NAMES = sorted({name for name in NAMES if not name.endswith(".jsonl")})


def found(inside: object, name: str) -> object:
    """A module of a package, or what a module or a class has."""
    if isinstance(inside, ModuleType) and not hasattr(inside, name):
        return import_module(f"{inside.__name__}.{name}")
    return getattr(inside, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_package_exists(name: str) -> None:
    reduce(found, re.split("[./]", name), cwdpo)


def test_the_layers_are_those_that_are_checked() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [set(each.split(" | ")) for each in linter["contracts"][0]["layers"]]
    table = PAGE.partition("| layer | ")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    names = [name for row in rows for name in row]
    depth = {name: place for place, layer in enumerate(layers) for name in layer}
    assert {*names} == depth.keys() - {"__main__"}
    assert [depth[name] for name in names] == sorted(depth[name] for name in names)
