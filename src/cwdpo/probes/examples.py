"""Examples: the first rows of a probe set, answer by answer and token by token, for people to read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from accelerate.utils import send_to_device
from torch import nn

from cwdpo.data.rows import Row
from cwdpo.engine import Engine
from cwdpo.eval_mode import eval_mode
from cwdpo.probes.answers import ProbeAnswer, ProbeRow
from cwdpo.probes.probe_set import ProbeSet

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
        controls: the texts of control tokens, see :class:`cwdpo.data.template.ChatTemplate`.
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
