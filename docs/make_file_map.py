"""Write docs/files.md: one line for each file of the package, from its own docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cwdpo"
PAGE = ROOT / "docs" / "files.md"


def render() -> str:
    """The page's text: a section a folder, a line a file."""
    lines = ["# File map", "", "Made by `make docs` from the first line of each file's docstring.", ""]
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        lines += [f"## {folder.relative_to(PACKAGE.parent)}", "", "| file | subject |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            subject = first_line(path)
            if subject:
                lines.append(f"| `{path.name}` | {subject} |")
        lines.append("")
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without what would break a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
