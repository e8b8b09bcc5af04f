"""The decomposition on tiny models of real classes: against the whole kernel, plain autograd, and real steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import disc_data
from tiny import NAMES
from torch import Tensor

from cwdpo.analysis.influence import (
    AnswerLogits,
    Influence,
    LossName,
    Objective,
    answer_of_token,
    correlation,
    differentiable_attention,
    exact_kernel,
    inner,
    measure_influence,
    projected_kernel,
    slope,
)
from cwdpo.analysis.theory import contract, mean_logprob_direction, token_residual
from cwdpo.batch import Batch, Role
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.engine import make_engine
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy, load_processor

LOSSES: tuple[LossName, ...] = ("sft", "dpo", "cw_dpo")

Setup = Callable[..., tuple[Any, list[Batch]]]


def objective(loss: LossName, **settings: Any) -> Objective:
    return Objective(loss=loss, **{"beta": 0.3, "floor": -6.0, "temperature": 0.5} | settings)


def start_of(batch: Batch) -> Tensor:
    """log pi_ref that is not the policy's, so that the margin is not 0."""
    return -4.0 * batch["answer_mask"].sum(dim=-1) - torch.from_numpy(batch["roles"])


@pytest.fixture
def setup(tiny: Callable[[str], Path], tmp_path: Path) -> Setup:
    """``setup("llava", short=..., lora=...)``: a model, and batches of one row each."""

    def make(name: str, *, short: bool = False, lora: bool = False, number: int = 3) -> tuple[Any, list[Batch]]:
        records = disc_data.records(number, text_only_every=1 if short else 3)
        if short:
            for record, (chosen, rejected) in zip(records, [("A", "no"), ("b", "2")], strict=False):
                record |= {"chosen": chosen, "rejected": rejected, "prompt": "hi"}
        model: Any = load_policy(tiny(name), dtype="float32", freeze_vision=False)
        if lora:
            torch.manual_seed(0)
            model = add_lora(model, r=2, alpha=4)
            for parameter_name, value in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(value, std=0.2)
        collate = AnswerCollator(Encoder(load_processor(tiny(name))), roles=(Role.CHOSEN, Role.REJECTED))
        rows = read_rows(disc_data.write(tmp_path / name, records))
        return model, [collate([(i, row)]) for i, row in enumerate(rows)]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_predicted_changes_are_the_measured_ones(setup: Setup, name: str) -> None:
    model, batches = setup(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for loss in LOSSES:
        found = measure_influence(
            model, make_engine(), objective(loss), batches, batches, start=start_of, etas=(1e-4, 1.0)
        )
        small = [one for one in found.influences if one.eta == 1e-4]
        others = [one for one in small if one.trained != one.observed]
        assert len(small) == 3 * 3 * 2
        assert correlation(small) > 0.999
        assert correlation(others) > 0.999
        assert slope(small) == pytest.approx(1.0, abs=0.02)
        assert slope([one for one in found.influences if one.eta == 1.0]) < 0.7  # far beyond the first order
        for check in found.checks:
            assert check.decomposed == pytest.approx(check.autograd, rel=1e-5, abs=1e-6 * check.scale)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_the_whole_kernel_gives_the_same_number(setup: Setup, loss: LossName) -> None:
    """A K G with every entry of K built, beside <grad lbar, grad L> of autograd through engine and loss."""
    model, (observed, trained, *_) = setup("llava", short=True, lora=True)
    engine, logits, wanted = make_engine(), AnswerLogits(model.eval()), objective(loss)
    with differentiable_attention():
        kernel = exact_kernel(logits, observed, trained).double()
        now = engine.logprobs(model, trained)
        pulls = wanted.pulls(trained, now, start_of(trained)).detach()
        z_u, z_o = logits(trained).detach().double(), logits(observed).detach().double()
        targets = trained["answer_ids"][trained["answer_mask"]]
        residual = pulls[answer_of_token(trained)][:, None] * token_residual(z_u, targets)
        chosen = answer_of_token(observed) == 0
        direction = torch.zeros_like(z_o)
        direction[chosen] = mean_logprob_direction(z_o[chosen], observed["answer_ids"][observed["answer_mask"]][chosen])
        decomposed = contract(direction, kernel, residual, eta=1.0).item()
        parameters = list(logits.trainable().values())
        of_loss = torch.autograd.grad(wanted.value(trained, now, start_of(trained)), parameters)
        of_lbar = torch.autograd.grad(engine.logprobs(model, observed).mean[0], parameters)
        plain = -sum((a.double() * b.double()).sum().item() for a, b in zip(of_lbar, of_loss, strict=True))
    assert decomposed == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_random_directions_estimate_the_kernel_and_their_error(setup: Setup) -> None:
    model, (one, other, *_) = setup("llava", short=True, lora=True)
    logits = AnswerLogits(model.eval())
    with differentiable_attention():
        exact = torch.einsum("tvsv->ts", exact_kernel(logits, one, other)).double() / 357
        guess = projected_kernel(logits, [one, other], num_directions=48)
        few, again = (projected_kernel(logits, [one, other], num_directions=12) for _ in range(2))
    of_one, of_other = answer_of_token(one), answer_of_token(other)
    expected = torch.tensor(
        [[exact[of_one == i][:, of_other == j].mean().item() for j in range(2)] for i in range(2)]
    ).double()
    off = (guess.mean[:2, 2:] - expected).abs()
    assert (off < 4 * guess.error[:2, 2:]).all()
    assert (guess.error[:2, 2:] < 0.4 * expected.abs()).all()
    assert 1.2 < (few.error / guess.error).mean() < 3.3  # the root of four, itself uncertain
    assert torch.equal(few.mean, again.mean)
    assert guess.cosine.diagonal().tolist() == pytest.approx([1.0] * 4)


def test_logits_are_the_engines(setup: Setup) -> None:
    model, (batch, *_) = setup("qwen2_5_vl")
    logits = AnswerLogits(model.eval())
    expected = make_engine().logprobs(model, batch).token[batch["answer_mask"]]
    found = logits(batch).log_softmax(dim=-1).gather(1, batch["answer_ids"][batch["answer_mask"]][:, None])[:, 0]
    torch.testing.assert_close(found, expected)


def test_forward_and_back_are_each_others_transpose(setup: Setup) -> None:
    model, (batch, *_) = setup("idefics3", lora=True)
    logits = AnswerLogits(model.eval())
    with differentiable_attention():
        z = logits(batch)
        weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
        back = logits.pull_back(z, weights)
        direction = {name: value + 1.0 for name, value in back.items()}
        same, forth = logits.push_forward(batch, direction)
    torch.testing.assert_close(same, z)
    assert (weights.double() * forth.double()).sum().item() == pytest.approx(inner(direction, back), rel=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_pulls_of_a_row_with_two_negatives(setup: Setup, detach: bool) -> None:
    """Autograd of the loss in each answer's log-prob, over the number of tokens where the mean is meant."""
    model, (batch, *_) = setup("llava")
    two = batch | {
        "roles": np.array([0, 1, 1]),
        "prompt_index": np.zeros(3, dtype=np.int64),
        "lengths": batch["lengths"][[0, 1, 1]],
        "answer_ids": batch["answer_ids"][[0, 1, 1]].clone(),
        "answer_mask": batch["answer_mask"][[0, 1, 1]],
        "keys": [*batch["keys"][:2], "another"],
    }
    two["answer_ids"][2, 0] += 1
    now = make_engine().logprobs(model.eval(), two)  # type: ignore[arg-type]
    token = now.token.detach().requires_grad_()
    again = type(now)(token=token, mask=now.mask)
    start = torch.tensor([-50.0, -60.0, -70.0])
    wanted = objective("cw_dpo", detach=detach)
    wanted.value(two, again, start).backward()  # type: ignore[arg-type]
    assert token.grad is not None
    expected = -token.grad[:, 0]
    torch.testing.assert_close(wanted.pulls(two, again, start).detach(), expected)  # type: ignore[arg-type]


def test_correlation_and_slope_by_hand() -> None:
    def influence(predicted: float, measured: float) -> Influence:
        return Influence(0, 1, "chosen", 0.1, predicted, measured, 0.0, 0.0)

    found = [influence(1.0, 2.0), influence(2.0, 2.0), influence(3.0, 5.0)]
    assert correlation(found) == pytest.approx(3 / (2 * 6) ** 0.5)
    assert slope(found) == pytest.approx((2 + 4 + 15) / 14)


def test_a_kernel_too_large_and_a_batch_of_two_rows_are_refused(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (batch, *_) = setup("llava")
    logits = AnswerLogits(model)
    monkeypatch.setattr("cwdpo.analysis.influence._MOST_ELEMENTS", 2**20)
    with pytest.raises(ValueError, match="projected_kernel"):
        exact_kernel(logits, batch, batch)
    with pytest.raises(ValueError, match="at least 2"):
        projected_kernel(logits, [batch], num_directions=1)
    now = make_engine().logprobs(model, batch)
    with pytest.raises(ValueError, match="one row"):
        objective("dpo").value(batch | {"row_index": torch.tensor([0, 1])}, now, now.total)  # type: ignore[arg-type]
