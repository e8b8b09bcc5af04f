"""Stage 1 trainer: supervised fine-tuning that also looks at gentle negatives."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from cwdpo.batch import Batch, Detail, Role, masked_mean, on_device, places_of
from cwdpo.data.collate import RowDataset
from cwdpo.engine.layout import select_answers
from cwdpo.errors import ConfigError
from cwdpo.losses import constrained_sft_loss, smoothed_nll, smoothed_sft_loss
from cwdpo.records import StepMetric
from cwdpo.trainers.accepting import take_arguments
from cwdpo.trainers.arguments import SmoothSFTConfig
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.steps import WHOLE, Step


class SmoothSFTTrainer(AnswerTrainer):
    """Stage 1 of CW-DPO: smooth the base policy before preferences push on it.

    Rows without a gentle negative take part with their chosen answer alone. NLLs are per token, so that long answers
    do not outweigh short ones and both terms have the same unit.

    The hinge of objective ``constrained`` looks at the mean over the gentle negatives of one batch, on all ranks. So
    ``eval_loss`` depends on ``per_device_eval_batch_size`` and on the number of ranks: compare runs that have the same
    of both. The other metrics do not depend on them.
    """

    roles: Sequence[Role] = (Role.CHOSEN, Role.GENTLE)
    required: Sequence[Role] = (Role.CHOSEN,)
    predicted: Mapping[Role, str] = {Role.CHOSEN: "logps_mean/chosen", Role.GENTLE: "logps_mean/gentle"}
    args: SmoothSFTConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path | None = None,
        args: SmoothSFTConfig | None = None,
        **trainer: Any,
    ) -> None:
        """Arguments are named as TRL names them.

        Args:
            model: the policy, or where to load it from; a ConfigError without one.
            args: settings.
            trainer: the other arguments of :class:`AnswerTrainer`: ``train_dataset``, ``eval_dataset``,
                ``processing_class``, ``compute_metrics``, ``peft_config``, ``callbacks``, ``optimizers``, ``engine``.
        """
        args = args or SmoothSFTConfig(output_dir="smooth-sft")
        args = take_arguments(args, SmoothSFTConfig, trainer="SmoothSFTTrainer")
        if args.objective == "plain":
            self.roles = (Role.CHOSEN,)
        super().__init__(model, args, **trainer)
        if self.compute_metrics is None:
            self._refuse_missing_gentle()

    def _refuse_missing_gentle(self) -> None:
        """Refuse to choose the best model by gentle negatives that no evaluated row has."""
        wanted = (self.args.metric_for_best_model or "").removeprefix("eval_")
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for name, rows in sets.items() if self.args.eval_strategy != "no" else ():
            if rows is None or wanted != (f"{name}_logps_mean/gentle" if name else "logps_mean/gentle"):
                continue
            if all(rows[i][1].gentle is None for i in range(len(rows))):
                raise ConfigError(
                    f"metric_for_best_model is {self.args.metric_for_best_model!r}, but no evaluated row has a "
                    "`gentle` answer. Add some, or write eval_logps_mean/chosen.",
                    setting="metric_for_best_model",
                )

    def check_rows(self, rows: RowDataset) -> None:
        """See :meth:`AnswerTrainer.check_rows`."""
        if Role.GENTLE in self.roles and not any(rows[i][1].gentle for i in range(len(rows))):
            raise ConfigError(
                "train_dataset: no row has a `gentle` negative (an answer with one minor error), which the objective "
                "needs. Make them: `cwdpo negatives gentle ROWS --out NEW`, or write objective='plain'."
            )

    @classmethod
    def metrics_of(cls, args: SmoothSFTConfig) -> Sequence[StepMetric]:
        gentle: tuple[StepMetric, ...] = () if args.objective == "plain" else ("logps_mean/gentle",)
        return ("logps/chosen", "logps_mean/chosen", "entropy", *gentle)

    def batch_loss(self, model: nn.Module, batch: Batch, step: Step = WHOLE) -> tuple[Tensor, dict[StepMetric, Tensor]]:
        smoothed = self.args.objective == "smoothed"
        want: list[Detail] = ["chosen_entropy", "uniform"] if smoothed else ["chosen_entropy"]
        now = self.engine.logprobs(model, batch, want=want)
        nll = -now.mean
        chosen, gentle = (on_device(places_of(batch, role), nll.device) for role in (Role.CHOSEN, Role.GENTLE))
        shares = {
            "chosen_share": step.share_of(batch, Role.CHOSEN),
            "negative_share": step.share_of(batch, Role.GENTLE),
        }
        if smoothed:
            assert now.uniform is not None
            negative = smoothed_nll(now.token[gentle], now.uniform[gentle], now.mask[gentle], epsilon=self.args.epsilon)
            loss = smoothed_sft_loss(nll[chosen], negative, penalty=self.args.penalty, **shares)
        else:
            of_batch = self._mean_over_ranks(nll[gentle]) if step.gentle_nll is None else step.gentle_nll
            loss = constrained_sft_loss(
                nll[chosen],
                nll[gentle],
                penalty=self.args.penalty,
                ceiling=self.args.ceiling,
                batch_negative_nll=of_batch,
                **shares,
            )
        assert now.entropy is not None
        return loss, {
            "logps/chosen": now.total[chosen],
            "logps_mean/chosen": now.mean[chosen],
            "logps_mean/gentle": now.mean[gentle],
            "entropy": masked_mean(now.entropy, now.mask)[chosen],
        }

    def look_ahead(self, model: nn.Module, parts: Sequence[Batch], step: Step) -> Step:
        """See :meth:`AnswerTrainer.look_ahead`. The hinge looks at a mean over all parts, so their gentle negatives
        are computed once more, before, and without gradient."""
        if self.args.objective != "constrained":
            return step
        values = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for part in parts:
                gentle = places_of(part, Role.GENTLE)
                # where there is none, the other answers take their place: ranks must make equally many passes
                asked = select_answers(part, gentle if len(gentle) else range(len(part["roles"])))
                means = self.engine.logprobs(model, asked).mean
                values.append(-means[: len(gentle)])
        return replace(step, gentle_nll=self._mean_over_ranks(torch.cat(values)))

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        """``()`` mean over the values of all ranks, which may have different numbers of them, even none."""
        parts = torch.stack([values.detach().sum(), values.new_full((), len(values))])
        total, count = self.accelerator.reduce(parts, reduction="sum").unbind()
        mean: Tensor = total / count
        return mean
