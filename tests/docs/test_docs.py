"""What the documents name exists."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from cwdpo.diagnosis.signs import SIGNS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def named(pattern: str) -> list[tuple[str, str]]:
    return [(page.name, match) for page in PAGES for match in sorted(set(re.findall(pattern, page.read_text())))]


def test_the_index_lists_every_decision() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^- \[(.+)\]\((\w+\.md)\)$", (folder / "README.md").read_text(), re.MULTILINE)
    titles = {(page.read_text().partition("\n")[0].removeprefix("# "), page.name) for page in folder.glob("*.md")}
    assert {*listed} == {title for title in titles if title[1] != "README.md"}


@pytest.mark.parametrize(("page", "name"), named(r"`(tests/[\w/]+\.py::\w+)`"))
def test_named_tests_exist(page: str, name: str) -> None:
    path, function = name.split("::")
    tree = ast.parse((ROOT / path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{page}: {name}"


@pytest.mark.parametrize(("page", "name"), named(r"`(cwdpo(?:\.\w+)+)`"))
def test_named_functions_exist(page: str, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute) or import_module(name), f"{page}: {name}"


@pytest.mark.parametrize("name", [sign.name for sign in SIGNS])
def test_every_sign_has_its_section(name: str) -> None:
    section = (ROOT / "docs" / "diagnosis.md").read_text().partition(f"\n### {name}\n")[2].partition("\n##")[0]
    assert all(f"**{word}" in section for word in ("Means", "See", "Do")), section


LINKS = [
    (str(page.relative_to(ROOT)), target)
    for page in PAGES
    for target in sorted(set(re.findall(r"\]\((?!https?://|#)([^)]+)\)", page.read_text())))
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_to_files_exist(page: str, target: str) -> None:
    assert ((ROOT / page).parent / target.split("#")[0]).exists(), f"{page}: {target}"
