"""Mixing of whole files: every row's negatives are chosen from the data set's and the policy's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cwdpo.config.fractions import Fraction
from cwdpo.data.parsing import read_records
from cwdpo.errors import DataError
from cwdpo.negatives.columns import with_negatives
from cwdpo.negatives.files import json_line, refuse_existing, row_ids, rows_with_records
from cwdpo.negatives.filtering import normalised
from cwdpo.negatives.mixing import MixedNegative, fraction_at, mix_negatives
from cwdpo.negatives.right_answers import RightAnswers
from cwdpo.records.files import write_text


@dataclass
class Mixed:
    """What was chosen from where."""

    rows: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    without_samples: int = 0
    unused_ids: tuple[str, ...] = ()
    """Ids of samples that no row has."""

    def count(self, chosen: Sequence[MixedNegative], sampled: Sequence[str]) -> None:
        """Take one row into account."""
        self.rows += 1
        self.sources.update(negative.source for negative in chosen)
        self.without_samples += not sampled


def write_mixed(
    data: Path,
    on_policy: Path,
    out: Path,
    *,
    fraction: Fraction,
    seed: int = 0,
    round: int = 0,
    progress: float = 0.0,
    count: int | None = None,
    image_root: Path | None = None,
) -> Mixed:
    """Choose every row's negatives from the data set's and the policy's.

    Rows come out with ``rejected`` (and ``negatives`` from the second on) chosen by
    :func:`cwdpo.negatives.mixing.mix_negatives`, and ``negative_sources`` beside them.

    Args:
        data: rows with ids, or else named by their number in the file, from 0.
        on_policy: JSON lines of ``{"id": ..., "negatives": [...]}``; an id may come more than once.
        progress: where in the run a schedule is read, from 0 to 1; the others are as there.

    Raises:
        DataError: a row or a sample that cannot be read, two rows of one
            name, or a row that ends up without a negative.
    """
    refuse_existing(out)
    share, samples, mixed, lines = fraction_at(fraction, progress), _read_samples(on_policy), Mixed(), []
    rows = list(rows_with_records(data, image_root))
    names, right_answers = row_ids([row for _, row in rows]), RightAnswers(row for _, row in rows)
    for row_id, (record, row) in zip(names, rows, strict=True):
        right = {normalised(text) for text in right_answers(row)}
        sampled = [text for text in samples.get(row_id, []) if normalised(text) not in right]
        chosen = mix_negatives(
            row.rejected, sampled, fraction=share, seed=seed, row_id=row_id, round=round, count=count
        )
        if not chosen:
            raise DataError(f"{row.source}: the row has no negative of either kind. Add `rejected`, or samples.")
        mixed.count(chosen, sampled)
        sources = {"negative_sources": [negative.source for negative in chosen]}
        with_new = with_negatives(record, [negative.text for negative in chosen])
        lines.append(json_line(with_new | sources, row.source))
    used = set(names)
    mixed.unused_ids = tuple(row_id for row_id in samples if row_id not in used)
    write_text(out, "".join(lines))
    return mixed


def _read_samples(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record, source in read_records(path):
        if isinstance(record, DataError):
            raise record
        row_id, texts = record.get("id"), record.get("negatives")
        if row_id is None or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f'{source}: a line of samples must be {{"id": "row-1", "negatives": ["...", "..."]}}.')
        found.setdefault(str(row_id), []).extend(texts)
    return found
