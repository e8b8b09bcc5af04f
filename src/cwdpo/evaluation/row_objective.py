"""The loss of one row, as one number and as its residual: what the decomposition of learning dynamics starts from."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cwdpo.batch import AnswerLogprobs, Batch, Role
from cwdpo.cooling import cooling_weight
from cwdpo.dynamics import cw_dpo_pulls, sft_pull
from cwdpo.losses import cw_dpo_loss

LossName: TypeAlias = Literal["sft", "dpo", "cw_dpo"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of one row that the step is taken on."""

    loss: LossName
    """``sft``: ``-lbar(y_w)``; ``dpo`` and ``cw_dpo``: the mean over the row's rejected answers."""

    beta: float = 0.1
    floor: float = 0.0
    """l_floor, nats per token; only for ``cw_dpo``."""

    temperature: float = 0.3
    """tau, nats per token."""

    detach: bool = True
    """Treat w_c as a constant in the backward pass."""

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


def _answers_of_row(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions of the chosen answer, ``(1,)``, and of the rejected ones."""
    if len(batch["row_index"]) != 1:
        raise ValueError(f"expected a batch of one row, got {len(batch['row_index'])}. Collate rows one by one.")
    return (batch["roles"] == Role.CHOSEN).nonzero()[:, 0], (batch["roles"] == Role.REJECTED).nonzero()[:, 0]
