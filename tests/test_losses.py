"""The objectives of both stages against arithmetic done by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from cwdpo.losses import constrained_sft_loss, cw_dpo_loss, smoothed_nll, smoothed_sft_loss


def by_hand(delta_w: float, delta_l: float, w_c: float, beta: float) -> float:
    """-log(1 / (1 + e^-z)) on Python floats, arranged so that e^ never overflows."""
    z = beta * (delta_w - w_c * delta_l)
    return math.log1p(math.exp(-abs(z))) + max(-z, 0.0)


def loss(delta_w: float, delta_l: float, w_c: float, beta: float = 0.1) -> float:
    pair = (torch.tensor([v], dtype=torch.float64) for v in (delta_w, delta_l, w_c))
    return cw_dpo_loss(*pair, beta=beta).item()


nats = st.floats(-500, 500)


@settings(deadline=None)
@given(delta_w=nats, delta_l=nats, w_c=st.floats(0, 1), beta=st.floats(0.01, 5))
def test_matches_arithmetic_by_hand(delta_w: float, delta_l: float, w_c: float, beta: float) -> None:
    assert loss(delta_w, delta_l, w_c, beta) == pytest.approx(by_hand(delta_w, delta_l, w_c, beta), rel=1e-9)


def test_known_value() -> None:
    assert loss(2.0, -4.0, 0.5, beta=0.25) == pytest.approx(math.log(1 + 1 / math.e))  # z = 1


def test_step_zero_costs_log_two() -> None:
    assert loss(0.0, 0.0, 0.3) == pytest.approx(math.log(2))


def test_fully_cooled_negative_has_no_pull() -> None:
    rejected = torch.tensor([3.0], requires_grad=True)
    cw_dpo_loss(torch.ones(1), rejected, torch.zeros(1), beta=0.1).sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == 0.0


def test_the_pull_on_the_loser_is_scaled_by_its_weight() -> None:
    """d loss / d Delta_l = beta * w_c * sigmoid(-z), so half the weight pulls by half at the same margin."""
    beta, w_c = 0.4, 0.25
    rejected = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([w_c], dtype=torch.float64)
    cw_dpo_loss(torch.zeros(1, dtype=torch.float64), rejected, weight, beta=beta).sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == pytest.approx(beta * w_c / 2)


def test_gradient_is_exact() -> None:
    torch.manual_seed(0)
    args = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda w, l, c: cw_dpo_loss(w, l, c, beta=0.3), args)  # noqa: E741


@pytest.mark.parametrize("shape", [(2, 7), ()])
def test_per_token_input_is_refused_with_advice(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"AnswerLogprobs\.total"):
        cw_dpo_loss(torch.ones(shape), torch.ones(shape), torch.ones(shape), beta=0.1)


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
