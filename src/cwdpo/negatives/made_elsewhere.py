"""Negatives of whole files that a model or a server makes; what is done survives an interruption."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cwdpo.errors import UserError
from cwdpo.negatives.asking import Asked, ask_gentle
from cwdpo.negatives.columns import with_gentle
from cwdpo.negatives.endpoint import Endpoint
from cwdpo.negatives.files import json_line, refuse_existing, rows_with_records
from cwdpo.negatives.filtering import Rules
from cwdpo.negatives.gentle import GentleNegative
from cwdpo.negatives.mixing import hashed
from cwdpo.negatives.sampling import Sampler, Sampling, chunks
from cwdpo.negatives.unfinished import Unfinished
from cwdpo.negatives.verify import Judge, RightAnswers, verify
from cwdpo.records.files import write_text

Progress = Callable[[int, int], None]
"""Told how many rows are done, and of how many."""


def write_asked(
    data: Path,
    out: Path,
    endpoint: Endpoint,
    *,
    seed: int = 0,
    image_root: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Counter[str]:
    """Give every row of a file a gentle negative from a server, as :func:`cwdpo.negatives.asking.ask_gentle` asks it.

    Every reply is kept in ``OUT.partial`` as it comes, and never paid for twice; ``OUT`` is written at the end.

    Args:
        data: a file of rows, in any format that is read here.
        out: JSON lines; must not be there yet.
        endpoint: the server.
        seed: sent with each request.
        image_root: as in :func:`cwdpo.data.reading.read_rows`.
        progress: told after each reply.

    Returns:
        How many rows got one (``made``), and how many not, by reason.

    Raises:
        UserError: some rows have no reply yet; the same call goes on with them.
    """
    refuse_existing(out)
    rows = list(rows_with_records(data, image_root))
    settings = {"what": "gentle", "data": str(data.resolve()), "model": endpoint.model, "seed": seed, "rows": len(rows)}
    work = Unfinished(out, settings)
    left = [number for number in range(len(rows)) if number not in work.done]

    def ask(number: int) -> Asked:
        return ask_gentle(endpoint, rows[number][1], seed=hashed(seed, "asked", number) % 2**31)

    for place, asked in endpoint.map(ask, left):
        if asked is not None:
            work.add(left[place], asdict(asked))
        progress(len(work.done), len(rows))
    _refuse_unanswered(work, len(rows))
    made = [Asked(**work.done[number]) for number in range(len(rows))]
    lines = [
        json_line(with_gentle(record, _as_edit(row.chosen, asked)), row.source)
        for (record, row), asked in zip(rows, made, strict=True)
    ]
    write_text(out, "".join(lines))
    work.close()
    return Counter(asked.reason or "made" for asked in made)


def write_samples(
    data: Path,
    out: Path,
    sampler: Sampler,
    sampling: Sampling,
    *,
    made_by: Mapping[str, Any],
    rules: Rules | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    image_root: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Counter[str]:
    """Sample negatives for every row of a file, and verify them.

    ``OUT`` gets a line a row, ``{"id", "negatives", "dropped"}``, which ``cwdpo negatives mix`` reads; rows without an
    id are named by their number, from 0. What is sampled is kept in ``OUT.partial`` until then.

    Args:
        data: a file of rows, in any format that is read here.
        out: JSON lines; must not be there yet.
        sampler: a model or a server.
        sampling: the sampler's settings.
        made_by: what else the samples follow from, such as the model; an interrupted call is only gone on with where it
            is the same.
        rules: of :func:`cwdpo.negatives.verify.verify`.
        judge: likewise.
        seed: of all samples.
        image_root: as in :func:`cwdpo.data.reading.read_rows`.
        progress: told after each portion.

    Returns:
        How many samples were kept, and how many dropped, by reason.
    """
    refuse_existing(out)
    rows = [row for _, row in rows_with_records(data, image_root)]
    right_answers = RightAnswers(rows)
    settings = {"what": "sample", "data": str(data.resolve()), "seed": seed, "rows": len(rows), **asdict(sampling)}
    work = Unfinished(out, settings | dict(made_by))
    counts: Counter[str] = Counter()
    for place, portion in enumerate(chunks(range(len(rows)), sampling)):
        if any(number not in work.done for number in portion):
            asked = [rows[number] for number in portion]
            answers = sampler.sample(asked, seed=hashed(seed, "sampling", place) % 2**63)
            reasons = verify(asked, answers, right_answers=right_answers, rules=rules, judge=judge)
            for number, of_row, whys in zip(portion, answers, reasons, strict=True):
                found = [(answer.text, why) for answer, why in zip(of_row, whys, strict=True)]
                work.add(number, {"found": found})
        progress(min(portion[-1] + 1, len(rows)), len(rows))
    lines = []
    for number, row in enumerate(rows):
        found = work.done[number]["found"]
        counts.update(why or "kept" for _, why in found)
        lines.append(json_line(_sample_line(row.id or str(number), found), row.source))
    write_text(out, "".join(lines))
    work.close()
    return counts


def _sample_line(row_id: str, found: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    dropped = [{"text": text, "reason": why} for text, why in found if why is not None]
    return {"id": row_id, "negatives": [text for text, why in found if why is None], "dropped": dropped}


def _as_edit(right: str, asked: Asked) -> GentleNegative | None:
    """The reply with the span that differs: what is left between the longest common beginning and end."""
    if asked.negative is None:
        return None
    wrong, shorter = asked.negative, min(len(right), len(asked.negative))
    start = next((i for i in range(shorter) if right[i] != wrong[i]), shorter)
    end = next((i for i in range(shorter - start) if right[-1 - i] != wrong[-1 - i]), shorter - start)
    return GentleNegative(wrong, asked.kind or "other", (((start, len(right) - end), (start, len(wrong) - end)),))


def _refuse_unanswered(work: Unfinished, total: int) -> None:
    missing = total - len(work.done)
    if missing:
        raise UserError(
            f"{missing} of {total} rows have no reply; the others are kept in {work.path}. Run the same command again "
            "to ask for the missing ones."
        )
