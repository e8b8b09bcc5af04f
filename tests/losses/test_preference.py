"""The family of preference losses against arithmetic done by hand, and against TRL's where TRL has them."""

import math
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import DPOTrainer

from cwdpo.config.recipe import LossParameters, PreferenceLoss
from cwdpo.losses import LOSSES, Pairs, preference_loss
from cwdpo.losses.preference import mean_reward, on_policy_weight, reward_margin, wpo_loss

OWN: dict[str, dict[str, float]] = {
    "robust": {"noise": 0.2},
    "simpo": {"margin": 0.3},
    "dpop": {"penalty": 5.0},
    "cal_dpo": {"weight": 0.25},
    "beta_dpo": {"scale": 0.6, "gap": 0.8},
    "ld_dpo": {"alpha": 0.4},
    "bco": {"shift": 0.35},
    "anchor": {"reward": 0.15},
}
"""A value of each loss's own arguments that differs from its default."""


def softplus(x: float) -> float:
    """-log sigmoid(-x) on Python floats."""
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, beta: float, one: dict[str, float]) -> float:
    """Each loss as its paper writes it, with w_c Delta_l for Delta_l; on Python floats."""
    w, l, c = one["chosen"], one["rejected"], one["weight"]  # noqa: E741
    margin, target = w - c * l, 0.5 / beta
    if name == "sigmoid":
        return softplus(-beta * margin)
    if name == "robust":
        return (0.8 * softplus(-beta * margin) - 0.2 * softplus(beta * margin)) / 0.6
    if name == "ipo":
        return (w / one["chosen_length"] - c * l / one["rejected_length"] - target) ** 2
    if name == "simpo":
        return softplus(0.3 - beta * one["chosen_mean"] + beta * c * one["rejected_mean"])
    if name == "dpop":
        return softplus(-beta * (margin - (5 * -w if w < 0 else 0)))
    if name == "cal_dpo":
        return softplus(-margin) + 0.25 * ((w - target) ** 2 + (c * l + target) ** 2)
    if name == "beta_dpo":
        return softplus(-1.48 * beta * margin)
    if name == "wpo":
        return one["on_policy"] * softplus(-beta * margin)
    if name == "ld_dpo":
        long_w, long_l = w - one["chosen_public"], l - one["rejected_public"]
        return softplus(-beta * (one["chosen_public"] + 0.4 * long_w - c * (one["rejected_public"] + 0.4 * long_l)))
    if name == "apo_zero":
        return 1 - sigmoid(beta * w) + sigmoid(beta * c * l)
    if name == "apo_down":
        return sigmoid(beta * w) + 1 - sigmoid(beta * margin)
    if name == "bco":
        return softplus(0.35 - beta * w) + softplus(beta * c * l - 0.35)
    if name == "nll":
        return -one["chosen_mean"]
    if name == "anchor":
        return softplus(0.15 - beta * w)
    assert name == "image"
    return softplus(-beta * (w - one["cropped"])) if one["has_image"] else 0.0


nats, means, lengths = st.floats(-40, 40), st.floats(-9, 0), st.integers(1, 60).map(float)
some_pair = st.fixed_dictionaries(
    {
        "chosen": nats,
        "rejected": nats,
        "weight": st.floats(0, 1),
        "chosen_mean": means,
        "rejected_mean": means,
        "chosen_length": lengths,
        "rejected_length": lengths,
        "on_policy": st.floats(0, 2),
        "chosen_public": nats,
        "rejected_public": nats,
        "cropped": nats,
        "has_image": st.booleans(),
    }
)


def pairs_of(*ones: dict[str, float]) -> Pairs:
    made = Pairs(**{name: torch.tensor([one[name] for one in ones], dtype=torch.float64) for name in Pairs._fields})
    assert made.has_image is not None
    return made._replace(has_image=made.has_image > 0)


def random_pairs(number: int, seed: int = 0) -> Pairs:
    rng = random.Random(seed)
    ones = []
    for _ in range(number):
        one = {name: rng.uniform(-3, 3) for name in Pairs._fields}
        one |= {"weight": rng.random(), "on_policy": rng.random()}
        one |= {name: -rng.random() for name in ("chosen_mean", "rejected_mean")}
        one |= {name: float(rng.randint(2, 9)) for name in ("chosen_length", "rejected_length")}
        ones.append(one)
    return pairs_of(*ones)


def test_every_name_of_a_recipe_is_a_loss() -> None:
    assert tuple(LOSSES) == get_args(PreferenceLoss)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=60)
@given(one=some_pair, beta=st.floats(0.05, 2.5))
def test_matches_arithmetic_by_hand(name: PreferenceLoss, one: dict[str, float], beta: float) -> None:
    found = LOSSES[name](pairs_of(one), beta=beta, **OWN.get(name, {}))
    assert found.shape == (1,)
    assert found.item() == pytest.approx(by_hand(name, beta, one), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_exact_and_reach_no_setting(name: PreferenceLoss) -> None:
    pairs = random_pairs(4)
    free = [value.clone().requires_grad_() for value in (pairs.chosen, pairs.rejected, pairs.weight)]
    means = [value.clone().requires_grad_() for value in (pairs.chosen_mean, pairs.rejected_mean)]

    def loss(chosen: Tensor, rejected: Tensor, weight: Tensor, chosen_mean: Tensor, rejected_mean: Tensor) -> Tensor:
        own = pairs._replace(
            chosen=chosen, rejected=rejected, weight=weight, chosen_mean=chosen_mean, rejected_mean=rejected_mean
        )
        return LOSSES[name](own, beta=0.7, **OWN.get(name, {}))

    assert torch.autograd.gradcheck(loss, (*free, *means))


@pytest.mark.parametrize("name", LOSSES)
def test_a_fully_cooled_rejected_answer_has_no_pull(name: PreferenceLoss) -> None:
    pairs = random_pairs(3)
    sides = {side: getattr(pairs, side).clone().requires_grad_() for side in ("rejected", "rejected_mean")}
    sides["rejected_public"] = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    others = {side: getattr(pairs, side).clone().requires_grad_() for side in ("chosen", "chosen_mean")}
    cooled = pairs._replace(**sides, **others, weight=torch.zeros(3, dtype=torch.float64))
    LOSSES[name](cooled, beta=0.5, **OWN.get(name, {})).sum().backward()
    for side in sides.values():
        assert side.grad is None or not side.grad.any()


@pytest.mark.parametrize("name", ["sigmoid", "robust", "dpop", "beta_dpo", "wpo", "ld_dpo", "bco", "anchor"])
def test_the_loss_of_step_zero(name: PreferenceLoss) -> None:
    """Where policy and reference are one, all rewards are 0, and so is every margin."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    start = Pairs(zero, zero, one, -one, -one, one, one, on_policy=one, chosen_public=zero, rejected_public=zero)
    own = {**OWN.get(name, {}), **({"shift": 0.0} if name == "bco" else {"reward": 0.0} if name == "anchor" else {})}
    assert LOSSES[name](start, beta=0.3, **own).item() == pytest.approx(math.log(2) * (2 if name == "bco" else 1))


def test_where_they_are_dpo() -> None:
    """Each variant at the value of its own setting that leaves DPO."""
    pairs = random_pairs(5)._replace(on_policy=torch.ones(5, dtype=torch.float64))
    dpo = LOSSES["sigmoid"](pairs, beta=0.4)
    plain: list[tuple[PreferenceLoss, dict[str, float]]] = [
        ("robust", {"noise": 0.0}),
        ("dpop", {"penalty": 0.0}),
        ("beta_dpo", {"scale": 0.0, "gap": 3.0}),
        ("beta_dpo", {"scale": 0.6, "gap": 0.0}),
        ("wpo", {}),
        ("ld_dpo", {"alpha": 1.0}),
    ]
    for name, own in plain:
        torch.testing.assert_close(LOSSES[name](pairs, beta=0.4, **own), dpo)


def test_beta_follows_the_gap_without_gradient_and_stays_positive() -> None:
    pairs = random_pairs(3)
    gap = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = LOSSES["beta_dpo"](pairs, beta=0.1, scale=0.5, gap=gap)
    torch.testing.assert_close(loss, LOSSES["sigmoid"](pairs, beta=0.2))
    assert not loss.requires_grad
    lowest = LOSSES["beta_dpo"](pairs, beta=0.1, scale=0.5, gap=-1e3)
    torch.testing.assert_close(lowest, LOSSES["sigmoid"](pairs, beta=1e-3))


def test_what_is_averaged_over_steps() -> None:
    pairs = pairs_of({**dict.fromkeys(Pairs._fields, 1.0), "chosen": 3.0, "rejected": -2.0, "weight": 0.5})
    assert reward_margin(pairs, beta=0.1).item() == pytest.approx(0.1 * (3 + 1))
    assert mean_reward(pairs, beta=0.1).item() == pytest.approx(0.1 * (3 - 1) / 2)


def test_on_policy_weight_by_hand() -> None:
    """Two tokens of an answer under (0.5, 0.3, 0.2) and (0.9, 0.1): each log pi - log sum pi^2, their mean, exp."""
    token = torch.tensor([[math.log(0.3), math.log(0.9), 7.0]])
    collision = torch.tensor([[math.log(0.25 + 0.09 + 0.04), math.log(0.81 + 0.01), 7.0]])
    found = on_policy_weight(token, collision, torch.tensor([[True, True, False]]))
    assert found.item() == pytest.approx(math.sqrt(0.3 / 0.38 * 0.9 / 0.82))


def test_a_weighted_sum_by_hand() -> None:
    """MPO: preference, quality and generation, each with its weight; what belongs to other losses is left."""
    pairs = random_pairs(2)
    one = {name: getattr(pairs, name)[1].item() for name in Pairs._fields}
    weights: dict[PreferenceLoss, float] = {"sigmoid": 0.8, "bco": 0.2, "nll": 1.0}
    parameters = {**vars(LossParameters()), "bco_shift": 0.35, "beta_dpo_gap": 9.0}
    found = preference_loss(pairs, weights, beta=0.3, parameters=parameters)
    expected = sum(weight * by_hand(name, 0.3, one) for name, weight in weights.items())
    assert found[1].item() == pytest.approx(expected)


def test_one_loss_is_itself_to_the_last_bit() -> None:
    pairs = Pairs(**{name: value.float() for name, value in random_pairs(50)._asdict().items()})
    assert torch.equal(
        preference_loss(pairs, {"sigmoid": 1.0}, beta=0.1, parameters={}), LOSSES["sigmoid"](pairs, beta=0.1)
    )


def test_what_is_missing_is_named() -> None:
    bare = random_pairs(1)._replace(on_policy=None, chosen_public=None, cropped=None)
    with pytest.raises(ValueError, match="on_policy_weight"):
        wpo_loss(bare, beta=0.1)
    with pytest.raises(ValueError, match="shared lengths"):
        LOSSES["ld_dpo"](bare, beta=0.1, alpha=0.5)
    with pytest.raises(ValueError, match="under crops"):
        LOSSES["image"](bare, beta=0.1)


# TRL keeps its formulas inside its trainer, so its loss is asked of a trainer that has nothing but log-probs.


class Answers:
    """Log-probs of three pairs under a policy and a reference, with random logits; in pair i the chosen answer comes
    with 2 + i tokens, the rejected one with 5 - i."""

    def __init__(self, equal_lengths: bool = False) -> None:
        generator = torch.Generator().manual_seed(4)
        long = [4, 4, 4] if equal_lengths else [2, 3, 4, 5, 4, 3]
        self.lengths = torch.tensor(long if len(long) == 6 else long * 2)
        width = int(self.lengths.max())
        self.mask = torch.arange(width) < self.lengths[:, None]
        ids = torch.randint(0, 7, (6, width, 1), generator=generator)
        logprobs = torch.randn(2, 6, width, 7, generator=generator, dtype=torch.float64).mul(2).log_softmax(dim=-1)
        policy, reference = (each.gather(-1, ids)[..., 0] * self.mask for each in logprobs)
        self.policy, self.reference = policy, reference
        self.collision = (2 * logprobs[0]).logsumexp(dim=-1)

    def pairs(self) -> Pairs:
        token = self.policy - self.reference
        ratio, mean = token.sum(-1), self.policy.sum(-1) / self.lengths
        likeness = on_policy_weight(self.policy, self.collision, self.mask)
        shared = torch.minimum(self.lengths[:3], self.lengths[3:]).repeat(2)
        public = (token * (torch.arange(token.shape[1]) < shared[:, None])).sum(-1)
        return Pairs(
            ratio[:3], ratio[3:], torch.ones(3, dtype=torch.float64), mean[:3], mean[3:],
            self.lengths[:3], self.lengths[3:], likeness[:3] * likeness[3:], public[:3], public[3:],
        )  # fmt: skip

    def trls(self, kind: str, beta: float, **settings: Any) -> float:
        """TRL's loss of the batch, with one prompt token before each answer."""

        def outputs(token: Tensor) -> Any:
            rest = dict.fromkeys(("entropy", "mean_logits"), torch.zeros_like(token))
            found = {"log_probs": token, "log_sum_sq_probs": self.collision, "is_top1": token > 0}
            return SimpleNamespace(**found, **rest)

        model: Any = torch.nn.Identity()
        model.is_gradient_checkpointing = model.is_activation_checkpointing = False
        given: dict[str, Any] = {
            "model": model,
            "ref_model": lambda **inputs: outputs(self.reference),
            "accelerator": SimpleNamespace(device="cpu", gather=torch.clone, gather_for_metrics=torch.clone),
            "args": SimpleNamespace(activation_checkpointing_kwargs=None, gradient_checkpointing_kwargs=None),
            "aux_loss_enabled": False,
            "precompute_ref_logps": False,
            "f_divergence_type": "reverse_kl",
            "loss_types": [kind],
            "loss_weights": [1.0],
            "beta": beta,
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "use_weighting": False,
            "_metrics": {"train": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
        }
        mask = torch.cat([torch.zeros(6, 1, dtype=torch.int64), self.mask.long()], dim=1)
        inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
        trainer: Any = SimpleNamespace(**given | settings)
        loss: Tensor = DPOTrainer._compute_loss(trainer, lambda **_: outputs(self.policy), inputs, False)
        return loss.item()


TRLS: list[tuple[PreferenceLoss, str, dict[str, float], dict[str, Any]]] = [
    ("sigmoid", "sigmoid", {}, {}),
    ("robust", "robust", {"noise": 0.2}, {"label_smoothing": 0.2}),
    ("ipo", "ipo", {}, {}),
    ("wpo", "sigmoid", {}, {"use_weighting": True}),
    ("ld_dpo", "sigmoid", {"alpha": 0.3}, {"ld_alpha": 0.3}),
    ("apo_zero", "apo_zero", {}, {}),
    ("apo_down", "apo_down", {}, {}),
    ("bco", "bco_pair", {"shift": 0.0}, {}),
]


@pytest.mark.parametrize(("ours", "theirs", "own", "settings"), TRLS)
def test_trl_has_the_same_loss(
    ours: PreferenceLoss, theirs: str, own: dict[str, float], settings: dict[str, Any]
) -> None:
    answers = Answers()
    assert LOSSES[ours](answers.pairs(), beta=0.4, **own).mean().item() == pytest.approx(
        answers.trls(theirs, 0.4, **settings), rel=1e-9
    )


def test_trl_has_the_same_nll_where_answers_are_equally_long() -> None:
    """TRL averages over the batch's tokens, RPO over each answer's."""
    answers = Answers(equal_lengths=True)
    assert LOSSES["nll"](answers.pairs(), beta=0.4).mean().item() == pytest.approx(answers.trls("sft", 0.4), rel=1e-9)
