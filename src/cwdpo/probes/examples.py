"""Examples: some answers of a probe set, token by token, at both ends of a stage, with small copies of the pictures."""

import io
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from accelerate.utils import gather_object, send_to_device
from PIL import Image
from torch import nn

from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Row
from cwdpo.engine import Engine
from cwdpo.probes.measuring import Autocast, undisturbed
from cwdpo.probes.probe_set import ProbeAnswer, ProbeRow, ProbeSet
from cwdpo.records import write_bytes, write_jsonl
from cwdpo.trainer_protocol import TrainerProtocol

ROWS = 12
SHOWN = ("chosen", "rejected", "gentle", "greedy")
"""Groups of the probe set that are shown, of that many rows."""

GREEDY_END = "greedy_end"
"""The group that is shown beside them: the model's own answer when the stage ends."""

SIDE = 320
"""Most pixels of a picture's side."""

_PNG_BYTES = 2**14
"""Drawings are small as PNG, and exact; where that takes more, the picture is a photograph, and JPEG does."""

_DIGITS = 6
"""Decimals that are kept; float32 has no more to say."""

_PICTURES = "pictures"

logger = logging.getLogger(__name__)


class TokenLogprobs(NamedTuple):
    """One answer, token by token: ``T`` token ids, the end token's included, and ``T`` log-probs, nats."""

    ids: list[int]
    logprobs: list[float]


ByRow: TypeAlias = dict[int, dict[str, TokenLogprobs]]
"""Position in the probe set -> group -> answer."""

Numbers: TypeAlias = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Position in the probe set, as JSON's keys are text -> group -> log-probs."""

Write: TypeAlias = Callable[[nn.Module, Sequence[Row]], list[str]]
"""A model's own answers to rows."""


class Examples:
    """Measures the first rows of a probe set at both ends of a stage. All ranks take part, and the first one writes."""

    def __init__(
        self,
        trainer: TrainerProtocol,
        directory: Path,
        engine: Engine,
        *,
        write_greedy: Write | None,
        count: int = ROWS,
    ) -> None:
        """Write at most ``count`` rows into ``directory``; without ``write_greedy`` the model gives no answer at the
        end."""
        self._count = min(count, ROWS)
        self._trainer, self._directory, self._engine, self._write_greedy = trainer, directory, engine, write_greedy
        self._rows: Sequence[ProbeRow] = ()
        self.start: Numbers | None = None
        """Log-probs when the stage began; kept on disk with the probes' start."""

    def begin(self, rows: Sequence[ProbeRow]) -> None:
        """The stage begins: measure the examples among these rows of the probe set."""
        self._rows = rows[: self._count]
        self.start = as_numbers(self._measure(example_rows(self._rows)))

    def resume(self, rows: Sequence[ProbeRow], start: Numbers | None) -> None:
        """The stage goes on from a checkpoint: it began with these numbers."""
        self._rows, self.start = rows[: self._count], start

    def end(self) -> None:
        """The stage is over and its model is the one that is kept: measure again, and write all."""
        if self.start is None:
            logger.warning("no examples: the stage began with another version of cwdpo, which measured none.")
            return
        asked = [probe.row for probe in example_rows(self._rows)]
        rows = example_rows(self._rows, shared_answers(self._trainer, self._write_greedy, asked))
        found = self._measure(rows)
        if self._trainer.is_world_process_zero():
            template, tokenizer = self._trainer.encoder.template, self._trainer.encoder.tokenizer
            pieces = partial(token_pieces, tokenizer, controls=frozenset(template.control_tokens))
            names = write_thumbnails(asked, self._directory / _PICTURES)
            pictures = [[f"{_PICTURES}/{name}" for name in of_row] for of_row in names]
            lines = example_lines(rows, self.start, found, pictures=pictures, pieces=pieces)
            write_jsonl(self._directory / "examples.jsonl", lines)  # last, so that its pictures are there

    def _measure(self, rows: Sequence[ProbeRow]) -> ByRow:
        model, autocast = self._trainer.model, self._trainer.accelerator.autocast
        here = token_logprobs(model, ranks_share(rows, self._trainer), self._engine, autocast=autocast)
        whole = {row: groups for part in gather_object([here]) for row, groups in part.items()}
        return dict(sorted(whole.items()))


def ranks_share(rows: Sequence[ProbeRow], trainer: TrainerProtocol) -> ProbeSet:
    """This rank's share of a probe set."""
    return ProbeSet(
        rows,
        trainer.encoder,
        answers_in_a_pass=3 * trainer.args.per_device_eval_batch_size,  # as many as its rows have
        rank=trainer.accelerator.process_index,
        ranks=trainer.accelerator.num_processes,
    )


def shared_answers(trainer: TrainerProtocol, write: Write | None, rows: Sequence[Row]) -> list[str] | None:
    """The model's own answer to each row; each rank writes its share, and all have them all. None without a way to."""
    if write is None:
        return None
    rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    parts: list[list[str]] = gather_object([write(trainer.model, rows[rank::ranks])])
    return [parts[i % ranks][i // ranks] for i in range(len(rows))]


def example_rows(rows: Sequence[ProbeRow], greedy_end: Sequence[str] | None = None) -> list[ProbeRow]:
    """The rows of a probe set that are shown, with the answers that are, and the model's own answers at the end."""
    found = []
    for i, row in enumerate(rows[:ROWS]):
        answers = [answer for answer in row.answers if answer.group in SHOWN]
        if greedy_end is not None:
            answers.append(ProbeAnswer(GREEDY_END, greedy_end[i]))
        found.append(replace(row, answers=tuple(answers)))
    return found


def token_logprobs(model: nn.Module, probes: ProbeSet, engine: Engine, *, autocast: Autocast = nullcontext) -> ByRow:
    """Log-probs of all tokens of a probe set's answers, as far as they are this rank's; see :func:`measure`."""
    found: ByRow = {}
    with undisturbed(model, autocast) as device:
        for part in probes.batches():
            scored = engine.logprobs(model, send_to_device(part.batch, device))
            if probes.is_idle:
                continue
            tokens, mask = scored.token.double().cpu(), part.batch["answer_mask"]
            for i, (row, group) in enumerate(zip(part.rows, part.groups, strict=True)):
                ids = part.batch["answer_ids"][i][mask[i]].tolist()
                values = [round(value, _DIGITS) for value in tokens[i][mask[i]].tolist()]
                found.setdefault(row, {})[group] = TokenLogprobs(ids, values)
    return found


def as_numbers(found: ByRow) -> dict[str, dict[str, list[float]]]:
    """The log-probs alone, for a file that a resumed stage reads."""
    return {str(row): {group: answer.logprobs for group, answer in groups.items()} for row, groups in found.items()}


def example_lines(
    rows: Sequence[ProbeRow],
    start: Numbers,
    end: ByRow,
    *,
    pictures: Sequence[Sequence[str]],
    pieces: Callable[[Sequence[int]], list[str]],
) -> list[dict[str, Any]]:
    """The lines of ``examples.jsonl``, one a row of :func:`example_rows`, with the greedy answers of the end.

    An answer that the model could not take is left out. Names of pictures are relative to the file's directory.
    ``pieces`` makes token ids the texts of the tokens.
    """
    lines = []
    for probe, names in zip(rows, pictures, strict=True):
        before, now = start.get(str(probe.index), {}), end.get(probe.index, {})
        answers = []
        for answer in probe.answers:
            if answer.group in now:
                measured = now[answer.group]
                first = {} if answer.group == GREEDY_END else {"start": before[answer.group]}
                shown = {"group": answer.group, "text": answer.text, "tokens": pieces(measured.ids)}
                answers.append({**shown, **first, "end": measured.logprobs})
        line = {"row": probe.row.id or str(probe.index), "pictures": list(names), "prompt": prompt_text(probe.row)}
        lines.append({**line, "answers": answers})
    return lines


def prompt_text(row: Row) -> str:
    """A prompt as people read it: the user's words alone, or each turn behind its role where there are several."""
    turns = [(turn.role, "".join(part for part in turn.parts if isinstance(part, str)).strip()) for turn in row.prompt]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role}: {text}" for role, text in turns)


def token_pieces(tokenizer: Any, ids: Sequence[int], *, controls: Collection[str]) -> list[str]:
    """The text of each token, such that all together are the decoded answer.

    A token that is only a part of a character is empty, and the last of its parts gives the whole character. Control
    tokens (the end of the turn, see :class:`cwdpo.data.encode.ChatTemplate`) stand under their own names.
    """

    def decoded(tokens: list[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode(tokens, **options)) if tokens else ""

    names = [str(tokenizer.convert_ids_to_tokens(token)) for token in ids]
    pieces: list[str] = []
    before: list[int] = []  # the tokens of the last whole piece: they show whether a space comes next
    parts: list[int] = []  # of a character so far
    for position, token in enumerate(ids):
        if names[position] in controls:
            pieces.append(names[position])
            before = []
            continue
        parts.append(token)
        prefix, text = decoded(before), decoded([*before, *parts])
        goes_on = position + 1 < len(ids) and names[position + 1] not in controls
        if text.endswith("\ufffd") and goes_on:
            pieces.append("")
            continue
        pieces.append(text[len(prefix) :] if text.startswith(prefix) else decoded(parts))
        before, parts = parts, []
    return pieces


def write_thumbnails(rows: Sequence[Row], directory: Path) -> list[list[str]]:
    """Write small copies of all pictures, numbered from ``00`` on; gives for each row the names of its files."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = count()

    def written(image: ImageSource, source: str) -> str:
        suffix, content = thumbnail(open_image(image, source=source))
        name = f"{next(numbers):02d}.{suffix}"
        write_bytes(directory / name, content)
        return name

    return [[written(image, row.source) for image in row.images] for row in rows]


def thumbnail(image: Image.Image) -> tuple[str, bytes]:
    """A picture of at most :data:`SIDE` pixels a side as a file: its suffix, ``png`` or ``jpg``, and its bytes."""
    small, png, jpeg = image.copy(), io.BytesIO(), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(png, format="PNG", optimize=True)
    if len(png.getvalue()) <= _PNG_BYTES:
        return "png", png.getvalue()
    small.save(jpeg, format="JPEG", quality=85)
    return "jpg", jpeg.getvalue()
