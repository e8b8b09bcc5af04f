"""The site: its pages exist, and what is written by a program is up to date."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def script(name: str) -> Any:
    """A program of docs/, which is no package."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_memory_table_is_up_to_date() -> None:
    text = (ROOT / "docs" / "gpus.md").read_text("utf-8")
    assert script("make_memory").with_table(text) == text, "write it again: python docs/make_memory.py"


def test_the_memory_table_by_hand() -> None:
    """QLoRA of 3B, gigabytes: weights, adapters with gradients and moments, activations, logits."""
    memory = 3.75e9 / 2 + 37.5e6 * 2 * 4 + 2 * 1024 * 2048 * 2 * (36 + 17) + 3 * 1024 * 151_936 * 4
    line = next(line for line in script("make_memory").table().splitlines() if line.startswith("| 3B"))
    assert line.split("|")[4].strip() == f"{memory / 1e9:.0f}"


def pages(nav: list[dict[str, Any]]) -> list[str]:
    found = [value for entry in nav for value in entry.values()]
    return [page for value in found for page in ([value] if isinstance(value, str) else pages(value))]


def test_every_page_is_in_the_site_once() -> None:
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
