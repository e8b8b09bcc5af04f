"""Whether an engine tells the truth about a model: a leak test, and a comparison with plain rows."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch
from cwdpo.engine.grouping import select_prompts
from cwdpo.eval_mode import eval_mode

_LONGEST, _SHORTEST = 16, 4
"""Tokens of a probe's answers: enough for every layer to show itself, few enough to cost next to nothing."""

_FLOAT32_GAP = 1e-3
"""nats; the largest difference of any token between two exact ways in float32, TF32 kernels included. A wrong mask or
position shows as 0.1 or more."""

_HALF_MEAN_GAP = 0.1
"""nats; the largest mean difference in 16-bit types, whose rounding alone gives single tokens more. The leak test,
which is exact in every type, is what finds a hybrid there."""


class _Engine(Protocol):
    def logprobs(self, model: nn.Module, batch: Batch) -> AnswerLogprobs: ...


@dataclass(frozen=True)
class Check:
    """What a self-check found."""

    ok: bool
    reason: str
    leak: float | None = None
    """nats; how much an answer's log-probs changed with what it must not see. 0 exactly, or it leaks."""

    gap: float | None = None
    """nats; largest difference of a token's log-prob to plain rows."""

    mean_gap: float | None = None
    """nats; mean difference to plain rows."""


def make_probe(batch: Batch) -> tuple[Batch, Batch, Tensor]:
    """Three answers to one prompt of the batch, if possible with images; and the same with the first one changed.

    Returns:
        The two batches, and ``(3, T)`` True on the tokens whose log-probs must not feel the change: all of the sisters,
        and those of the first answer before the change.
    """
    prompts = batch["prompts"]
    index = next((i for i, prompt in enumerate(prompts) if "pixel_values" in prompt), 0)
    one, _ = select_prompts(batch, [index])
    own = [_long_enough(ids[mask]) for ids, mask in zip(one["answer_ids"], one["answer_mask"], strict=True)]
    first = own[0]
    second = own[1] if len(own) > 1 else first.flip(0)
    pool = torch.cat([batch["answer_ids"][batch["answer_mask"]], one["prompts"][0]["input_ids"][0, -1:]])
    half = len(first) // 2
    other = [int(pool[pool != token][0]) if (pool != token).any() else int(token) for token in first[half:]]
    changed = torch.cat([first[:half], torch.tensor(other, dtype=first.dtype, device=first.device)])
    before, after = (_three_answers(one, [each, second, first]) for each in (first, changed))
    blind = before["answer_mask"].clone()
    blind[0, half:] = False
    return before, after, blind


def check_engine(engine: _Engine, model: nn.Module, batch: Batch, plain: _Engine) -> Check:
    """Ask the engine about a small probe of the batch, without gradient and without dropout.

    Args:
        engine: the one in doubt.
        model: the model it is asked about.
        batch: where the probe is taken from.
        plain: what it is held to.
    """
    before, after, blind = make_probe(batch)
    with torch.no_grad(), eval_mode(model):
        found, changed = engine.logprobs(model, before), engine.logprobs(model, after)
        leak = (found.token - changed.token)[blind].abs().max().item()
        gaps = (found.token - plain.logprobs(model, before).token)[before["answer_mask"]].abs()
    gap, mean_gap = gaps.max().item(), gaps.mean().item()
    close = gap <= _FLOAT32_GAP if found.precision == torch.float32 else mean_gap <= _HALF_MEAN_GAP
    if leak != 0.0:  # NaN too
        return Check(False, f"answers see what they must not: log-probs change by {leak:.3g} nats", leak, gap, mean_gap)
    if not close:
        return Check(False, f"log-probs differ from plain rows by up to {gap:.3g} nats", leak, gap, mean_gap)
    return Check(True, f"log-probs equal those of plain rows to {gap:.2g} nats", leak, gap, mean_gap)


def _long_enough(ids: Tensor) -> Tensor:
    return ids.repeat(-(-_SHORTEST // len(ids)))[:_LONGEST]


def _three_answers(one: Batch, answers: list[Tensor]) -> Batch:
    lengths = torch.tensor([len(ids) for ids in answers], device=answers[0].device)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=answers[0].dtype, device=lengths.device)
    ids[mask] = torch.cat(answers)
    zeros = one["prompt_index"].new_zeros(len(answers))
    return Batch(
        row_index=one["row_index"],
        prompts=one["prompts"],
        prompt_index=zeros,
        roles=zeros,
        answer_ids=ids,
        answer_mask=mask,
        keys=[""] * len(answers),
    )
