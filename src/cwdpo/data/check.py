"""Preflight without GPU or weights: read every row, open its images, count its tokens; estimate a step's memory."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwdpo.data.formats import read_record
from cwdpo.data.image_roots import GivenRoots, ImageRoots
from cwdpo.data.images import verify_image
from cwdpo.data.messages import is_json, is_plain, metadata_keys, parse_messages
from cwdpo.data.reading import Record, read_records
from cwdpo.data.repeats import has_two_answers, hash_of, prompt_hash, row_hash
from cwdpo.data.rows import Row
from cwdpo.data.sources import resolve_root
from cwdpo.errors import DataError, shortened

if TYPE_CHECKING:  # it loads torch, which a check of the data alone does not need
    from cwdpo.data.encode import Encoder

_MEDIA_TAG = re.compile(
    r"</?(?:img|image|video|audio|picture|vision)\b[^<>\n]{0,200}>"
    r"|<\|?(?:image|img|video|audio|vision)[^<>|\n]{0,40}\|?>"
    r"|\[(?:IMG|IMAGE|VIDEO|AUDIO)\]|<ImageHere>",
    re.IGNORECASE,
)
"""Marks of images and other media in the conventions of other programs."""

NOTHING_TO_LEARN = (
    "no row has two different answers, so nothing can be learned. Write `rejected` answers that differ from `chosen`."
)

_MISSING = {"nan", "none", "null", "n/a", "<na>"}
"""How programs write that there is no value, in small letters; as a whole answer, one of these words may be meant."""

_MOST_NOTED = 200
"""Different things that are noted once a file; beyond, a file is odd in more ways than anyone reads."""


@dataclass(frozen=True)
class Notice:
    """One thing that was noticed about a row or a file."""

    source: str
    """``file:line``."""

    name: str
    """Stops training: ``unreadable_file``, ``unusable_row``, ``too_long``, ``nothing_to_learn``; of a recipe also
    ``missing_answer`` and ``settings``. Does not: ``duplicate``, ``shared_id``, ``contradiction``,
    ``identical_answers``, ``gentle_is_chosen``, ``exchanged``, ``no_rejected``, ``split_tokens``,
    ``unknown_tokens``, ``unread_column``, ``unread_key``, ``unread_kwarg``, ``media_tag``, ``json_text``,
    ``empty_image``, ``missing_value``; of a recipe also ``not_held_out``, ``needs_gpu`` and ``repeated``."""

    message: str
    """What was found, beginning with the source, and what to do."""


@dataclass(frozen=True, slots=True)
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
    """Of a data file: its records, the rows that could be read, what training would stop at, what else to know."""

    path: str
    num_records: int = 0
    rows: list[RowReport] = field(default_factory=list)
    findings: list[Notice] = field(default_factory=list)
    notes: list[Notice] = field(default_factory=list)

    @property
    def ok(self) -> bool:
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
        return {"ok": self.ok, "summary": self.summary(), **asdict(self)}


def check_rows(
    path: str | Path,
    *,
    image_root: GivenRoots = None,
    encoder: "Encoder | None" = None,
    on_row: Callable[[int], None] | None = None,
) -> CheckReport:
    """Check every row of a file that :func:`cwdpo.data.reading.read_rows` takes; a bad row does not end the check.

    What is wrong with the file itself is a finding, an ``image_root`` that is not a directory a ``DataError``. The
    ``encoder`` counts tokens and knows the limit on them. ``on_row`` gets the number of records seen, after each.
    """
    report = CheckReport(str(path))
    roots = resolve_root(path, image_root)
    checker = _Checker(report, encoder)
    try:
        for record, source in read_records(path):
            report.num_records += 1
            checker.check(record, source, roots)
            if on_row is not None:
                on_row(report.num_records)
    except DataError as problem:
        report.findings.append(Notice(str(path), "unreadable_file", str(problem)))
    missing = [row.source for row in report.rows if not row.num_rejected]
    if missing:
        # a note and not a finding: such rows are good for stage 1, and only a recipe says which rows stage 2 gets
        message = (
            f"{missing[0]}: {len(missing)} of {len(report.rows)} rows have no `rejected`, this one first. Stage 1 "
            "takes such rows; a run in which stage 2 gets one stops at its start (`cwdpo check RECIPE` says whether it "
            "does). Keep them for a recipe with stage1 alone, or add `rejected`."
        )
        report.notes.append(Notice(missing[0], "no_rejected", message))
    if checker.without_image and any(row.num_images for row in report.rows):
        first = checker.without_image[0]
        message = (
            f"{first}: {len(checker.without_image)} of {len(report.rows)} rows have an image without a value, this one "
            "first, and are trained on without one. If that is not meant, name the image, or take the rows out."
        )
        report.notes.append(Notice(first, "empty_image", message))
    apart = checker.nearer_rejected + checker.nearer_chosen
    if _beyond_a_coin(checker.nearer_rejected, apart):
        message = (
            f"{path}: `gentle` is nearer to `rejected` than to `chosen` in {checker.nearer_rejected} of the {apart} "
            "rows in which it is nearer to one, but should be `chosen` with one small error. Are `chosen` and "
            "`rejected` exchanged?"
        )
        report.notes.append(Notice(str(path), "exchanged", message))
    if report.rows and not missing and not checker.can_learn:
        report.findings.append(Notice(str(path), "nothing_to_learn", f"{path}: {NOTHING_TO_LEARN}"))
    return report


class _Checker:
    """Look at rows one after another, remembering those seen."""

    def __init__(self, report: CheckReport, encoder: "Encoder | None") -> None:
        self._report, self._encoder = report, encoder
        self._rows: dict[bytes, str] = {}
        self._pairs: dict[bytes, str] = {}
        self._noted: set[str] = set()
        self._opened: set[Path] = set()
        self._ids: dict[str, tuple[bytes, str]] = {}
        self.can_learn = False
        """Whether any row so far has two different answers."""

        self.without_image: list[str] = []
        """Rows with a key for an image and no image."""

        self.nearer_rejected = self.nearer_chosen = 0
        """Rows whose gentle answer has more words of a rejected answer than of the chosen one, and the other way."""

    def check(self, record: Record | DataError, source: str, roots: ImageRoots) -> None:
        try:
            if isinstance(record, DataError):
                raise record
            row, name, unread = read_record(record, source=source, roots=roots)
            self._measure(row, name)
        except DataError as problem:
            self._report.findings.append(Notice(source, "unusable_row", str(problem)))
            return
        if not row.images and ("image" in record or "images" in record):
            self.without_image.append(source)
        self._note_unread(record, row, unread)
        self._note_texts(record, row, unread)
        self._compare(row)

    def _note_unread(self, record: Record, row: Row, columns: Collection[str]) -> None:
        """Columns and keys that training passes over, each once a file."""
        for column in columns:
            self._note_once(row, "unread_column", f"column `{shortened(column)}` is not read")
        messages = (value for value in record.values() if not isinstance(value, str))
        for key in (key for value in messages for key in metadata_keys(value)):
            self._note_once(row, "unread_key", f"the key `{shortened(key)}` of messages is not read")

    def _note_texts(self, record: Record, row: Row, unread: Collection[str]) -> None:
        """Texts that are something else than they look like: marks of media that nothing reads, and JSON."""
        for key, value in record.items():
            if not isinstance(value, str) or is_plain(value) or key in unread:
                continue
            if not isinstance(parse_messages(value, key), str):
                self._note_once(row, "json_text", f"`{key}` is text that holds messages, and is read as such")
        if any(map(is_json, (row.chosen, *row.rejected))):
            self._note_once(row, "json_text", "an answer is JSON text, which the model learns to write as it stands")
        prompt = [part for turn in row.prompt for part in turn.parts if isinstance(part, str)]
        for text in (*prompt, row.chosen, *row.rejected):
            for tag in _MEDIA_TAG.findall(text) if "<" in text or "[" in text else ():
                of = "stays text, and no image stands there: the mark of an image is <image>"
                self._note_once(row, "media_tag", f"{shortened(tag, 30)!r} {of}")

    def _measure(self, row: Row, name: str) -> None:
        """Open the row's images, count its tokens, and report it."""
        report = RowReport(row.source, name, len(row.images), len(row.rejected), row.gentle is not None)
        if self._encoder is None:
            for image in row.images:
                if isinstance(image, Path) and image in self._opened:
                    continue  # a file that many rows share is decoded once
                verify_image(image, source=row.source)
                if isinstance(image, Path):
                    self._opened.add(image)
            self._report.rows.append(report)
            return
        for name in self._encoder.template.unread_kwargs(row):
            self._note_once(row, "unread_kwarg", f"the chat template does not read `{shortened(name)}`")
        texts = [row.chosen, *row.rejected, *([] if row.gentle is None else [row.gentle])]
        encoded = self._encoder.measure(row, texts)
        chosen, *others = map(len, encoded.answers)
        self._report.rows.append(
            replace(
                report,
                text_tokens=encoded.prompt_tokens - encoded.image_tokens,
                image_tokens=encoded.image_tokens,
                chosen_tokens=chosen,
                rejected_tokens=tuple(others[: len(row.rejected)]),
                gentle_tokens=None if row.gentle is None else others[-1],
            )
        )
        try:
            self._encoder.check_length(row, texts, encoded)
        except DataError as problem:
            self._report.findings.append(Notice(row.source, "too_long", str(problem)))
        if not all(encoded.joined):
            merged = (
                "the tokenizer would merge the end of the prompt with the start of an answer. They are tokenised "
                "apart, as in generation. If the answer's leading white space is not meant, take it out."
            )
            self._note(row, "split_tokens", merged)
        if any(encoded.unknown):
            self._note(
                row,
                "unknown_tokens",
                f"an answer has {max(encoded.unknown)} token{'s' if max(encoded.unknown) > 1 else ''} unknown to the "
                "tokenizer, so the model learns to write its unknown token there. Write the answer with characters "
                "that it knows.",
            )

    def _compare(self, row: Row) -> None:
        """Look for answers and rows that are the same."""
        # of a million rows the hashes are kept, and not the texts
        prompt = prompt_hash(row)
        whole = row_hash(row, prompt)
        first = self._rows.setdefault(whole, row.source)
        if first != row.source:
            self._note(row, "duplicate", f"the row is the same as {first}, so it counts twice. Take one out.")
        self.can_learn = self.can_learn or has_two_answers(row)
        content, earlier = self._ids.setdefault(row.id, (whole, row.source)) if row.id else (whole, "")
        if content != whole:
            where = f"the id {shortened(row.id)!r} is also on line {earlier.rpartition(':')[2]}"
            self._note(row, "shared_id", f"{where}, with other content. Give each row its own.")
        for key, texts in (("chosen", [row.chosen]), ("rejected", row.rejected), ("gentle", [row.gentle or ""])):
            if text := next((text for text in texts if text.strip().lower() in _MISSING), ""):
                what = f"an answer of `{key}` is {text.strip()!r}; is it a missing value? Then take the row out."
                self._note(row, "missing_value", what)
        if row.chosen.strip() in (answer.strip() for answer in row.rejected):
            same = "chosen and rejected are the same, so nothing is learned from the pair. Take it out."
            self._note(row, "identical_answers", same)
        if row.gentle is not None and row.chosen.strip() == row.gentle.strip():
            same = "gentle is the same as chosen, but must hold one error. Take `gentle` out."
            self._note(row, "gentle_is_chosen", same)
        elif row.gentle is not None and row.rejected:
            near, *others = (_shared_words(row.gentle, answer) for answer in (row.chosen, *row.rejected))
            self.nearer_rejected += max(others) > near
            self.nearer_chosen += max(others) < near
        chosen = hash_of(row.chosen)
        for answer in map(hash_of, row.rejected):
            self._pairs.setdefault(hash_of(prompt, chosen, answer), row.source)
            reverse = self._pairs.get(hash_of(prompt, answer, chosen))
            if reverse is not None and answer != chosen:
                self._note(row, "contradiction", f"{reverse} prefers the same two answers the other way. Take one out.")

    def _note_once(self, row: Row, name: str, what: str) -> None:
        """A note on what is likely to be the same in every row."""
        if what not in self._noted and len(self._noted) < _MOST_NOTED:
            self._noted.add(what)
            self._note(row, name, f"{what}, here and in other rows.")

    def _note(self, row: Row, name: str, message: str) -> None:
        self._report.notes.append(Notice(row.source, name, f"{row.source}: {message}"))


def _beyond_a_coin(heads: int, tosses: int) -> bool:
    """Whether so many heads of a fair coin have a probability below 1 %: a sign test, by the normal approximation with
    a correction for continuity.

    Example:
        >>> [_beyond_a_coin(*one) for one in ((1, 1), (7, 7), (8, 8), (60, 100), (63, 100))]
        [False, False, True, False, True]
    """
    return 2 * heads - tosses - 1 > 2.33 * math.sqrt(tosses)


def _shared_words(one: str, other: str) -> float:
    """The share of words that two texts have in common, in any order: from 0 to 1.

    Example:
        >>> _shared_words("a red disc", "a blue disc")
        0.5
    """
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / max(len(words | others), 1)


_ACTIVATIONS = 34
"""Bytes kept for the backward pass of one token in one transformer layer, for each unit of the hidden size, in a 2-byte
type: Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix, which sdpa does not keep."""

_HEAD_ROWS = 1024
"""Tokens whose vocabulary logits exist at one time; the head is computed in pieces."""


ROUGH = 1.5
"""An estimate is right to this factor; what fits with so much room is said to fit."""


def memory_estimate(
    *,
    num_parameters: int,
    trainable_parameters: int,
    bytes_per_value: int,
    tokens_per_batch: int,
    hidden_size: int,
    num_layers: int,
    vocabulary_size: int,
    checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes of one training step by purpose, and in ``total``, with AdamW and the reference cached.

    Good to a factor of about :data:`ROUGH`; a vision tower's activations are not counted.

        weights      N * b                                 num_parameters * bytes_per_value
        gradients    M * b                                 trainable_parameters
        optimizer    M * 2 * b                             AdamW's two moments, in the weights' own type
        activations  T * layers * hidden * (17 * b), or T * hidden * (layers * b + 17 * b) with checkpointing
        logits       3 * min(T, 1024) * vocabulary * 4     logits, log-probs and their gradient, float32

    T is ``tokens_per_batch``, the tokens of all rows that run at one time, image tokens included. With
    ``checkpointing`` each layer's input alone is kept, and one layer whole.

    Example:
        >>> memory_estimate(
        ...     num_parameters=3_000, trainable_parameters=1_000, bytes_per_value=2, tokens_per_batch=10,
        ...     hidden_size=8, num_layers=2, vocabulary_size=100)
        {'weights': 6000, 'gradients': 2000, 'optimizer': 4000, 'activations': 5440, 'logits': 12000, 'total': 29440}
    """
    layer = tokens_per_batch * hidden_size * _ACTIVATIONS * bytes_per_value // 2
    inputs = tokens_per_batch * hidden_size * bytes_per_value * num_layers
    found = {
        "weights": num_parameters * bytes_per_value,
        "gradients": trainable_parameters * bytes_per_value,
        "optimizer": 2 * trainable_parameters * bytes_per_value,
        "activations": inputs + layer if checkpointing else num_layers * layer,
        "logits": 3 * min(tokens_per_batch, _HEAD_ROWS) * vocabulary_size * 4,
    }
    return {**found, "total": sum(found.values())}
