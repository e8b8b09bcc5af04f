"""Influence: what one SGD step on one row does to the answers of another, predicted by A K G and measured."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cwdpo.analysis.theory import apply_belief_geometry, cw_dpo_pulls, sft_pull, token_residual
from cwdpo.batch import AnswerLogprobs, Batch, Role, eval_mode, on_device, places_of
from cwdpo.config.recipe import CoolingConfig, Stage2Config
from cwdpo.cooling import cooling_weight
from cwdpo.engine import Engine
from cwdpo.engine.forward import LogitTransform, capture_head_input, find_logit_transform
from cwdpo.engine.layout import one_row_an_answer
from cwdpo.losses import cw_dpo_loss

LossName: TypeAlias = Literal["sft", "dpo", "cw_dpo"]

Direction: TypeAlias = Mapping[str, Tensor]
"""A vector in parameter space: one tensor a trainable parameter, by the parameter's name in the model."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of one row that the step is taken on."""

    loss: LossName
    """``sft``: ``-lbar(y_w)``; ``dpo`` and ``cw_dpo``: the mean over the row's rejected answers."""

    beta: float = Stage2Config.beta
    floor: float = 0.0
    """l_floor, nats per token; it and what follows only for ``cw_dpo``."""

    temperature: float = CoolingConfig.temperature
    detach: bool = CoolingConfig.detach

    def weight(self, rejected_mean: Tensor) -> Tensor:
        """``(pairs,)`` w_c of the rejected answers."""
        if self.loss != "cw_dpo":
            return torch.ones_like(rejected_mean)
        weight = cooling_weight(rejected_mean, self.floor, temperature=self.temperature)
        return weight.detach() if self.detach else weight

    def value(self, batch: Batch, now: AnswerLogprobs, start: Tensor) -> Tensor:
        """``()`` loss of a batch of one row; start is ``(A,)`` log pi_ref."""
        chosen, rejected = _answers_of_row(batch)
        if self.loss == "sft":
            return -now.mean[chosen].mean()
        logratio = now.total - start
        pairs = logratio[chosen].expand(len(rejected))
        return cw_dpo_loss(pairs, logratio[rejected], self.weight(now.mean[rejected]), beta=self.beta).mean()

    def pulls(self, batch: Batch, now: AnswerLogprobs, start: Tensor) -> Tensor:
        """``(A,)`` pull of the loss on each answer, so that G is the pull times the token residual."""
        chosen, rejected = _answers_of_row(batch)
        lengths = now.mask.sum(dim=-1)
        pulls = torch.zeros_like(now.total)
        if self.loss == "sft":
            pulls[chosen] = sft_pull(lengths[chosen])
            return pulls
        logratio = now.total - start
        weight = self.weight(now.mean[rejected])
        flows = self.loss == "cw_dpo" and not self.detach
        flow = weight * (1 - weight) / (self.temperature * lengths[rejected]) if flows else 0.0
        up, down = cw_dpo_pulls(
            logratio[chosen].expand(len(rejected)), logratio[rejected], weight, beta=self.beta, flow=flow
        )
        pulls[chosen], pulls[rejected] = up.mean(), down / len(rejected)
        return pulls


@dataclass(frozen=True)
class Influence:
    """What a step on one row did to one answer of another. All changes are nats per token."""

    trained: int
    observed: int
    """Positions of the row that the step was taken on, and of the one that was looked at; may be the same."""

    role: str
    """``chosen``, ``rejected`` or ``gentle``."""

    eta: float
    """Learning rate of the SGD step."""

    predicted: float
    measured: float
    """Delta lbar by -eta A K G, and after the step."""

    predicted_top: float
    measured_top: float
    """The same for the tokens that were most likely before the step, instead of the answer's: this shows squeezing."""


@dataclass(frozen=True)
class Check:
    """A K G beside plain autograd, which must give the same number: -eta <grad lbar, grad L>."""

    decomposed: float
    autograd: float
    scale: float
    """eta ||grad lbar|| ||grad L||, the most that either could be."""


class InfluenceReport(NamedTuple):
    """Everything that :func:`measure_influence` found."""

    influences: list[Influence]
    checks: list[Check]


@dataclass(frozen=True)
class MeanKernel:
    """Between answers, averaged over tokens and the vocabulary: k_ou = mean over t, s, v of K[t, v, s, v].

    How much what moves one answer's logits moves another's in the same direction.
    """

    mean: Tensor
    error: Tensor
    """``(A, A)`` estimates in float64, and their standard errors, from the scatter over the random directions."""

    @property
    def cosine(self) -> Tensor:
        """``(A, A)`` each kernel over the geometric mean of the two answers' own: 1 for an answer with itself."""
        own = self.mean.diagonal().sqrt()
        return self.mean / (own[:, None] * own)


class AnswerLogits(nn.Module):
    """A bare model, or one with adapters, as a function from a batch to the logits that predict its answer tokens.

    The rows are laid out as the plain engine lays them out; unlike the engine, it keeps all logits, so use it on small
    batches. J below is the Jacobian of these logits in the trainable parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._transform: LogitTransform | None = None

    def forward(self, batch: Batch) -> Tensor:
        """``(n, V)`` logits of the batch's answer tokens, in the order of ``answer_ids[answer_mask]``."""
        model: Any = self.model
        layout = one_row_an_answer(batch)
        head = model.get_output_embeddings()
        with capture_head_input(head) as captured:
            output = model(**layout.inputs, use_cache=False, logits_to_keep=layout.keep)
        if self._transform is None:
            self._transform = find_logit_transform(model, captured, head, output.logits)
        (hidden,) = captured.hidden
        return self._transform(head(layout.in_order(hidden)))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that a training step would change, by name; tied ones once."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def pull_back(self, logits: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """``J^T weights``: the parameter direction along which ``sum(weights * logits)`` grows.

        The ``(n, V)`` logits, or any other tensor of the model's that has the weights' shape, come with their graph.
        """
        parameters = self.trainable()
        found = torch.autograd.grad(
            logits, list(parameters.values()), weights.to(logits), allow_unused=True, materialize_grads=True
        )
        return dict(zip(parameters, found, strict=True))

    @torch.no_grad()
    def push_forward(self, batch: Batch, direction: Direction) -> tuple[Tensor, Tensor]:
        """``(n, V)`` logits and ``(n, V)`` ``J direction``, their rate of change along it, in one forward pass."""
        forward_mode: Any = forward_ad  # torch leaves its functions without types
        with forward_mode.dual_level():
            dual = {
                f"model.{name}": forward_mode.make_dual(value.detach(), direction[name].to(value.dtype))
                for name, value in self.trainable().items()
            }
            primal, tangent = forward_mode.unpack_dual(torch.func.functional_call(self, dual, (batch,)))
        return primal, torch.zeros_like(primal) if tangent is None else tangent


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

    What trains are the parameters with ``requires_grad``; in float32, else rounding hides small changes. All batches
    have one row, the trained ones with the answers that the loss needs. ``start`` gives ``(A,)`` log pi_ref, by default
    the model's own, as at the first step of stage 2; every eta is tried from the same weights; ``on_row`` is called
    with how many trained rows are done.

    Influences are in the order trained, eta, observed, answer; each trained row has a check on one observed row, which
    take turns.
    """
    logits = AnswerLogits(model)
    report = InfluenceReport([], [])
    with eval_mode(model), differentiable_attention():
        before = [_look(logits, batch) for batch in observed]
        for number, row in enumerate(trained):
            direction, gradient = _directions(logits, engine, objective, row, start)
            rates = []
            for batch, seen in zip(observed, before, strict=True):
                z, change = logits.push_forward(batch, direction)
                rates.append(_read(apply_belief_geometry(z, change), batch, seen.top))  # A K G
            turn = number % len(observed)
            report.checks.append(_check(logits, engine, observed[turn], gradient, rates[turn].lbar, etas[0]))
            for eta in etas:
                with _sgd_step(logits, gradient, eta):
                    after = [_look(logits, batch, seen.top) for batch, seen in zip(observed, before, strict=True)]
                for batch, rate, old, new in zip(observed, rates, before, after, strict=True):
                    report.influences.extend(_of_answers(row, batch, eta, rate, old, new))
            on_row(number + 1)
    return report


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


def projected_kernel(
    logits: AnswerLogits,
    batches: Sequence[Batch],
    *,
    num_directions: int,
    seed: int = 0,
    on_direction: Callable[[int], None] = lambda done: None,
) -> MeanKernel:
    r"""Estimate the kernel between all answers of some batches, by forward passes along random directions.

        k_ou = E_r [ (1/V) sum_v (mean_t (J r)_tv) (mean_s (J r)_sv) ],    r_i = +1 or -1, each half of the time

    Without bias, at any size of vocabulary and model; the standard error falls with the root of ``num_directions``.
    Rows and columns are the batches' answers, one batch after the other; ``on_direction`` gets how many are done.
    It shows which answers are near each other; :func:`measure_influence` has A K G without an estimate.
    """
    if num_directions < 2:
        raise ValueError(f"num_directions must be at least 2 for an error estimate, got {num_directions}. Use 64.")
    generator = torch.Generator().manual_seed(seed)
    total = squares = torch.zeros((), dtype=torch.float64)
    for done in range(1, num_directions + 1):
        direction = {  # signs drawn on the CPU, so that every device gets the same
            name: (torch.randint(0, 2, value.shape, generator=generator) * 2 - 1).to(value)
            for name, value in logits.trainable().items()
        }
        rates = torch.cat([_mean_rates(logits, batch, direction) for batch in batches]).cpu()
        found = rates @ rates.T / rates.shape[1]
        total, squares = total + found, squares + found**2
        on_direction(done)
    mean = total / num_directions
    variance = (squares / num_directions - mean**2).clamp(min=0) / (num_directions - 1)
    return MeanKernel(mean, variance.sqrt())


_MOST_ELEMENTS = 2**28
"""Values of one Jacobian, or of one kernel (1 GB in fp32)."""


def exact_kernel(logits: AnswerLogits, observed: Batch, trained: Batch) -> Tensor:
    r"""The whole kernel between the tokens of two batches, by one backward pass a logit.

        K[t, v, s, w] = <d z_tv / d theta, d z_sw / d theta>        arXiv 2407.10490, proposition 1

    ``(n_o, V, n_u, V)``, for ``n_o`` observed and ``n_u`` trained answer tokens; theta are the trainable parameters,
    those of the adapters where there are some. An error where it would not fit in memory.
    """
    right = logits(trained)
    _check_size(right.numel() * sum(value.numel() for value in logits.trainable().values()), "the Jacobian")
    columns = torch.cat(list(_jacobian(logits, right))).T
    left = logits(observed)
    _check_size(left.numel() * right.numel(), "the kernel")
    kernel = torch.cat([rows @ columns for rows in _jacobian(logits, left)])
    return kernel.reshape(*left.shape, *right.shape)


def differentiable_attention() -> AbstractContextManager[None]:
    """Attention by plain matrix products inside: fused kernels have no forward-mode derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def inner(one: Direction, other: Direction) -> float:
    """Inner product of two parameter directions, added up in double precision."""
    return sum(float((value.double() * other[name].double()).sum()) for name, value in one.items())


def answer_of_token(batch: Batch) -> Tensor:
    """``(n,)`` which answer each row of the logits belongs to."""
    return batch["answer_mask"].nonzero()[:, 0]


class _Seen(NamedTuple):
    """Mean log-probs of a batch's answers, or their rates of change.

    ``(A,)`` of the answers' own tokens, ``(A,)`` of the tokens ``top``, and these: ``(n,)`` the most likely token at
    each place before any step.
    """

    lbar: Tensor
    top_lbar: Tensor
    top: Tensor


def _answers_of_row(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions of the chosen answer, ``(1,)``, and of the rejected ones."""
    if len(batch["row_index"]) != 1:
        raise ValueError(f"expected a batch of one row, got {len(batch['row_index'])}. Collate rows one by one.")
    device = batch["answer_ids"].device
    return on_device(places_of(batch, Role.CHOSEN), device), on_device(places_of(batch, Role.REJECTED), device)


def _directions(
    logits: AnswerLogits, engine: Engine, objective: Objective, row: Batch, start: Callable[[Batch], Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss gradient twice: as J_u^T G, with G from its formula, and by autograd through the loss itself."""
    now = engine.logprobs(logits.model, row)
    first = now.total.detach() if start is None else start(row)
    gradient = logits.pull_back(objective.value(row, now, first), torch.ones(()))
    z = logits(row)
    with torch.no_grad():
        pulls = objective.pulls(row, now, first)[answer_of_token(row)]
        residual = pulls[:, None] * token_residual(z, row["answer_ids"][row["answer_mask"]])
    return logits.pull_back(z, residual), gradient


@torch.no_grad()
def _look(logits: AnswerLogits, batch: Batch, top: Tensor | None = None) -> _Seen:
    logprobs = logits(batch).log_softmax(dim=-1)
    return _read(logprobs, batch, logprobs.argmax(dim=-1) if top is None else top)


def _read(values: Tensor, batch: Batch, top: Tensor) -> _Seen:
    """Means over each answer's tokens of ``(n, V)`` values, at the answer's tokens and at the most likely ones."""
    answer, mask = answer_of_token(batch), batch["answer_mask"]
    lengths = mask.sum(dim=-1)

    def mean(tokens: Tensor) -> Tensor:
        picked = values.gather(1, tokens[:, None])[:, 0].double()
        return picked.new_zeros(len(lengths)).index_add(0, answer, picked) / lengths

    return _Seen(mean(batch["answer_ids"][mask]), mean(top), top)


def _check(
    logits: AnswerLogits, engine: Engine, observed: Batch, gradient: Direction, rates: Tensor, eta: float
) -> Check:
    """The first answer's A K G, and the inner product of two gradients that knows nothing of A, K and G."""
    lbar = logits.pull_back(engine.logprobs(logits.model, observed).mean[0], torch.ones(()))
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


def _mean_rates(logits: AnswerLogits, batch: Batch, direction: Direction) -> Tensor:
    """``(A, V)`` rates of the logits along the direction, averaged over each answer's tokens."""
    _, rates = logits.push_forward(batch, direction)
    lengths = batch["answer_mask"].sum(dim=-1)
    sums = rates.new_zeros(len(lengths), rates.shape[1], dtype=torch.float64)
    return sums.index_add(0, answer_of_token(batch), rates.double()) / lengths[:, None]


def _jacobian(logits: AnswerLogits, z: Tensor) -> Iterator[Tensor]:
    """Rows of the Jacobian, ``(rows, P)`` a time, row ``t * V + v`` for logit v of token t."""
    parameters = list(logits.trainable().values())
    unit = torch.eye(z.numel(), dtype=z.dtype, device=z.device)
    for chosen in torch.split(unit, 128):
        weights = chosen.reshape(-1, *z.shape)
        found = torch.autograd.grad(z, parameters, weights, retain_graph=True, is_grads_batched=True, allow_unused=True)
        rows = [
            chosen.new_zeros(len(chosen), value.numel()) if part is None else part.reshape(len(chosen), -1)
            for part, value in zip(found, parameters, strict=True)
        ]
        yield torch.cat(rows, dim=1)


def _check_size(elements: int, what: str) -> None:
    if elements > _MOST_ELEMENTS:
        raise ValueError(
            f"{what} would have {elements:,} values, more than {_MOST_ELEMENTS:,}. Train adapters alone, use shorter "
            f"answers, or estimate it with projected_kernel. ({math.ceil(elements / _MOST_ELEMENTS)} times too large.)"
        )
