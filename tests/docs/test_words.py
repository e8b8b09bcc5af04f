"""Phrases that we replace. `docs/words.txt` does the same for single words, through `make words`."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COVERED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "examples", "src", "recipes", "tools", "benchmarks")
"""Files and folders that are searched."""

SUFFIXES = {".md", ".py", ".yaml", ".j2", ".js"}

PHRASES = {
    "for ever": "forever",
    "is no run": "is not a run",
    "is no number": "is not a number",
    "is no url": "is not a URL",
    "is no json": "is not JSON",
    "is no directory": "is not a directory",
    "is no file": "is not a file",
    "is no finding": "is not a finding",
    "are no images": "are not images",
    "of like length": "of similar length",
    "upright lines": "vertical lines",
    "ranked rightly": "reward accuracy",
    "for want of": "not enough, without",
    "the model itself say": "prediction, the model's own answer",
    "the model itself said": "the model's own answer",
    "a coin's": "at chance",
    "mind the axes": "the axes differ",
    "whose turn it is": "that come next",
}


def files() -> list[Path]:
    paths = [ROOT / name for name in COVERED]
    return sorted(
        path
        for top in paths
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.suffix in SUFFIXES and not {"data", "base", "runs"} & {*path.relative_to(ROOT).parts}
    )


def hits(text: str) -> list[tuple[int, str]]:
    """Line and phrase of each place, also where a phrase goes over the end of a line, a comment's `#` included.

    "There is no run" is fine: what is meant is "this is no run".
    """
    return [
        (text.count("\n", 0, found.start()) + 1, phrase)
        for phrase in PHRASES
        for found in re.finditer(
            r"(?<!there )" + r"[\s#]+".join(rf"\b{re.escape(word)}" for word in phrase.split()) + r"\b", text, re.I
        )
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_phrases_are_plain(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: '{phrase}'; write: {PHRASES[phrase]}"
        for line, phrase in sorted(hits(path.read_text("utf-8")))
    ]
    assert not found, "\n" + "\n".join(found)


def test_a_phrase_is_found_over_the_end_of_a_line() -> None:
    assert hits("one\ntwo For\n    # ever") == [(2, "for ever")]
    assert hits("forever, for everyone") == []
