"""Influence: what one SGD step on one row does to the answers of another, predicted by A K G and observed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cwdpo.batch import Batch, Role
from cwdpo.dynamics import apply_belief_geometry, token_residual
from cwdpo.engine import Engine
from cwdpo.eval_mode import eval_mode
from cwdpo.evaluation.answer_logits import AnswerLogits, Direction, answer_of_token, differentiable_attention, inner
from cwdpo.evaluation.row_objective import Objective


@dataclass(frozen=True)
class Influence:
    """What a step on one row did to one answer of another. All changes are nats per token."""

    trained: int
    """Position of the row that the step was taken on."""

    observed: int
    """Position of the row that was looked at; may be the same."""

    role: str
    """``chosen``, ``rejected`` or ``gentle``."""

    eta: float
    """Learning rate of the SGD step."""

    predicted: float
    """Delta lbar by -eta A K G."""

    measured: float
    """Delta lbar after the step."""

    predicted_top: float
    """The same for the tokens that were likeliest before the step, in place of the answer's: where squeezing shows."""

    measured_top: float


@dataclass(frozen=True)
class Check:
    """A K G beside plain autograd, which must give the same number: -eta <grad lbar, grad L>."""

    decomposed: float
    autograd: float
    scale: float
    """eta ||grad lbar|| ||grad L||, the most that either could be."""


@dataclass(frozen=True)
class InfluenceReport:
    """Everything that :func:`measure_influence` found."""

    influences: list[Influence]
    checks: list[Check]


def measure_influence(
    model: nn.Module,
    engine: Engine,
    objective: Objective,
    trained: Sequence[Batch],
    observed: Sequence[Batch],
    *,
    start: Callable[[Batch], Tensor] | None = None,
    etas: Sequence[float] = (1e-3,),
    on_row: Callable[[int], None] = lambda done: None,
) -> InfluenceReport:
    """Predict and take one SGD step on each trained row, and look at every answer of every observed row.

    The prediction is exact to first order at any size: G goes back through the trained row's graph (J_u^T G) and
    forward through the observed row's (J_o J_u^T G = K G, for the whole vocabulary), and A makes it a change of
    log-probs. K is never built. The step itself takes the gradient of the loss as training does. Weights are put back
    after every step, bit for bit.

    Args:
        model: what trains are its parameters with ``requires_grad``; in float32, else rounding hides small changes.
        engine: computes the log-probs that the loss is made of.
        objective: the loss.
        trained: batches of one row each, with the answers that the loss needs.
        observed: batches of one row each.
        start: ``(A,)`` log pi_ref of a batch; by default the model's own, as at the first step of stage 2.
        etas: learning rates, each tried from the same weights.
        on_row: told how many trained rows are done.

    Returns:
        Influences in the order trained, eta, observed, answer; and a check for each trained row, on one observed row
        that takes its turn.
    """
    logits = AnswerLogits(model)
    report = InfluenceReport([], [])
    with eval_mode(model), differentiable_attention():
        before = [_look(logits, batch) for batch in observed]
        for number, row in enumerate(trained):
            direction, gradient = _directions(logits, engine, objective, row, start)
            rates = [_rates(logits, batch, direction, seen.top) for batch, seen in zip(observed, before, strict=True)]
            turn = number % len(observed)
            report.checks.append(_check(logits, engine, observed[turn], gradient, rates[turn].lbar, etas[0]))
            for eta in etas:
                with _sgd_step(logits, gradient, eta):
                    after = [_look(logits, batch, seen.top) for batch, seen in zip(observed, before, strict=True)]
                for batch, rate, old, new in zip(observed, rates, before, after, strict=True):
                    report.influences.extend(_of_answers(row, batch, eta, rate, old, new))
            on_row(number + 1)
    return report


@dataclass(frozen=True)
class _Seen:
    """Mean log-probs of a batch's answers, or their rates of change."""

    lbar: Tensor
    """``(A,)`` of the answers' own tokens."""

    top_lbar: Tensor
    """``(A,)`` of the tokens ``top``."""

    top: Tensor
    """``(n,)`` the likeliest token at each place before any step."""


@torch.no_grad()
def _look(logits: AnswerLogits, batch: Batch, top: Tensor | None = None) -> _Seen:
    logprobs = logits(batch).log_softmax(dim=-1)
    return _read(logprobs, batch, logprobs.argmax(dim=-1) if top is None else top)


def _rates(logits: AnswerLogits, batch: Batch, direction: Direction, top: Tensor) -> _Seen:
    """A K G: how fast each answer's mean log-prob changes along the direction J_u^T G."""
    z, change = logits.push_forward(batch, direction)
    return _read(apply_belief_geometry(z, change), batch, top)


def _read(values: Tensor, batch: Batch, top: Tensor) -> _Seen:
    """Means over each answer's tokens of ``(n, V)`` values, at the answer's tokens and at the likeliest."""
    answer, mask = answer_of_token(batch), batch["answer_mask"]
    lengths = mask.sum(dim=-1)

    def mean(tokens: Tensor) -> Tensor:
        picked = values.gather(1, tokens[:, None])[:, 0].double()
        return picked.new_zeros(len(lengths)).index_add(0, answer, picked) / lengths

    return _Seen(mean(batch["answer_ids"][mask]), mean(top), top)


def _directions(
    logits: AnswerLogits,
    engine: Engine,
    objective: Objective,
    row: Batch,
    start: Callable[[Batch], Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss gradient twice: as J_u^T G, with G from its formula, and by autograd through the loss itself."""
    now = engine.logprobs(logits.model, row)
    first = now.total.detach() if start is None else start(row)
    gradient = _gradient(logits, objective.value(row, now, first))
    z = logits(row)
    with torch.no_grad():
        pulls = objective.pulls(row, now, first)[answer_of_token(row)]
        residual = pulls[:, None] * token_residual(z, row["answer_ids"][row["answer_mask"]])
    return logits.pull_back(z, residual), gradient


def _gradient(logits: AnswerLogits, value: Tensor) -> dict[str, Tensor]:
    """Gradient of a number in the trainable parameters."""
    parameters = logits.trainable()
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def _check(
    logits: AnswerLogits, engine: Engine, observed: Batch, gradient: Direction, rates: Tensor, eta: float
) -> Check:
    """The first answer's A K G, and the inner product of two gradients that knows nothing of A, K and G."""
    lbar = _gradient(logits, engine.logprobs(logits.model, observed).mean[0])
    scale = eta * (inner(lbar, lbar) * inner(gradient, gradient)) ** 0.5
    return Check(decomposed=-eta * rates[0].item(), autograd=-eta * inner(lbar, gradient), scale=scale)


@contextmanager
def _sgd_step(logits: AnswerLogits, gradient: Direction, eta: float) -> Iterator[None]:
    """The model after one step inside; its own weights again afterwards."""
    parameters = logits.trainable()
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    for name, value in parameters.items():
        value.grad = gradient[name].to(value.dtype)
    torch.optim.SGD(list(parameters.values()), lr=eta).step()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.grad = None
                value.copy_(kept[name])


def _of_answers(row: Batch, batch: Batch, eta: float, rate: _Seen, old: _Seen, new: _Seen) -> Iterator[Influence]:
    for answer, role in enumerate(batch["roles"].tolist()):
        yield Influence(
            trained=int(row["row_index"][0]),
            observed=int(batch["row_index"][0]),
            role=Role(role).name.lower(),
            eta=eta,
            predicted=-eta * rate.lbar[answer].item(),
            measured=(new.lbar - old.lbar)[answer].item(),
            predicted_top=-eta * rate.top_lbar[answer].item(),
            measured_top=(new.top_lbar - old.top_lbar)[answer].item(),
        )


def correlation(influences: Sequence[Influence]) -> float:
    """Pearson correlation of predicted and measured changes; nan where one of them does not vary.

    Example:
        >>> one = Influence(0, 0, "chosen", 0.1, predicted=1.0, measured=1.0, predicted_top=0.0, measured_top=0.0)
        >>> correlation([one])
        nan
    """
    predicted = torch.tensor([one.predicted for one in influences], dtype=torch.float64)
    measured = torch.tensor([one.measured for one in influences], dtype=torch.float64)
    if len(influences) < 2:
        return float("nan")
    predicted, measured = predicted - predicted.mean(), measured - measured.mean()
    return float((predicted @ measured) / (predicted.norm() * measured.norm()))


def slope(influences: Sequence[Influence]) -> float:
    """Least-squares slope, through the origin, of measured on predicted changes: 1 where the first order is all."""
    squares = sum(one.predicted**2 for one in influences)
    return sum(one.predicted * one.measured for one in influences) / squares if squares else float("nan")
