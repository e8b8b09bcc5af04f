"""Stage 2 trainer. The Trainer owns the loop; this class answers one question: what does this batch cost?"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_utils import TrainOutput

from cwdpo.batch import Batch, Role, masked_mean
from cwdpo.cooling import cooling_weight, measure_floor
from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.losses import cw_dpo_loss
from cwdpo.models.parts import fingerprint
from cwdpo.negatives.verify import Judge
from cwdpo.on_policy.callback import OnPolicy
from cwdpo.reference import FrozenCopy, Reference, ReferenceCache, StartingAdapter
from cwdpo.trainers.arguments import CWDPOConfig
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.reference_pass import MeanLogprobs, OpeningPass
from cwdpo.trainers.steps import share


class CWDPOTrainer(AnswerTrainer):
    """Stage 2: fine-tune with cooling-weighted DPO against a frozen reference.

    The reference is the policy as it is when training starts, or ``ref_model``. A row with several negatives counts
    once: its loss is the mean over them.
    """

    roles: Sequence[Role] = (Role.CHOSEN, Role.REJECTED)
    required: Sequence[Role] = (Role.CHOSEN, Role.REJECTED)
    args: CWDPOConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        ref_model: PreTrainedModel | None = None,
        args: CWDPOConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        judge: Judge | None = None,
        also_right: Sequence[Row] = (),
        **trainer: Any,
    ) -> None:
        """Arguments are named as TRL's ``DPOTrainer`` names them; ``judge`` verifies on-policy negatives.

        ``also_right`` are rows that this stage does not train on; a right answer in them is no negative either.
        """
        super().__init__(
            model,
            args or CWDPOConfig(output_dir="cw-dpo"),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **trainer,
        )
        self.ref_model: nn.Module | None = ref_model and nn.Module.to(ref_model, self.args.device)
        self.also_right = also_right
        self.floor: float | None = None
        """l_floor in nats per token, once it is measured."""
        self.reference: Reference | None = None
        """What the policy is measured against, once it is open."""
        self.on_policy: OnPolicy | None = None
        negatives = self.args.negatives()
        if negatives is not None:
            directory = Path(self.args.on_policy_dir or f"{self.args.output_dir}/negatives")
            self.on_policy = OnPolicy(self, negatives, directory, judge=judge)
            self.add_callback(self.on_policy)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """See :meth:`AnswerTrainer.train`. Measures the floor and the reference before the first step."""
        self.measure_reference()  # before a checkpoint is loaded: both belong to the model that stage 2 starts from
        try:
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            if self.on_policy is not None:
                self.on_policy.close()
        if self.on_policy is not None and self.on_policy.failure is not None:
            raise UserError(self.on_policy.failure)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See ``Trainer.evaluate``."""
        self.measure_reference()
        return super().evaluate(*args, **kwargs)

    def measure_reference(self) -> None:
        """Fix what stage 2 is measured against: the reference's log-probs and the cooling floor. Done once."""
        if self.reference is not None:
            return
        measures_floor = self.cools and isinstance(self.args.cooling_floor, str)
        source = self.ref_model or self._policy
        means: MeanLogprobs = {Role.REJECTED: torch.empty(0), Role.GENTLE: torch.empty(0)}
        if self.args.reference == "cached":
            cache = self._cache(source)
            means = OpeningPass(self).run(source, cache)
            self.reference = cache
            if self.on_policy is not None:
                self.on_policy.measure_with(self._live_reference())
        else:
            self.reference = self._live_reference()
        if measures_floor and (self.args.reference == "live" or self.ref_model is not None):
            means = OpeningPass(self).run(self._policy, ReferenceCache.in_memory())  # the floor is always the policy's
        if self.cools:
            gentle, rejected = means[Role.GENTLE], means[Role.REJECTED]
            self.floor = measure_floor(self.args.cooling_floor, rejected=rejected, gentle=gentle)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """See ``Trainer.get_batch_samples``. Training sees on-policy negatives, evaluation the rows' own.

        They come in here, before a token budget divides the batch: samples may be longer than what they replace.
        """
        batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.on_policy is not None:
            batches = [self.on_policy.mixed(batch) for batch in batches]
        return batches, counts

    def batch_loss(
        self, model: nn.Module, batch: Batch, *, of_step: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`AnswerTrainer.batch_loss`."""
        assert self.reference is not None, "measure_reference() comes first"
        start = self.reference.totals(batch)
        now = self.engine.logprobs(model, batch, want=["entropy"])
        chosen, rejected, of_prompt = _pairs(batch)
        logratio = now.total - start
        weight = self._weight(now.mean[rejected])
        losses = cw_dpo_loss(logratio[chosen], logratio[rejected], weight, beta=self.args.beta)
        assert now.entropy is not None
        margin = self.args.beta * (logratio[chosen] - logratio[rejected])
        once = torch.unique_consecutive(chosen)
        seen = {
            "rewards/chosen": self.args.beta * logratio[once],
            "rewards/rejected": self.args.beta * logratio[rejected],
            "rewards/margins": margin,
            "rewards/accuracies": margin > 0,
            "logps/chosen": now.total[once],
            "logps/rejected": now.total[rejected],
            "logps_mean/chosen": now.mean[once],
            "logps_mean/rejected": now.mean[rejected],
            "cooling": weight,
            "entropy": masked_mean(now.entropy, now.mask)[once],
        }
        if self.on_policy is not None and model.training:
            seen |= self.on_policy.observe(batch, rejected, weight)
        # a prompt has one chosen answer, so these count the prompts
        return share(batch, Role.CHOSEN, of_step) * _mean_over_prompts(losses, of_prompt), seen

    @property
    def _policy(self) -> nn.Module:
        assert self.model is not None
        return self.model

    @property
    def cools(self) -> bool:
        """Whether w_c is the paper's, and not switched off or a constant."""
        return self.args.cooling and self.args.cooling_constant is None

    def _weight(self, rejected_mean: Tensor) -> Tensor:
        if not self.cools:
            constant = self.args.cooling_constant if self.args.cooling else None
            return torch.full_like(rejected_mean, 1.0 if constant is None else constant)
        assert self.floor is not None
        weight = cooling_weight(rejected_mean, self.floor, temperature=self.args.cooling_temperature)
        # flowing, the gradient also pays for a lower weight by a likelier loser (TOY measurements in docs)
        return weight.detach() if self.args.cooling_detach else weight

    def _live_reference(self) -> Reference:
        if self.ref_model is None and isinstance(self.model, PeftModel):
            return StartingAdapter(self.model, self.engine)
        return FrozenCopy(self.ref_model or _copy(self._policy), self.engine)

    def _cache(self, model: nn.Module) -> ReferenceCache:
        directory = self.args.reference_dir or f"{self.args.output_dir}/reference"
        return ReferenceCache(
            Path(directory),
            model_fingerprint=fingerprint(model),
            computed_in=f"{self.accelerator.mixed_precision} mixed precision on {self.args.device.type}",
            rank=self.accelerator.process_index,
        )


def _copy(model: nn.Module) -> nn.Module:
    """A copy that shares what does not train, such as a frozen vision tower."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def _pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For each (chosen, rejected) pair: the two answers' positions and the prompt's, ``(pairs,)`` each."""
    is_chosen, rejected = batch["roles"] == Role.CHOSEN, (batch["roles"] == Role.REJECTED).nonzero()[:, 0]
    chosen_of = torch.zeros_like(batch["row_index"])
    chosen_of[batch["prompt_index"][is_chosen]] = is_chosen.nonzero()[:, 0]
    of_prompt = batch["prompt_index"][rejected]
    return chosen_of[of_prompt], rejected, of_prompt


def _mean_over_prompts(losses: Tensor, of_prompt: Tensor) -> Tensor:
    """``()`` mean over prompts of the mean over each prompt's pairs."""
    pairs_of = torch.bincount(of_prompt)
    return (losses / pairs_of[of_prompt]).sum() / len(pairs_of)
