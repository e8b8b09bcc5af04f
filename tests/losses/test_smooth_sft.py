"""The objectives of stage 1 against arithmetic done by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from cwdpo.losses import constrained_sft_loss, smoothed_nll, smoothed_sft_loss

nlls = st.lists(st.floats(0, 30), min_size=1, max_size=6)


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None)
@given(chosen=nlls, negative=nlls, penalty=st.floats(0, 3), ceiling=st.floats(0, 20))
def test_constrained_matches_arithmetic(
    chosen: list[float], negative: list[float], penalty: float, ceiling: float
) -> None:
    expected = statistics.fmean(chosen) + penalty * max(0.0, ceiling - statistics.fmean(negative))
    loss = constrained_sft_loss(tensor(chosen), tensor(negative), penalty=penalty, ceiling=ceiling)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_idle_hinge_has_no_gradient_and_open_hinge_pushes_nll_up() -> None:
    def gradient(values: list[float]) -> list[float]:
        negative = tensor(values).requires_grad_()
        constrained_sft_loss(tensor([1.0]), negative, penalty=0.5, ceiling=2.0).backward()
        assert negative.grad is not None
        return negative.grad.tolist()

    assert gradient([1.0, 5.0]) == [0.0, 0.0]  # mean 3: above C, though one of them is below
    assert gradient([1.0, 2.0]) == [-0.25, -0.25]  # mean 1.5: open, for both alike


def test_the_whole_batch_decides_whether_the_hinge_is_open() -> None:
    """Two ranks with means 1 and 4: the batch mean 2.5 is above C = 2, so the first rank's hinge stays shut."""
    alone = constrained_sft_loss(tensor([1.0]), tensor([1.0]), penalty=0.5, ceiling=2.0)
    together = constrained_sft_loss(
        tensor([1.0]), tensor([1.0]), penalty=0.5, ceiling=2.0, batch_negative_nll=tensor([2.5])[0]
    )
    assert alone.item() == pytest.approx(1.5)
    assert together.item() == pytest.approx(1.0)


def test_ranks_average_to_the_whole_batch() -> None:
    """The mean of the ranks' losses is the loss of the batch they share."""
    chosen, negative = [[1.0, 2.0], [3.0, 4.0]], [[0.5, 1.5], [1.0, 2.0]]
    mean = tensor([1.25])[0]
    ranks = [
        constrained_sft_loss(tensor(c), tensor(n), penalty=0.7, ceiling=2.0, batch_negative_nll=mean).item()
        for c, n in zip(chosen, negative, strict=True)
    ]
    whole = constrained_sft_loss(
        tensor([*chosen[0], *chosen[1]]), tensor([*negative[0], *negative[1]]), penalty=0.7, ceiling=2.0
    )
    assert statistics.fmean(ranks) == pytest.approx(whole.item())


def test_without_negatives_both_are_plain_sft() -> None:
    none = torch.empty(0, dtype=torch.float64)
    assert constrained_sft_loss(tensor([1.0, 2.0]), none, penalty=9.0, ceiling=9.0).item() == 1.5
    assert smoothed_sft_loss(tensor([1.0, 2.0]), none, penalty=9.0).item() == 1.5


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_smoothed_nll_is_torch_cross_entropy_with_label_smoothing(epsilon: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 11, dtype=torch.float64), torch.randint(0, 11, (2, 3))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = logits.log_softmax(-1)
    token, uniform = logprobs.gather(-1, targets[..., None])[..., 0], logprobs.mean(-1)
    ours = smoothed_nll(token, uniform, mask, epsilon=epsilon)
    for row, length in enumerate([3, 2]):
        torchs = cross_entropy(logits[row, :length], targets[row, :length], label_smoothing=epsilon)
        assert ours[row].item() == pytest.approx(torchs.item())


def test_smoothed_loss_by_hand() -> None:
    assert smoothed_sft_loss(tensor([1.0, 3.0]), tensor([2.0, 6.0]), penalty=0.25).item() == pytest.approx(2 + 0.25 * 4)


def test_smoothing_leaves_a_finite_optimum() -> None:
    """At eps > 0 the best distribution puts 1 - eps + eps / V on the target; more confidence costs again."""

    def cost(p: float, epsilon: float = 0.2, size: int = 5) -> float:
        token, rest = math.log(p), math.log((1 - p) / (size - 1))
        uniform = (token + (size - 1) * rest) / size
        args = (torch.tensor([[token]]), torch.tensor([[uniform]]), torch.tensor([[True]]))
        return smoothed_nll(*args, epsilon=epsilon).item()

    best = 1 - 0.2 + 0.2 / 5
    assert cost(best) < min(cost(best - 0.05), cost(best + 0.05))


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    chosen, negative = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda c, n: constrained_sft_loss(c, n, penalty=0.3, ceiling=5.0), (chosen, negative)
    )
    assert torch.autograd.gradcheck(lambda c, n: smoothed_sft_loss(c, n, penalty=0.3), (chosen, negative))


@pytest.mark.parametrize("epsilon", [-0.1, 1.0])
def test_bad_settings_are_refused(epsilon: float) -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="epsilon"):
        smoothed_nll(one[None], one[None], one[None].bool(), epsilon=epsilon)
    with pytest.raises(ValueError, match="objective: plain"):
        constrained_sft_loss(one, one, penalty=-1.0, ceiling=1.0)
    with pytest.raises(ValueError, match="objective: plain"):
        smoothed_sft_loss(one, one, penalty=-1.0)
