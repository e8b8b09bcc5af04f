"""What a preflight found, as plain data."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Notice:
    """One thing that was noticed about a row or a file."""

    source: str
    """``file:line``."""

    name: str
    """Stops training: ``unreadable_file``, ``unusable_row``, ``too_long``; of a recipe also ``missing_answer`` and
    ``settings``. Does not: ``duplicate``, ``contradiction``, ``identical_answers``, ``gentle_is_chosen``,
    ``no_rejected``, ``split_tokens``, ``unknown_tokens``, ``unread_column``."""

    message: str
    """What was found, beginning with the source, and what to do."""


@dataclass(frozen=True)
class RowReport:
    """What one row holds. Token counts are None where no processor was given."""

    source: str
    format: str
    num_images: int
    num_rejected: int
    has_gentle: bool
    text_tokens: int | None = None
    """Tokens of the prompt that are not of an image."""

    image_tokens: int | None = None
    """Tokens of the prompt that stand for images."""

    chosen_tokens: int | None = None
    rejected_tokens: tuple[int, ...] | None = None
    gentle_tokens: int | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the prompt with its longest answer."""
        if self.text_tokens is None or self.image_tokens is None:
            return None
        answers = (self.chosen_tokens, self.gentle_tokens, *(self.rejected_tokens or ()))
        return self.text_tokens + self.image_tokens + max(count for count in answers if count is not None)


@dataclass
class CheckReport:
    """All that is to say of a data file."""

    path: str
    num_records: int = 0
    """Records seen, usable or not."""

    rows: list[RowReport] = field(default_factory=list)
    """Rows that could be read."""

    findings: list[Notice] = field(default_factory=list)
    """What stops training: exactly what it would stop at."""

    notes: list[Notice] = field(default_factory=list)
    """What does not, but should be known."""

    @property
    def ok(self) -> bool:
        """Whether training may begin."""
        return not self.findings

    def summary(self) -> dict[str, Any]:
        """Counts over the file, for a table; token counts are of the prompt with its longest answer."""
        tokens = [row.longest for row in self.rows if row.longest is not None]
        return {
            "records": self.num_records,
            "rows": len(self.rows),
            "formats": dict(Counter(row.format for row in self.rows)),
            "images": sum(row.num_images for row in self.rows),
            "with_images": sum(row.num_images > 0 for row in self.rows),
            "with_rejected": sum(row.num_rejected > 0 for row in self.rows),
            "with_gentle": sum(row.has_gentle for row in self.rows),
            "tokens": {"max": max(tokens), "mean": sum(tokens) / len(tokens)} if tokens else None,
            "findings": dict(Counter(finding.name for finding in self.findings)),
            "notes": dict(Counter(note.name for note in self.notes)),
        }

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain lists and dicts."""
        return {"ok": self.ok, "summary": self.summary(), **asdict(self)}
