"""Held-out evaluation: hand-made log-probs with hand-made averages, then a real model beside itself."""

import math
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Role
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.engine import make_engine
from cwdpo.evaluation.likelihood import evaluate_answers, evaluate_rows
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.reference import FrozenCopy

MASK = torch.tensor([[True, True], [True, False], [True, True], [True, False], [True, True]])
P, Q = [0.75, 0.25], [0.5, 0.5]


def batch() -> Batch:
    """Prompt 0: chosen, rejected, rejected. Prompt 1: chosen (one token), gentle."""
    roles = [Role.CHOSEN, Role.REJECTED, Role.REJECTED, Role.CHOSEN, Role.GENTLE]

    return Batch(
        row_index=np.array([0, 1]),
        prompts=[],
        prompt_index=np.array([0, 0, 0, 1, 1]),
        roles=np.array([int(role) for role in roles]),
        lengths=MASK.sum(dim=-1).numpy(),
        answer_ids=torch.zeros_like(MASK, dtype=torch.long),
        answer_mask=MASK,
        keys=[],
    )


class Fixed:
    """An engine, and a reference, that always says the same."""

    def __init__(self, token: list[list[float]], distribution: list[float]) -> None:
        spread = torch.tensor(distribution).log().expand(*MASK.shape, 2)
        self.says = AnswerLogprobs(
            token=torch.tensor(token),
            mask=MASK,
            entropy=torch.tensor([[1.0, 2.0], [9, 9], [9, 9], [6.0, 99], [9, 9]]),
            confidence=torch.tensor([[0.9, 0.9], [0, 0], [0, 0], [0.5, 0.7], [0, 0]]),
            hit=torch.tensor([[True, False], [True, True], [True, True], [True, True], [True, True]]),
            distribution=spread,
        )

    def logprobs(self, *args: Any, want: Collection[str]) -> AnswerLogprobs:
        assert "distribution" in want
        return self.says


POLICY = Fixed([[-1.0, -2.0], [-4.0, 0.0], [-1.0, -1.0], [-5.0, 0.0], [-3.0, -4.0]], P)
START = Fixed([[-2.0, -3.0], [-3.0, 0.0], [-1.25, -1.25], [-5.5, 0.0], [-3.0, -3.0]], Q)


def test_averages_by_hand() -> None:
    found = evaluate_answers(nn.Linear(1, 1), START, [batch()], POLICY)
    expected = {
        "n/chosen": 2,
        "n/rejected": 2,
        "n/gentle": 1,
        "logps/chosen": (-3 - 5) / 2,
        "logps_mean/chosen": (-1.5 - 5) / 2,
        "delta_total/chosen": (2 + 0.5) / 2,
        "delta/chosen": (1 + 0.5) / 2,
        "logps/rejected": (-4 - 2) / 2,
        "logps_mean/rejected": (-4 - 1) / 2,
        "delta_total/rejected": (-1 + 0.5) / 2,
        "delta/rejected": (-1 + 0.25) / 2,
        "logps/gentle": -7,
        "logps_mean/gentle": -3.5,
        "delta_total/gentle": -1,
        "delta/gentle": -0.5,
        "reward_accuracy": 1.0,  # chosen gained 2, the rejected -1 and +0.5
        "entropy": (1 + 2 + 6) / 3,
        "accuracy": 2 / 3,
        "ece": 2 / 3 * (0.9 - 0.5) + 1 / 3 * 0.5,
        "tv": 0.25,
        "js": sum(a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b)) for a, b in zip(P, Q, strict=True)) / 2,
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_batches_weigh_by_answers_not_by_batch() -> None:
    one, two = batch(), batch()
    assert evaluate_answers(nn.Linear(1, 1), START, [one, two], POLICY) == pytest.approx(
        evaluate_answers(nn.Linear(1, 1), START, [one], POLICY) | {"n/chosen": 4, "n/rejected": 4, "n/gentle": 2}
    )


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="at least one"):
        evaluate_answers(nn.Linear(1, 1), START, [], POLICY)


def rows() -> list[Row]:
    prompt = (Message("user", (ImageSlot(), "what is this")),)
    colours, words = ["red", "green", "blue"], ["a red thing", "green", "it is blue and it is large"]
    return [
        Row(
            prompt=prompt, chosen=word, rejected=("no",), gentle="a thing", images=(Image.new("RGB", (32, 32), colour),)
        )
        for colour, word in zip(colours, words, strict=True)
    ]


@pytest.fixture
def llava(tiny: Callable[[str], Path]) -> tuple[Any, Any]:
    path = tiny("llava")
    return load_policy(path, dtype="float32"), load_processor(path)


def test_a_model_has_not_moved_from_itself(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    engine = make_engine()
    model.train()
    found = evaluate_rows(model, FrozenCopy(deepcopy(model), engine), processor, rows(), engine, batch_size=2)
    still = [name for name in found if name.startswith("delta")] + ["tv", "js"]
    assert {name: found[name] for name in still} == pytest.approx(dict.fromkeys(still, 0.0), abs=1e-6)
    assert found["reward_accuracy"] == 0.5
    assert (found["n/chosen"], found["n/rejected"], found["n/gentle"]) == (3, 3, 3)
    assert 0 < found["entropy"] < math.log(model.config.text_config.vocab_size)
    assert model.training


def test_batch_size_does_not_matter_once_the_model_moved(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    engine = make_engine()
    start = FrozenCopy(deepcopy(model), engine)
    with torch.no_grad():
        head: Tensor = model.get_output_embeddings().weight
        head.mul_(1.5)
    one, three = (evaluate_rows(model, start, processor, rows(), engine, batch_size=size) for size in (1, 3))
    assert one == pytest.approx(three, abs=1e-5)
    assert one["tv"] > 0.001
