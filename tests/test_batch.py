"""Totals and means of answers' log-probs, and what padding must not do."""

import pytest
import torch

from cwdpo.batch import AnswerLogprobs, masked_mean

TOKEN = torch.tensor([[-1.0, -2.0, -6.0], [-4.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_total_and_mean() -> None:
    logprobs = AnswerLogprobs(token=TOKEN, mask=MASK)
    assert logprobs.total.tolist() == [-9.0, -4.0]
    assert logprobs.mean.tolist() == [-3.0, -4.0]


@pytest.mark.parametrize("rubbish", [7.0, float("nan"), float("inf")])
def test_padding_never_counts(rubbish: float) -> None:
    values = torch.where(MASK, TOKEN, rubbish).requires_grad_()
    masked_mean(values, MASK).sum().backward()
    assert masked_mean(values, MASK).tolist() == [-3.0, -4.0]
    assert values.grad is not None
    assert values.grad.tolist() == [[pytest.approx(1 / 3)] * 3, [1.0, 0.0, 0.0]]
