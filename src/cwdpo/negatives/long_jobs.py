"""Negatives of whole files that a model or a server makes; what is done survives an interruption."""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.generation import Generated, Sampler, Sampling, chunks
from cwdpo.negatives.files import json_line, refuse_existing, row_ids, rows_with_records, with_gentle
from cwdpo.negatives.filtering import Rules, filter_negatives
from cwdpo.negatives.gentle import GentleNegative
from cwdpo.negatives.gentle.server import Asked, ask_gentle
from cwdpo.negatives.mixing import hashed
from cwdpo.negatives.server import Endpoint
from cwdpo.negatives.verify import Judge, RightAnswers, verify
from cwdpo.records import append_jsonl, read_jsonl, write_text

_BLOCK = 2**20


class Unfinished:
    """Results by row number in ``OUT.partial``, until the output can be written whole."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Take up what an earlier call left.

        Args:
            out: the file to be.
            settings: what the results follow from, JSON types only; another call must have the same.

        Raises:
            UserError: the earlier call was another one.
        """
        self.path = out.with_name(f"{out.name}.partial")
        self.done: dict[int, dict[str, Any]] = {}
        lines = read_jsonl(self.path).objects
        if not lines:
            append_jsonl(self.path, [{"settings": settings}])
        elif lines[0].get("settings") != settings:
            raise UserError(
                f"{self.path}: was left by a call with other settings or other data. Repeat that call to finish it, or "
                "delete the file to begin anew."
            )
        for line in lines[1:]:
            if isinstance(line.get("number"), int):
                self.done[line["number"]] = line["result"]

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Keep one row's result, at once on disk."""
        self.done[number] = dict(result)
        append_jsonl(self.path, [{"number": number, "result": result}])

    def close(self) -> None:
        """Forget it, once the output is written."""
        self.path.unlink(missing_ok=True)


def what_was_read(data: Path, image_root: Path | None) -> dict[str, Any]:
    """What tells a data set from one with other rows or pictures under the same name: a hash of its content."""
    content = xxhash.xxh3_128()
    for file in sorted(path for path in data.rglob("*") if path.is_file()) if data.is_dir() else [data]:
        content.update(str(file.relative_to(data)).encode("utf-8", "surrogateescape"))
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                content.update(block)
    return {"data": content.hexdigest(), "image_root": str(resolve_root(data, image_root).resolve())}


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
    """Give every row of a file a gentle negative from a server (:func:`cwdpo.negatives.gentle.server.ask_gentle`).

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
    settings = {"what": "gentle", "model": endpoint.model, "seed": seed, **what_was_read(data, image_root)}
    work = Unfinished(out, settings)
    left = [number for number in range(len(rows)) if number not in work.done]

    def ask(number: int) -> Asked:
        return ask_gentle(endpoint, rows[number][1], seed=hashed(seed, "asked", number) % 2**31)

    for place, asked in endpoint.map(ask, left):
        if asked is not None:
            work.add(left[place], asdict(asked))
        progress(len(work.done), len(rows))
    _refuse_unanswered(work, len(rows))
    right_answers = RightAnswers(row for _, row in rows)
    made = [_checked(Asked(**work.done[number]), right_answers(row)) for number, (_, row) in enumerate(rows)]
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
    verified_by: Mapping[str, Any],
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
        verified_by: what else their verification follows from, such as the judge's name; where it has changed, samples
            that are kept are verified anew.
        rules: of :func:`cwdpo.negatives.verify.verify`.
        judge: likewise. Where it fails, the samples are kept for the next call.
        seed: of all samples.
        image_root: as in :func:`cwdpo.data.reading.read_rows`.
        progress: told after each portion.

    Returns:
        How many samples were kept, and how many dropped, by reason.

    Raises:
        UserError: the judge failed, or two rows have one id.
    """
    refuse_existing(out)
    rows = [row for _, row in rows_with_records(data, image_root)]
    names, right_answers = row_ids(rows), RightAnswers(rows)
    settings = {"what": "sample", "seed": seed, **asdict(sampling), **what_was_read(data, image_root)}
    work = Unfinished(out, settings | dict(made_by))
    for place, portion in enumerate(chunks(range(len(rows)), sampling)):
        asked = [rows[number] for number in portion]
        if any(number not in work.done for number in portion):
            sampled = sampler.sample(asked, seed=hashed(seed, "sampling", place) % 2**63)
            for number, answers in zip(portion, sampled, strict=True):
                work.add(number, {"answers": [[answer.text, answer.ended] for answer in answers]})
        if any(work.done[number].get("verified_by") != dict(verified_by) for number in portion):
            found = [[Generated(*answer) for answer in work.done[number]["answers"]] for number in portion]
            reasons = _verified(asked, found, right_answers, rules, judge, work)
            for number, whys in zip(portion, reasons, strict=True):
                work.add(number, work.done[number] | {"reasons": whys, "verified_by": verified_by})
        progress(min(portion[-1] + 1, len(rows)), len(rows))
    counts = _write_verified(out, rows, names, work)
    work.close()
    return counts


def _write_verified(out: Path, rows: Sequence[Row], names: Sequence[str], work: Unfinished) -> Counter[str]:
    """A line a row, and how many samples were kept and dropped."""
    counts: Counter[str] = Counter()
    lines = []
    for number, row in enumerate(rows):
        done = work.done[number]
        told = [(text, why) for (text, _), why in zip(done["answers"], done["reasons"], strict=True)]
        counts.update(why or "kept" for _, why in told)
        lines.append(json_line(_sample_line(names[number], told), row.source))
    write_text(out, "".join(lines))
    return counts


def _verified(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Generated]],
    right_answers: RightAnswers,
    rules: Rules | None,
    judge: Judge | None,
    work: Unfinished,
) -> list[list[str | None]]:
    """See :func:`verify`; a judge is the user's own code, and its mistakes are told as such."""
    if judge is None:
        return verify(rows, answers, right_answers=right_answers, rules=rules)
    try:
        return verify(rows, answers, right_answers=right_answers, rules=rules, judge=judge)
    except UserError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"the judge failed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno}). Mend it "
            f"and run the same command again; what was sampled is kept in {work.path}."
        ) from error


def _checked(asked: Asked, right: Sequence[str]) -> Asked:
    """A reply that is no right answer of another row either."""
    if asked.negative is None:
        return asked
    dropped = filter_negatives(right, [asked.negative], Rules()).dropped
    return Asked(reason=dropped[0][1]) if dropped else asked


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
