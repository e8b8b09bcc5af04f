"""Rows that are there more than once, and names that two rows share: one hash a row, so that a million are cheap."""

import os
from collections.abc import Iterable, Iterator

import xxhash

from cwdpo.data.images import image_identity
from cwdpo.data.rows import Row


def hash_of(*values: str | bytes) -> bytes:
    """Of one text, or of hashes, which have one length, so that two lists of them are never the same bytes."""
    return xxhash.xxh3_128_digest(
        b"".join([v if isinstance(v, bytes) else v.encode("utf-8", "surrogatepass") for v in values])
    )


def prompt_hash(row: Row) -> bytes:
    """Equal for rows with the same prompt and images; image files are compared by their path."""
    turns = [
        (turn.role, [p if isinstance(p, str) else None for p in turn.parts], turn.reasoning) for turn in row.prompt
    ]
    digest = xxhash.xxh3_128(repr((turns, row.template_kwargs)).encode("utf-8", "surrogatepass"))
    for image in row.images:
        digest.update(os.fsencode(image_identity(image, source=row.source)))
    return digest.digest()


def row_hash(row: Row, prompt: bytes | None = None) -> bytes:
    """Equal for rows with the same prompt, images and answers, whatever their names.

    ``prompt`` is the row's :func:`prompt_hash`, for who has it already: it reads the images.
    """
    gentle = bytes(16) if row.gentle is None else hash_of(row.gentle)
    return hash_of(prompt or prompt_hash(row), gentle, hash_of(row.chosen), *map(hash_of, row.rejected))


def rows_also_in(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Those of ``rows`` that are also in ``others``, with the same prompt, images and answers.

    Images are looked at only where all texts are the same, as those inside tables are read from disk.
    """
    rows = list(rows)
    texts = {_texts(row) for row in rows}
    found = {row_hash(other) for other in others if _texts(other) in texts}
    return [row for row in rows if row_hash(row) in found] if found else []


def repeated_between_files(rows: Iterable[Row]) -> list[Row]:
    """Rows that an earlier file has too, or that file itself where it is named twice.

    Example:
        >>> twice = [Row((), "yes", source=source) for source in ("a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "a.jsonl:1")]
        >>> [row.source for row in repeated_between_files(twice)]
        ['b.jsonl:1', 'a.jsonl:1']
    """
    firsts: dict[int, Row] = {}
    found = []
    for row in rows:
        first = firsts.setdefault(_texts(row), row)
        elsewhere = row.source == first.source or _file_of(row) != _file_of(first)
        if first is not row and elsewhere and row_hash(first) == row_hash(row):
            found.append(row)
    return found


def _file_of(row: Row) -> str:
    return row.source.rpartition(":")[0]


def _texts(row: Row) -> int:
    return hash((row.prompt, row.chosen, row.rejected, row.gentle))


def sharing_ids(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows that have the ``id`` of an earlier row and other content, each with the first row of that id.

    Example:
        >>> one, two = Row((), "yes", id="a", source="d.jsonl:1"), Row((), "no", id="a", source="d.jsonl:2")
        >>> [(row.source, first.source) for row, first in sharing_ids([one, two])]
        [('d.jsonl:2', 'd.jsonl:1')]
    """
    firsts: dict[str, Row] = {}
    for row in rows:
        if row.id:
            first = firsts.setdefault(row.id, row)
            if first is not row and row_hash(first) != row_hash(row):
                yield row, first


def has_two_answers(row: Row) -> bool:
    """Whether any rejected answer differs from the chosen one by more than white space at its ends."""
    return any(answer.strip() != row.chosen.strip() for answer in row.rejected)
