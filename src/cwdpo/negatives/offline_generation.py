"""Negatives of whole files from a model or a server; what is done survives an interruption.

``data``, ``out`` and ``image_root`` as in :mod:`cwdpo.negatives.files`.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.generation import Generated, Sampler, Sampling, chunks
from cwdpo.negatives.files import check_new_rows, json_line, row_ids, rows_with_records, what_was_read, with_gentle
from cwdpo.negatives.filtering import RightAnswers, Rules, filter_negatives, ngram_overlap
from cwdpo.negatives.gentle import GentleNegative
from cwdpo.negatives.mixing import hashed
from cwdpo.negatives.server import Endpoint, messages_of, parse_json, text_message
from cwdpo.negatives.verify import Judge, verify
from cwdpo.records import append_jsonl, read_jsonl, write_text

PROMPT = """\
The assistant's answer above is right. Write a wrong answer that differs from it in ONE small detail and in nothing \
else: another object, attribute (colour, size, material, age), count, spatial relation, action, order, yes/no, number \
or unit. The detail must be checkable in the image (or, without an image, from the question), and must be wrong there. \
Keep every other word, the length, the style and the punctuation. The wrong answer must read as naturally as the right \
one. Do not negate the whole sentence, do not hedge, and do not explain.
Answer in JSON: {"kind": what you changed, "from": the words that you replaced, "to": the words that you put there, \
"negative": the whole wrong answer}."""
"""What the server is asked, after the conversation with its right answer."""

KINDS = ("object", "attribute", "count", "relation", "action", "order", "yes_no", "number", "other")
_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": _TEXT | {"enum": list(KINDS)}, "from": _TEXT, "to": _TEXT, "negative": _TEXT},
    "required": ["kind", "from", "to", "negative"],
    "additionalProperties": False,
}

LEAST_OVERLAP = 0.3
"""An n-gram overlap with the right answer below this is not a minor error, unless the answer has only a few words."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one row: a negative, or the reason why there is none."""

    negative: str | None = None
    kind: str | None = None
    reason: str | None = None
    """``malformed``, ``not_minor`` or one of :func:`cwdpo.negatives.filtering.filter_negatives`'s."""


Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many rows are done, and of how many."""


def write_asked(
    data: Path,
    out: Path,
    endpoint: Endpoint,
    *,
    seed: int = 0,
    image_root: GivenRoots = None,
    progress: Progress = lambda done, total: None,
) -> Counter[str]:
    """Give every row of a file a gentle negative from a server; how many got one (``made``), or not, by reason.

    Every reply is kept in ``OUT.partial`` as it comes, and never paid for twice; ``OUT`` is written at the end.
    """
    check_new_rows(out)
    rows = list(rows_with_records(data, image_root))
    settings = {"what": "gentle", "model": endpoint.model, "seed": seed, **what_was_read(data, image_root)}
    work = Unfinished(out, settings)
    left = [number for number in range(len(rows)) if number not in work.done]

    def ask(number: int) -> Asked:
        return ask_gentle(endpoint, rows[number][1], seed=hashed(seed, "asked", number) % 2**31)

    for place, reply in endpoint.map(ask, left):
        if reply is not None:
            work.add(left[place], asdict(reply))
        progress(len(work.done), len(rows))
    missing = len(rows) - len(work.done)
    if missing:
        raise UserError(
            f"{missing} of {len(rows)} rows have no reply; the others are kept in {work.path}. Run the same command "
            "again to ask for the missing ones."
        )
    right_answers, counts, lines = RightAnswers(row for _, row in rows), Counter[str](), []
    for number, (record, row) in enumerate(rows):
        asked = Asked(**work.done[number])
        made, reason = None, asked.reason
        if asked.negative is not None:  # it may be right for another row of the prompt
            (reason,) = filter_negatives(right_answers(row), [asked.negative], Rules())
            made = _as_edit(row.chosen, asked.negative, asked.kind or "other") if reason is None else None
        counts[reason or "made"] += 1
        lines.append(json_line(with_gentle(record, made), row.source))
    write_text(out, "".join(lines))
    work.close()
    return counts


def write_samples(
    data: Path,
    out: Path,
    sampler: Sampler,
    sampling: Sampling,
    *,
    made_by: Mapping[str, object],
    verified_by: Mapping[str, object],
    rules: Rules | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    image_root: GivenRoots = None,
    progress: Progress = lambda done, total: None,
) -> Counter[str]:
    """Sample negatives for every row of a file, and verify them; how many were kept, and how many dropped, by reason.

    ``OUT`` gets a line a row, ``{"id", "negatives", "dropped"}``, which ``cwdpo negatives mix`` reads; rows without an
    id are named by their number, from 0. What is sampled is kept in ``OUT.partial`` until then.

    Args:
        made_by: what else the samples follow from, such as the model; an interrupted call continues only where it is
            the same.
        verified_by: what else their verification follows from, such as the judge's name; where it has changed, samples
            that are kept are verified again.
        rules, judge: of :func:`cwdpo.negatives.verify.verify`. If the judge fails, the next call has the samples.
    """
    check_new_rows(out)
    rows = [row for _, row in rows_with_records(data, image_root)]
    names, right_answers = row_ids(rows), RightAnswers(rows)
    settings = {"what": "sample", "seed": seed, **asdict(sampling), **what_was_read(data, image_root)}
    work = Unfinished(out, settings | dict(made_by))
    for place, portion in enumerate(chunks(range(len(rows)), sampling)):
        of_portion = [rows[number] for number in portion]
        if any(number not in work.done for number in portion):
            sampled = sampler.sample(of_portion, seed=hashed(seed, "sampling", place) % 2**63)
            for number, answers in zip(portion, sampled, strict=True):
                work.add(number, {"answers": [[answer.text, answer.ended] for answer in answers]})
        if any(work.done[number].get("verified_by") != dict(verified_by) for number in portion):
            found = [[Generated(*answer) for answer in work.done[number]["answers"]] for number in portion]
            try:
                reasons = verify(of_portion, found, right_answers=right_answers, rules=rules, judge=judge)
            except Exception as error:
                if judge is None or isinstance(error, UserError):
                    raise
                raise _judge_failed(error, work.path) from error
            for number, whys in zip(portion, reasons, strict=True):
                work.add(number, work.done[number] | {"reasons": whys, "verified_by": verified_by})
        progress(min(portion[-1] + 1, len(rows)), len(rows))
    counts, lines = Counter[str](), []
    for number, row in enumerate(rows):
        done = work.done[number]
        samples = [(text, why) for (text, _), why in zip(done["answers"], done["reasons"], strict=True)]
        counts.update(why or "kept" for _, why in samples)
        dropped = [{"text": text, "reason": why} for text, why in samples if why is not None]
        kept = [text for text, why in samples if why is None]
        lines.append(json_line({"id": names[number], "negatives": kept, "dropped": dropped}, row.source))
    write_text(out, "".join(lines))
    work.close()
    return counts


class Unfinished:
    """Results by row number in ``OUT.partial``, until the output can be written whole."""

    def __init__(self, out: Path, settings: Mapping[str, object]) -> None:
        """Take up what an earlier call left; it must have had the same settings, of JSON types only."""
        self.path = out.with_name(f"{out.name}.partial")
        self.done: dict[int, dict[str, Any]] = {}
        lines = read_jsonl(self.path).objects
        if not lines:
            append_jsonl(self.path, [{"settings": settings}])
        elif lines[0].get("settings") != settings:
            raise UserError(
                f"{self.path}: was left by a call with other settings or other data. Repeat that call to finish it, or "
                "delete the file to start again."
            )
        for line in lines[1:]:
            if isinstance(line.get("number"), int):
                self.done[line["number"]] = line["result"]

    def add(self, number: int, result: Mapping[str, object]) -> None:
        """At once on disk."""
        self.done[number] = dict(result)
        append_jsonl(self.path, [{"number": number, "result": result}])

    def close(self) -> None:
        """Remove the file, once the output is written."""
        self.path.unlink(missing_ok=True)


def _judge_failed(error: Exception, kept: Path) -> UserError:
    """A judge is the user's own code, and its mistakes are reported as such."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"the judge failed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno}). Fix it "
        f"and run the same command again; what was sampled is kept in {kept}."
    )


def _as_edit(right: str, wrong: str, kind: str) -> GentleNegative:
    """A reply with the span that differs: what is left between the longest common beginning and end."""
    shorter = min(len(right), len(wrong))
    start = next((i for i in range(shorter) if right[i] != wrong[i]), shorter)
    end = next((i for i in range(shorter - start) if right[-1 - i] != wrong[-1 - i]), shorter - start)
    return GentleNegative(wrong, kind, (((start, len(right) - end), (start, len(wrong) - end)),))


def ask_gentle(
    endpoint: Endpoint, row: Row, *, temperature: float = 0.7, max_tokens: int = 512, seed: int = 0
) -> Asked:
    """Have a server make one minor error in a row's right answer."""
    conversation = [*messages_of(row), text_message("assistant", row.chosen), text_message("user", PROMPT)]
    (reply, *_) = endpoint.chat(conversation, temperature=temperature, max_tokens=max_tokens, seed=seed, schema=SCHEMA)
    found = parse_json(reply.text) or {}
    negative, kind = found.get("negative"), found.get("kind")
    if not isinstance(negative, str) or not negative.strip():
        return Asked(reason="malformed")
    negative = negative.strip()
    (reason,) = filter_negatives([row.chosen], [negative], Rules())
    if reason is None and len(row.chosen.split()) > 3 and ngram_overlap(row.chosen, negative) < LEAST_OVERLAP:
        reason = "not_minor"
    return Asked(reason=reason) if reason else Asked(negative, kind if kind in KINDS else "other")
