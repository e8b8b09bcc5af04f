"""Stage 1 trainer: supervised fine-tuning that also looks at gentle negatives."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Role, masked_mean
from cwdpo.engine.layout import select_answers
from cwdpo.losses import constrained_sft_loss, smoothed_nll, smoothed_sft_loss
from cwdpo.trainers.arguments import SmoothSFTConfig
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.steps import share


class SmoothSFTTrainer(AnswerTrainer):
    """Stage 1 of CW-DPO: smooth the base policy before preferences push on it.

    Rows without a gentle negative take part with their chosen answer alone. NLLs are per token, so that long answers
    do not outweigh short ones and both terms have the same unit.
    """

    roles: Sequence[Role] = (Role.CHOSEN, Role.GENTLE)
    required: Sequence[Role] = (Role.CHOSEN,)
    args: SmoothSFTConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        args: SmoothSFTConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        **trainer: Any,
    ) -> None:
        """Arguments are named as TRL names them; rows may be in any form that ``cwdpo check`` reads."""
        args = args or SmoothSFTConfig(output_dir="smooth-sft")
        if args.objective == "plain":
            self.roles = (Role.CHOSEN,)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **trainer,
        )
        self._hinge_over_parts: Tensor | None = None
        """Mean NLL of the gentle negatives of a batch that is computed in parts."""

    def batch_loss(
        self, model: nn.Module, batch: Batch, *, of_step: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`AnswerTrainer.batch_loss`."""
        smoothed = self.args.objective == "smoothed"
        want: list[Detail] = ["entropy", "uniform"] if smoothed else ["entropy"]
        logprobs = self.engine.logprobs(model, batch, want=want)
        chosen, gentle = batch["roles"] == Role.CHOSEN, batch["roles"] == Role.GENTLE
        assert logprobs.entropy is not None
        seen = {
            "logps/chosen": logprobs.total[chosen],
            "logps_mean/chosen": logprobs.mean[chosen],
            "logps_mean/gentle": logprobs.mean[gentle],
            "entropy": masked_mean(logprobs.entropy, logprobs.mask)[chosen],
        }
        shares = {
            "chosen_share": share(batch, Role.CHOSEN, of_step),
            "negative_share": share(batch, Role.GENTLE, of_step),
        }
        return self._objective(logprobs, chosen, gentle, shares), seen

    def prepare_parts(self, model: nn.Module, parts: Sequence[Batch]) -> None:
        """See :meth:`StepTrainer.prepare_parts`. The hinge looks at a mean over all parts, so their gentle negatives
        are computed once more, before, and without gradient."""
        if self.args.objective != "constrained":
            return
        values = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for part in parts:
                gentle = part["roles"] == Role.GENTLE
                # where there is none, some other answer takes its place: ranks must make equally many passes
                asked = select_answers(part, (gentle if gentle.any() else ~gentle).nonzero()[:, 0])
                means = self.engine.logprobs(model, asked).mean
                values.append(-means[asked["roles"] == Role.GENTLE])
        self._hinge_over_parts = self._mean_over_ranks(torch.cat(values))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """See :meth:`StepTrainer.training_step`."""
        self._hinge_over_parts = None
        return super().training_step(model, inputs, num_items_in_batch)

    def _objective(
        self, logprobs: AnswerLogprobs, chosen: Tensor, gentle: Tensor, shares: dict[str, Tensor | float]
    ) -> Tensor:
        nll = -logprobs.mean
        if self.args.objective == "smoothed":
            assert logprobs.uniform is not None
            negative = smoothed_nll(
                logprobs.token[gentle], logprobs.uniform[gentle], logprobs.mask[gentle], epsilon=self.args.epsilon
            )
            return smoothed_sft_loss(nll[chosen], negative, penalty=self.args.penalty, **shares)
        whole = self._hinge_over_parts
        return constrained_sft_loss(
            nll[chosen],
            nll[gentle],
            penalty=self.args.penalty,
            ceiling=self.args.ceiling,
            batch_negative_nll=self._mean_over_ranks(nll[gentle]) if whole is None else whole,
            **shares,
        )

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        """``()`` mean over the values of all ranks, which may have different numbers of them, even none."""
        parts = torch.stack([values.detach().sum(), values.new_tensor(len(values))])
        total, count = self.accelerator.reduce(parts, reduction="sum").unbind()
        mean: Tensor = total / count
        return mean
