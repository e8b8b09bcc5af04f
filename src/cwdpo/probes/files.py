"""What a stage's readings are measured from, on disk: a resumed stage compares with the same start."""

import io
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate.utils import send_to_device
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cwdpo.batch import eval_mode
from cwdpo.data.images import open_image
from cwdpo.data.rows import Row
from cwdpo.engine import Engine
from cwdpo.errors import UserError
from cwdpo.probes.probe_set import ProbeAnswer, ProbeRow, ProbeSet
from cwdpo.probes.reading import StartDistributions
from cwdpo.records import append_jsonl, write_bytes, write_json, write_jsonl

SIDE = 320
"""Most pixels of a side."""

_PNG_BYTES = 2**14
"""Drawings are small as PNG, and exact; where that takes more, the picture is a photograph, and JPEG does."""


def write_thumbnails(rows: Sequence[Row], directory: Path) -> list[list[str]]:
    """Write small copies of all pictures, numbered from ``00`` on.

    Args:
        rows: whose pictures are copied.
        directory: where to; made if it is missing.

    Returns:
        For each row the names of its files.

    Raises:
        DataError: a picture cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names: list[list[str]] = []
    number = 0
    for row in rows:
        names.append([])
        for image in row.images:
            suffix, content = thumbnail(open_image(image, source=row.source))
            names[-1].append(f"{number:02d}.{suffix}")
            write_bytes(directory / names[-1][-1], content)
            number += 1
    return names


def thumbnail(image: Image.Image) -> tuple[str, bytes]:
    """A picture of at most :data:`SIDE` pixels a side as a file: its suffix, ``png`` or ``jpg``, and its bytes."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    png = _encoded(small, "PNG", optimize=True)
    return ("png", png) if len(png) <= _PNG_BYTES else ("jpg", _encoded(small, "JPEG", quality=85))


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


_PICTURES = "pictures"


class Start(NamedTuple):
    """What a stage's readings and examples are compared with."""

    means: dict[str, float]
    """Mean lbar of each group, nats per token."""

    greedy: list[str] | None
    """What the model itself said to each row."""

    on_policy: list[str] | None
    """An answer to each row, sampled from the model at temperature 1."""

    examples: dict[str, Any] | None
    """Log-probs of the examples' tokens, see :data:`cwdpo.probes.files.Numbers`; None in runs of old versions."""

    end_seconds: float
    """What the examples will cost when the stage ends."""

    distributions: StartDistributions


@dataclass(frozen=True)
class StageFiles:
    """The files that probes keep for one stage."""

    directory: Path

    def clear(self) -> None:
        """The stage begins: whatever an earlier attempt left goes."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)

    def write_answers(self, rows: Sequence[ProbeRow]) -> None:
        """List every answer that is measured, for people: ``answers.jsonl``."""
        append_jsonl(
            self.directory / "answers.jsonl",
            (
                {"row": probe.index, "source": probe.row.source, "group": answer.group, "text": answer.text}
                for probe in rows
                for answer in probe.answers
            ),
        )

    def write_start(self, start: Start) -> None:
        """Keep what the stage began with; ``start.json`` comes last, so that with it all is there."""
        start.distributions.save(self.directory / "start.npz")
        kept = start._asdict()
        del kept["distributions"]
        write_json(self.directory / "start.json", kept)

    def read_start(self, num_rows: int) -> Start:
        """What :meth:`write_start` kept.

        Raises:
            UserError: they are gone or damaged.
        """
        try:
            found = json.loads((self.directory / "start.json").read_text(encoding="utf-8"))
            means, greedy, on_policy = dict(found["means"]), found["greedy"], found.get("on_policy")
            examples, seconds = found.get("examples"), float(found.get("end_seconds", 0.0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory}: what the stage's probes began with cannot be read ({error}). Begin the run anew "
                "in another --output_dir."
            ) from error
        distributions = StartDistributions.load(self.directory / "start.npz", num_rows)
        return Start(means, greedy, on_policy, examples, seconds, distributions)

    @property
    def examples(self) -> Path:
        """Some answers token by token, one row a line; pictures are named relative to the file's directory."""
        return self.directory / "examples.jsonl"

    def write_examples(
        self, rows: Sequence[Row], lines: Callable[[Sequence[Sequence[str]]], Iterable[Mapping[str, Any]]]
    ) -> None:
        """Write the examples whole, after their pictures.

        Args:
            rows: whose pictures are copied.
            lines: the lines, given the names of each row's pictures.
        """
        names = write_thumbnails(rows, self.directory / _PICTURES)
        write_jsonl(self.examples, lines([[f"{_PICTURES}/{name}" for name in of_row] for of_row in names]))

    def weights(self, step: int) -> Path:
        """Weights of the reading at this step, where they are kept."""
        return self.directory / f"weights-{step:08d}.safetensors"

    def save_weights(self, model: nn.Module, step: int) -> None:
        """Write all weights that train, whole or not at all."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trained_weights(model).items()}
        written = self.weights(step).with_suffix(".partial")
        save_file(weights, written)
        written.replace(self.weights(step))

    def restore_weights(self, model: nn.Module, step: int) -> None:
        """Put the weights of a reading back, all of them or an error.

        Raises:
            UserError: the file is gone or damaged.
        """
        try:
            saved = load_file(self.weights(step))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights(step)}: a reading's weights cannot be read ({error}).") from error
        weights = trained_weights(model)
        assert saved.keys() == weights.keys(), "the model trains other weights than it did when they were saved"
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(saved[name])

    def keep_only(self, steps: set[int]) -> None:
        """Remove the weights of all other steps' readings."""
        for path in self.directory.glob("weights-*.safetensors"):
            if int(path.stem.removeprefix("weights-")) not in steps:
                path.unlink()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that training changes, once, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


ROWS = 12
"""How many rows are shown."""

SHOWN = ("chosen", "rejected", "gentle", "greedy")
"""Groups of the probe set that are shown."""

GREEDY_END = "greedy_end"
"""The group that is shown beside them: what the model itself says when the stage ends."""

_DIGITS = 6
"""Decimals that are kept; float32 has no more to say."""


@dataclass(frozen=True)
class TokenLogprobs:
    """One answer, token by token."""

    ids: list[int]
    """``T`` token ids, the end token included."""

    logprobs: list[float]
    """``T`` log pi(y_t | x, y_<t), nats."""


ByRow: TypeAlias = dict[int, dict[str, TokenLogprobs]]
"""Position in the probe set -> group -> answer."""

Numbers: TypeAlias = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Position in the probe set, as JSON's keys are text -> group -> log-probs."""


def example_rows(rows: Sequence[ProbeRow], greedy_end: Sequence[str] | None = None) -> list[ProbeRow]:
    """The rows that are shown, with the answers that are.

    Args:
        rows: the probe set.
        greedy_end: what the model itself says now, an answer a shown row.
    """
    found = []
    for i, row in enumerate(rows[:ROWS]):
        answers = [answer for answer in row.answers if answer.group in SHOWN]
        if greedy_end is not None:
            answers.append(ProbeAnswer(GREEDY_END, greedy_end[i]))
        found.append(replace(row, answers=tuple(answers)))
    return found


@torch.no_grad()
def token_logprobs(
    model: nn.Module,
    probes: ProbeSet,
    engine: Engine,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> ByRow:
    """Log-probs of all tokens of a probe set's answers. Leaves no trace: modes and random states are put back.

    Args:
        model: scored in eval mode.
        probes: this rank's share of the examples.
        engine: computes the log-probs.
        autocast: mixed precision as in training.
    """
    found: ByRow = {}
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), eval_mode(model), autocast():
        for part in probes.batches():
            said = engine.logprobs(model, send_to_device(part.batch, device))
            if probes.is_idle:
                continue
            tokens, mask = said.token.double().cpu(), part.batch["answer_mask"]
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
    """The lines of ``examples.jsonl``, one a row.

    Args:
        rows: from :func:`example_rows`, with the greedy answers of the end.
        start: log-probs when the stage began.
        end: the answers when it ended; one that the model could not take is left out.
        pictures: names of each row's pictures.
        pieces: token ids to the texts of the tokens.
    """
    lines = []
    for probe, names in zip(rows, pictures, strict=True):
        before, now = start.get(str(probe.index), {}), end.get(probe.index, {})
        answers = []
        for answer in probe.answers:
            if answer.group in now:
                measured = now[answer.group]
                first = {} if answer.group == GREEDY_END else {"start": before[answer.group]}
                told = {"group": answer.group, "text": answer.text, "tokens": pieces(measured.ids)}
                answers.append({**told, **first, "end": measured.logprobs})
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
    tokens (the end of the turn) stand under their own names.

    Args:
        tokenizer: of the processor.
        ids: token ids of one answer.
        controls: the texts of control tokens, see :class:`cwdpo.data.encode.ChatTemplate`.
    """
    pieces: list[str] = []
    told: list[int] = []  # the tokens of the last whole piece: they show whether a space comes next
    open_: list[int] = []  # parts of a character so far
    for position, token in enumerate(ids):
        name = str(tokenizer.convert_ids_to_tokens(token))
        if name in controls:
            pieces.append(name)
            told = []
            continue
        open_.append(token)
        before, text = _decoded(tokenizer, told), _decoded(tokenizer, [*told, *open_])
        more = ids[position + 1 : position + 2]
        goes_on = bool(more) and str(tokenizer.convert_ids_to_tokens(more[0])) not in controls
        if text.endswith("\ufffd") and goes_on:
            pieces.append("")
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else _decoded(tokenizer, open_))
        told, open_ = open_, []
    return pieces


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return (
        str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
    )
