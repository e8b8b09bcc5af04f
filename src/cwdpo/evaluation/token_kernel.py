"""K, the empirical neural tangent kernel of the logits: exact where it is small, by random directions where not."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwdpo.batch import Batch
from cwdpo.evaluation.answer_logits import AnswerLogits, Direction, answer_of_token

_MOST_ELEMENTS = 2**28
"""Values of one Jacobian, or of one kernel (1 GB in fp32)."""

_ROWS_AT_ONCE = 128


def exact_kernel(logits: AnswerLogits, observed: Batch, trained: Batch) -> Tensor:
    r"""The whole kernel between the tokens of two batches, by one backward pass a logit.

        K[t, v, s, w] = <d z_tv / d theta, d z_sw / d theta>        arXiv 2407.10490, proposition 1

    Args:
        logits: the model; theta are its trainable parameters (those of the adapters, where it has some).
        observed: ``n_o`` answer tokens.
        trained: ``n_u`` answer tokens.

    Returns:
        ``(n_o, V, n_u, V)``.

    Raises:
        ValueError: it would not fit in memory.
    """
    right = logits(trained)
    _check_size(right.numel() * _num_parameters(logits), "the Jacobian")
    columns = torch.cat(list(_jacobian(logits, right))).T
    left = logits(observed)
    _check_size(left.numel() * right.numel(), "the kernel")
    kernel = torch.cat([rows @ columns for rows in _jacobian(logits, left)])
    return kernel.reshape(*left.shape, *right.shape)


@dataclass(frozen=True)
class MeanKernel:
    """The kernel between answers, averaged over their tokens and the vocabulary.

        k_ou = mean over t, s, v of K[t, v, s, v]

    How much what moves one answer's logits moves another's in the same direction.
    """

    mean: Tensor
    """``(A, A)`` estimates, float64."""

    error: Tensor
    """``(A, A)`` their standard errors, from the scatter over the random directions."""

    @property
    def cosine(self) -> Tensor:
        """``(A, A)`` each kernel over the geometric mean of the two answers' own: 1 for an answer with itself."""
        own = self.mean.diagonal().sqrt()
        return self.mean / (own[:, None] * own)


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

    Without bias, at any size of vocabulary and model; the standard error falls with the root of ``num_directions`` and
    is returned. Good for asking which answers are near each other; the products A K G need no estimate, see
    :mod:`cwdpo.evaluation.influence`.

    Args:
        logits: the model.
        batches: their answers, one batch after the other, are the kernel's rows and columns.
        num_directions: random directions, at least 2.
        seed: they follow from it.
        on_direction: told how many are done.
    """
    if num_directions < 2:
        raise ValueError(f"num_directions must be at least 2 for an error to be told, got {num_directions}. Use 64.")
    generator = torch.Generator().manual_seed(seed)
    total = squares = torch.zeros((), dtype=torch.float64)
    for done in range(1, num_directions + 1):
        direction = {name: _signs(value, generator) for name, value in logits.trainable().items()}
        rates = torch.cat([_mean_rates(logits, batch, direction) for batch in batches]).cpu()
        found = rates @ rates.T / rates.shape[1]
        total, squares = total + found, squares + found**2
        on_direction(done)
    mean = total / num_directions
    variance = (squares / num_directions - mean**2).clamp(min=0) / (num_directions - 1)
    return MeanKernel(mean, variance.sqrt())


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
    for chosen in torch.split(unit, _ROWS_AT_ONCE):
        found = torch.autograd.grad(
            z,
            parameters,
            chosen.reshape(-1, *z.shape),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
        yield torch.cat(
            [
                chosen.new_zeros(len(chosen), value.numel()) if part is None else part.reshape(len(chosen), -1)
                for part, value in zip(found, parameters, strict=True)
            ],
            dim=1,
        )


def _signs(value: Tensor, generator: torch.Generator) -> Tensor:
    """Random +1 and -1, drawn on the CPU so that every device gets the same."""
    signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
    return signs.to(device=value.device, dtype=value.dtype)


def _num_parameters(logits: AnswerLogits) -> int:
    return sum(value.numel() for value in logits.trainable().values())


def _check_size(elements: int, what: str) -> None:
    if elements > _MOST_ELEMENTS:
        raise ValueError(
            f"{what} would have {elements:,} values, more than {_MOST_ELEMENTS:,}. Train adapters alone, use shorter "
            f"answers, or estimate it with projected_kernel. ({math.ceil(elements / _MOST_ELEMENTS)} times too large.)"
        )
