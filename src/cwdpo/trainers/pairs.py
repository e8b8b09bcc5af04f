"""Preference pairs of a batch: which answers make one, what the losses read of it, and how prompts count."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cwdpo.batch import AnswerLogprobs, Batch, Integers, Role, on_device, places_of
from cwdpo.losses.preference import Pairs, on_policy_weight


class PairPlaces(NamedTuple):
    """Positions in a batch, ``(pairs,)`` each: a rejected answer makes a pair with its prompt's chosen one."""

    chosen: Integers
    rejected: Integers
    prompt: Integers


def pair_up(batch: Batch) -> PairPlaces:
    """The pairs of a batch, in the order of the rejected answers."""
    chosen, rejected = places_of(batch, Role.CHOSEN), places_of(batch, Role.REJECTED)
    chosen_of = np.zeros(len(batch["prompts"]), dtype=np.int64)
    chosen_of[batch["prompt_index"][chosen]] = chosen
    of_prompt = batch["prompt_index"][rejected]
    return PairPlaces(chosen_of[of_prompt], rejected, of_prompt)


def read_pairs(
    now: AnswerLogprobs, logratio: Tensor, places: PairPlaces, weight: Tensor, *, token_logratio: Tensor | None = None
) -> Pairs:
    """What the losses read of a batch.

    Args:
        now: of the policy; with ``collision`` the pairs have their on-policy weights.
        logratio: ``(A,)`` log pi - log pi_ref of each answer.
        places: of the pairs.
        weight: ``(pairs,)`` w_c.
        token_logratio: ``(A, T)`` the same of tokens; with it, the pairs have the log-ratios of their shared lengths.
    """
    chosen, rejected = (on_device(answers, logratio.device) for answers in (places.chosen, places.rejected))
    length = now.mask.sum(dim=-1)
    pairs = Pairs(
        chosen=logratio[chosen],
        rejected=logratio[rejected],
        weight=weight,
        chosen_mean=now.mean[chosen],
        rejected_mean=now.mean[rejected],
        chosen_length=length[chosen],
        rejected_length=length[rejected],
    )
    if now.collision is not None:
        likeness = on_policy_weight(now.token, now.collision, now.mask)
        pairs = pairs._replace(on_policy=likeness[chosen] * likeness[rejected])
    if token_logratio is not None:
        shared = torch.minimum(pairs.chosen_length, pairs.rejected_length)[:, None]
        is_shared = torch.arange(now.mask.shape[1], device=shared.device) < shared
        pairs = pairs._replace(
            chosen_public=torch.where(is_shared, token_logratio[chosen], 0.0).sum(dim=-1),
            rejected_public=torch.where(is_shared, token_logratio[rejected], 0.0).sum(dim=-1),
        )
    return pairs


def crop_of(batch: Batch, places: PairPlaces) -> tuple[Tensor, Tensor]:
    """``(pairs,)`` each: where in ``batch["cropped"]`` a pair's prompt is, and whether it is there."""
    rows, device = batch["row_index"][places.prompt], batch["answer_ids"].device
    if "cropped" not in batch:
        nowhere = torch.zeros(len(rows), dtype=torch.int64, device=device)
        return nowhere, nowhere.bool()
    found = rows[:, None] == batch["cropped"]["row_index"]
    return on_device(found.argmax(axis=1), device), on_device(found.any(axis=1).astype(np.int64), device).bool()


def mean_over_prompts(losses: Tensor, prompt: Integers) -> Tensor:
    """``()`` mean over prompts of the mean over each prompt's pairs; ``prompt`` is ``(pairs,)``."""
    pairs_of = np.bincount(prompt)
    return (losses / on_device(pairs_of[prompt], losses.device)).sum() / len(pairs_of)
