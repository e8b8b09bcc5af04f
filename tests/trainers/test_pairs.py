"""What the losses read of a batch, against loops over Python floats."""

import math
import statistics

import numpy as np
import pytest
import torch

from cwdpo.batch import AnswerLogprobs, Batch, Role, pad_answers
from cwdpo.trainers.pairs import crop_of, mean_over_prompts, pair_up, read_pairs

NOW = [[-1.0, -2.0, -0.5], [-3.0, -1.0], [-0.2], [-2.0, -2.5, -1.5, -0.1], [-0.7, -0.3]]
START = [[-1.5, -2.0, -1.0], [-2.0, -2.0], [-0.4], [-1.0, -0.5, -2.5, -0.6], [-0.6, -0.8]]
COLLISION = [[-0.9, -0.4, -0.3], [-0.5, -0.6], [-0.1], [-1.0, -1.1, -0.2, -0.3], [-0.8, -0.9]]
ROLES = [Role.CHOSEN, Role.REJECTED, Role.REJECTED, Role.CHOSEN, Role.REJECTED]
PROMPTS = [0, 0, 0, 1, 1]
PAIRS = [(0, 1), (0, 2), (3, 4)]


def padded(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([row + [0.0] * (4 - len(row)) for row in rows])


def batch() -> Batch:
    ids, mask = pad_answers([[7] * len(row) for row in NOW])
    return Batch(
        row_index=np.array([5, 9]),
        prompts=[{}, {}],
        prompt_index=np.array(PROMPTS),
        roles=np.array([int(role) for role in ROLES]),
        lengths=np.array([len(row) for row in NOW]),
        answer_ids=ids,
        answer_mask=mask,
        keys=list("abcde"),
    )


def test_pairs_by_hand() -> None:
    one = batch()
    now = AnswerLogprobs(padded(NOW), one["answer_mask"], collision=padded(COLLISION))
    ratio = padded(NOW) - padded(START)
    places = pair_up(one)
    assert list(zip(places.chosen.tolist(), places.rejected.tolist(), strict=True)) == PAIRS
    assert places.prompt.tolist() == [0, 0, 1]
    weight = torch.tensor([0.1, 0.2, 0.3])
    found = read_pairs(now, ratio.sum(-1), places, weight, token_logratio=ratio)

    def deltas(answer: int, first: int = 99) -> float:
        return sum(n - s for n, s in list(zip(NOW[answer], START[answer], strict=True))[:first])

    def likeness(answer: int) -> float:
        return math.exp(statistics.fmean(n - c for n, c in zip(NOW[answer], COLLISION[answer], strict=True)))

    for i, (w, l) in enumerate(PAIRS):  # noqa: E741
        shared = min(len(NOW[w]), len(NOW[l]))
        expected = {
            "chosen": deltas(w),
            "rejected": deltas(l),
            "weight": [0.1, 0.2, 0.3][i],
            "chosen_mean": statistics.fmean(NOW[w]),
            "rejected_mean": statistics.fmean(NOW[l]),
            "chosen_length": len(NOW[w]),
            "rejected_length": len(NOW[l]),
            "on_policy": likeness(w) * likeness(l),
            "chosen_public": deltas(w, shared),
            "rejected_public": deltas(l, shared),
        }
        for name, value in expected.items():
            assert getattr(found, name)[i].item() == pytest.approx(value, abs=1e-6), (name, i)


def test_what_no_loss_asked_for_is_not_there() -> None:
    one = batch()
    ratio = padded(NOW) - padded(START)
    found = read_pairs(AnswerLogprobs(padded(NOW), one["answer_mask"]), ratio.sum(-1), pair_up(one), torch.ones(3))
    assert found.on_policy is found.chosen_public is found.rejected_public is None


def test_prompts_count_once() -> None:
    losses = torch.tensor([1.0, 3.0, 5.0])
    assert mean_over_prompts(losses, pair_up(batch()).prompt).item() == pytest.approx((2.0 + 5.0) / 2)


def test_pairs_find_the_crop_of_their_prompt() -> None:
    one: Batch = batch()
    assert crop_of(one, pair_up(one))[1].tolist() == [False] * 3
    for rows, places, is_there in (([9, 5], [1, 1, 0], [True] * 3), ([9], [0, 0, 0], [False, False, True])):
        one["cropped"] = batch() | {"row_index": np.array(rows)}
        found = crop_of(one, pair_up(one))
        assert found[0].tolist() == places
        assert found[1].tolist() == is_there
