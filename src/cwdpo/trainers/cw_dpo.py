"""Stage 2 trainer. The Trainer owns the loop; this class answers one question: what does this batch cost?"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, EvalPrediction, PreTrainedModel, ProcessorMixin, TrainerCallback

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Role, masked_mean, on_device
from cwdpo.config.recipe import PreferenceLoss
from cwdpo.cooling import cooling_weight, cools_nothing, measure_floor, pair_share
from cwdpo.data.collate import RowDataset
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Sampler
from cwdpo.losses.preference import preference_loss, reward_margin
from cwdpo.models.loading import silence_dropout
from cwdpo.models.parts import fingerprint
from cwdpo.negatives.verify import Judge
from cwdpo.on_policy.callback import OnPolicy
from cwdpo.records import StepMetric
from cwdpo.reference import FrozenCopy, LiveReference, Reference, ReferenceCache, StartingAdapter
from cwdpo.trainers.accepting import take_arguments, take_reference
from cwdpo.trainers.arguments import CWDPOConfig
from cwdpo.trainers.base import AnswerTrainer, Rows
from cwdpo.trainers.callbacks import ReferencePassCallback
from cwdpo.trainers.pairs import PairPlaces, crop_of, mean_over_prompts, pair_up, read_pairs
from cwdpo.trainers.reference_pass import Measured, ReferencePass
from cwdpo.trainers.running import RunningMeans
from cwdpo.trainers.steps import WHOLE, Step

logger = logging.getLogger(__name__)

_FEW_ROWS = 32


def _refuse_together(args: CWDPOConfig, model: object, ref_model: object) -> None:
    """Refuse, with a ConfigError, arguments that cannot stand together."""
    if ref_model is not None and ref_model is model and not isinstance(model, str | Path):
        raise ConfigError(
            "ref_model is the model that is trained, so it would move with it. Leave ref_model out: the reference "
            "is the model as it is when training starts."
        )
    if "image" in args.losses and args.max_tokens_per_batch is not None:
        raise ConfigError(
            "loss image compares two prompts, which max_tokens_per_batch would tear apart. Take it out, and lower "
            "per_device_train_batch_size.",
            setting="max_tokens_per_batch",
        )


class CWDPOTrainer(AnswerTrainer):
    """Stage 2: fine-tune with cooling-weighted DPO, or another preference loss, against a frozen reference.

    The reference is the policy as it is when training starts, or ``ref_model``. A row with several negatives counts
    once: its loss is the mean over them.
    """

    roles: Sequence[Role] = (Role.CHOSEN, Role.REJECTED)
    required: Sequence[Role] = (Role.CHOSEN, Role.REJECTED)
    predicted: Mapping[Role, str] = {Role.CHOSEN: "rewards/chosen", Role.REJECTED: "rewards/rejected"}
    args: CWDPOConfig

    floor: float | None = None
    """l_floor in nats per token, once it is measured."""

    reference: Reference | None = None
    """What the policy is measured against, once that is measured."""

    _start: LiveReference | None = None
    """The model that training started from, where it can be asked at any time."""

    _measured: Measured | None = None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path | None = None,
        ref_model: PreTrainedModel | PeftModel | str | Path | None = None,
        args: CWDPOConfig | None = None,
        data_collator: object = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        processing_class: ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        judge: Judge | None = None,
        sampler: Sampler | None = None,
        also_right: Sequence[Row] = (),
        **others: Any,
    ) -> None:
        """Arguments have the names and the order of TRL's ``DPOTrainer``.

        Args:
            model: the policy, or where to load it from; a ConfigError without one.
            ref_model: the reference, or where to load it from; None for the policy as it is when training starts.
            args: settings.
            data_collator: refused: only the trainer's own makes what the losses read.
            train_dataset: rows, or records in any form that ``cwdpo check`` reads.
            eval_dataset: the same, or several of them by name.
            processing_class: the model's processor; None loads the one beside the model.
            compute_metrics: called at each evaluation with what :meth:`predict` gives.
            callbacks: added to the Trainer's own.
            optimizers: an optimizer and a scheduler in place of those that ``args`` describe.
            quantization_config: how to load a model that is given by its name.
            peft_config: new adapters, which alone are trained.
            judge: verifies on-policy negatives, in place of the one that the settings name.
            sampler: draws on-policy negatives, in place of the policy.
            also_right: rows that this stage does not train on; a right answer in them is no negative either.
            others: ``tokenizer``, an older name of ``processing_class``; ``engine``, ``encoded``.
        """
        args = take_arguments(args or CWDPOConfig(output_dir="cw-dpo"), CWDPOConfig, trainer="CWDPOTrainer")
        _refuse_together(args, model, ref_model)
        self.loss_weights: Mapping[PreferenceLoss, float] = args.losses
        """The weight of each loss in the sum."""
        self._loss_settings: Mapping[str, float] = asdict(args.loss_parameters)
        self.crops = "image" in self.loss_weights
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            **others,
        )
        if args.disable_dropout:
            silence_dropout(self.model)
        self.ref_model: nn.Module | None = None
        if ref_model is not None:
            loaded = take_reference(ref_model, loading=args.loading_options())
            self.ref_model = nn.Module.to(loaded, self.args.device)
        self.running: RunningMeans | None = None
        """What a loss compares a step with, if it does."""
        if {"bco", "beta_dpo"} & self.loss_weights.keys():
            self.running = RunningMeans(beta=self.args.beta, momentum=self.args.running_momentum)
        self.on_policy = self._on_policy(judge=judge, sampler=sampler, also_right=also_right)
        for callback in (self.running, self.on_policy):
            if callback is not None:
                self.finite.on_skip(callback.forget_step)
                self.add_callback(callback)

    def _on_policy(self, *, judge: Judge | None, sampler: Sampler | None, also_right: Sequence[Row]) -> OnPolicy | None:
        """What samples negatives while the policy trains, if the settings want any."""
        negatives = self.args.negatives()
        if negatives is None:
            return None
        return OnPolicy(
            self,
            negatives,
            Path(self.args.on_policy_dir or f"{self.args.output_dir}/negatives"),
            processor=self.processing_class,  # type: ignore[arg-type]
            cools=self.cools,
            judge=judge,
            sampler=sampler,
            also_right=also_right,
        )

    @classmethod
    def metrics_of(cls, args: CWDPOConfig) -> Sequence[StepMetric]:
        return (
            *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
            *("logps/chosen", "logps/rejected", "logps_mean/chosen", "logps_mean/rejected", "cooling", "entropy"),
        )

    def batch_loss(self, model: nn.Module, batch: Batch, step: Step = WHOLE) -> tuple[Tensor, dict[StepMetric, Tensor]]:
        now, logratio, token_logratio = self._compare(model, batch)
        places = pair_up(batch)
        once, chosen, rejected = (
            on_device(answers, logratio.device)
            for answers in (np.unique(places.chosen), places.chosen, places.rejected)
        )
        weight = self._weight(now.mean[rejected])
        pairs = read_pairs(now, logratio, places, self._within_pairs(weight), token_logratio=token_logratio)
        if self.crops:
            pairs = pairs._replace(**self._under_crops(model, batch, places))
        losses = preference_loss(pairs, self.loss_weights, beta=self.args.beta, parameters=self._loss_parameters(step))
        losses = losses * pair_share(weight, scales=self.args.cooling_scales, drop_below=self.args.cooling_drop_below)
        assert now.entropy is not None
        margin = self.args.beta * (logratio[chosen] - logratio[rejected])
        metrics: dict[StepMetric, Tensor] = {
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
        if model.training:
            if self.on_policy is not None:
                metrics |= self.on_policy.observe(batch, places.rejected, weight)
            if self.running is not None:
                self.running.add(pairs)
        # a prompt has one chosen answer, so these count the prompts
        return step.share_of(batch, Role.CHOSEN) * mean_over_prompts(losses, places.prompt), metrics

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """See :meth:`AnswerTrainer.get_batch_samples`. beta-DPO's beta follows from the whole step, however that is
        divided, so the step's answers are computed once more, before and without gradient."""
        batches, step = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "beta_dpo" in self.loss_weights:
            step = replace(step, margin=self._mean_margin(batches, device))
        return batches, step

    @property
    def cools(self) -> bool:
        """Whether w_c is the paper's, and not switched off or a constant."""
        return self.args.cooling and self.args.cooling_constant is None

    def measure_reference(self) -> None:
        """Fix what stage 2 is measured against: the reference's log-probs and the cooling floor. Done once, and before
        a checkpoint is loaded: both belong to the model that stage 2 starts from."""
        if self.reference is not None:
            return
        source = self.ref_model or self.model
        cached = self.args.reference == "cached"
        if cached:
            cache = self._cache(source)
            self._measured = self._reference_pass(cache).run(source, self._evaluated(), roles=self.roles)
            if self.on_policy is not None or (isinstance(self.model, PeftModel) and not self.is_sharded):
                self._start = self._live_reference()
            if self.on_policy is not None and self._start is not None:
                self.on_policy.keep_references(cache, self._start)
            self.reference = cache
        else:
            self.reference = self._start = self._live_reference()
        if not self.cools:
            return
        if isinstance(self.args.cooling_floor, str) and (not cached or self.ref_model is not None):
            floor_pass = self._reference_pass(ReferenceCache.in_memory())  # the floor is always the policy's
            self._measured = floor_pass.run(self.model, self._evaluated(), roles=self.roles)
        self.floor = measure_floor(
            self.args.cooling_floor,
            lbar=self._measured.means if self._measured else {},
            temperature=self.args.cooling_temperature,
        )
        self._warn_of_floor(self.floor)

    def _warn_of_floor(self, floor: float) -> None:
        is_policys = self.ref_model is None or isinstance(self.args.cooling_floor, str)
        means = self._measured.means if self._measured is not None and is_policys else {}
        lbar = means.get(Role.REJECTED, torch.empty(0))
        weight = cooling_weight(lbar, floor, temperature=self.args.cooling_temperature)
        if (why := cools_nothing(weight)) is not None and self.is_world_process_zero():
            logger.warning(
                "the cooling floor is %.3g (`%s`): %s. Set `stage2.cooling.floor` (`cooling_floor` in Python) between "
                "%.3g and %.3g, which are the mean log-probs of the rejected answers%s.",
                *(floor, self.args.cooling_floor, why, lbar.min(), lbar.max()),
                ", or use harder negatives" if weight.max() < 0.5 else "",
            )

    def own_callbacks(self) -> list[TrainerCallback]:
        return super().own_callbacks() + [each for each in (self.running, self.on_policy) if each is not None]

    @contextmanager
    def around_training(self) -> Iterator[None]:
        """Measure the reference and the floor; in the end, give back what sampling holds outside this process."""
        self._warn_of_equal_answers()
        self.measure_reference()
        with nullcontext() if self.on_policy is None else self.on_policy.in_training():
            yield

    def _warn_of_equal_answers(self) -> None:
        """Pairs that are all of one answer teach nothing; a few are looked at, as rows may hold images."""
        dataset = self.train_dataset
        rows = [] if dataset is None else [dataset[index][1] for index in range(min(len(dataset), _FEW_ROWS))]
        if rows and self.on_policy is None and all({*row.rejected} == {row.chosen} for row in rows):
            same = "the first %d rows have the same answer as `chosen` and `rejected`: they teach nothing"
            logger.warning(same, len(rows))

    def with_negatives(self, batch: Batch) -> Batch:
        """Training sees on-policy negatives, which may be longer than what they replace; evaluation the rows' own."""
        return batch if self.on_policy is None else self.on_policy.mixed(batch)

    def row_lengths(self) -> list[int]:
        """See :meth:`AnswerTrainer.row_lengths`; the pass of a cached reference has counted them. That of the floor may
        have counted them too, but a resumed run knows the floor already: it would put other rows into a step."""
        if self._measured is None or self.args.reference != "cached":
            return super().row_lengths()
        return self._measured.lengths

    def prepare_evaluation(self, rows: RowDataset | None) -> None:
        """Measure the reference of rows that neither training nor its evaluation reads, while its model exists."""
        super().prepare_evaluation(rows)
        self.measure_reference()
        known = [self.train_dataset, *self._evaluated()]
        if rows is None or not isinstance(self.reference, ReferenceCache) or any(rows is one for one in known):
            return
        reference_pass, source = self._reference_pass(self.reference), self.ref_model or self.model
        if self._start is not None:
            reference_pass.add(rows, self._start.logprobs)
        elif not self._has_moved(source, self.reference):
            with reference_pass.measured_by(source) as logprobs:
                reference_pass.add(rows, logprobs)
        elif (missing := reference_pass.first_missing(rows)) is not None:
            raise ValueError(
                f"row {missing} of the new rows has an answer whose reference log-prob is not known. It is that of the "
                "model that training started from, and training has changed this model's weights since. Write "
                "`reference: live` (CWDPOConfig(reference='live')), which keeps that model, or give these rows as "
                "eval_dataset before training."
            )

    def _compare(self, model: nn.Module, batch: Batch) -> tuple[AnswerLogprobs, Tensor, Tensor | None]:
        """The policy's log-probs of a batch, and their ratios to the reference's: ``(A,)`` of whole answers, and
        ``(A, T)`` of tokens for a loss that reads those."""
        assert self.reference is not None, "measure_reference() comes first"
        token_start = None
        if "ld_dpo" in self.loss_weights:
            ask = getattr(self.reference, "logprobs", None)
            if ask is None:
                raise ConfigError("loss ld_dpo needs a reference that gives the log-probs of tokens (`logprobs`).")
            whole: AnswerLogprobs = ask(batch)
            start, token_start = whole.total, whole.token
        else:
            start = self.reference.totals(batch)
        want: list[Detail] = ["chosen_entropy", "collision"] if "wpo" in self.loss_weights else ["chosen_entropy"]
        now = self.engine.logprobs(model, batch, want=want)
        return now, now.total - start, None if token_start is None else now.token - token_start

    def _under_crops(self, model: nn.Module, batch: Batch, places: PairPlaces) -> dict[str, Tensor]:
        """Of each pair, the log-ratio of the chosen answer under crops of its images, and whether it has images."""
        assert self.reference is not None
        where, is_there = crop_of(batch, places)
        if "cropped" not in batch:
            return {"cropped": torch.zeros_like(where, dtype=torch.float32), "has_image": is_there}
        start = self.reference.totals(batch["cropped"])
        now = self.engine.logprobs(model, batch["cropped"])
        return {"cropped": (now.total - start)[where], "has_image": is_there}

    def _loss_parameters(self, step: Step) -> dict[str, Tensor | float]:
        """The losses' own settings, and what they know of other steps. An evaluation knows no step: beta is then as
        it was set."""
        running = self.running
        shift, before = (0.0, 0.0) if running is None else (running.reward, running.margin)
        gap = 0.0 if step.margin is None else step.margin - before
        return {**self._loss_settings, "bco_shift": shift, "beta_dpo_gap": gap}

    def _mean_margin(self, batches: Sequence[Batch], device: torch.device) -> Tensor:
        """``()`` mean reward margin of all pairs of a step, on all ranks, without gradient."""
        margins = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in batches:
                here: Batch = send_to_device(batch, device)
                now, logratio, _ = self._compare(self.model_wrapped, here)
                places = pair_up(here)
                rejected = on_device(places.rejected, device)
                weight = self._within_pairs(self._weight(now.mean[rejected]))
                pairs = read_pairs(now, logratio, places, weight)
                margins.append(reward_margin(pairs, beta=self.args.beta))
        values = torch.cat(margins)
        total, count = reduce(torch.stack([values.sum(), values.new_full((), len(values))]), "sum").unbind()
        mean: Tensor = total / count
        return mean

    def _weight(self, rejected_mean: Tensor) -> Tensor:
        if not self.cools:
            constant = self.args.cooling_constant if self.args.cooling else None
            return torch.full_like(rejected_mean, 1.0 if constant is None else constant)
        assert self.floor is not None
        weight = cooling_weight(rejected_mean, self.floor, temperature=self.args.cooling_temperature)
        # flowing, the gradient also pays for a lower weight by a likelier loser (TOY measurements in docs)
        return weight.detach() if self.args.cooling_detach else weight

    def _within_pairs(self, weight: Tensor) -> Tensor:
        """The weight of the rejected answers inside the losses: 1 where cooling scales the whole pair."""
        return weight if self.args.cooling_scales == "rejected" else torch.ones_like(weight)

    def _live_reference(self) -> LiveReference:
        if self.is_sharded:
            raise ConfigError(
                "reference is live, which keeps a whole second model in each process, where FSDP or ZeRO-3 divide the "
                "first. Write `reference: cached`, which is the default (ld_dpo needs live), or train with ZeRO-2.",
                setting="stage2.reference",
            )
        if self.ref_model is None and isinstance(self.model, PeftModel):
            return StartingAdapter(self.model, self.engine)
        # a copy shares what does not train, such as a frozen vision tower
        shared = {id(weight): weight for weight in self.model.parameters() if not weight.requires_grad}
        return FrozenCopy(self.ref_model or copy.deepcopy(self.model, shared), self.engine)

    def _has_moved(self, model: nn.Module, cache: ReferenceCache) -> bool:
        """Whether a model is no longer the one whose log-probs a cache holds."""
        return self.state.global_step > 0 if self.is_sharded else fingerprint(model) != cache.of_model

    def _cache(self, model: nn.Module) -> ReferenceCache:
        return ReferenceCache(
            Path(self.args.reference_dir or f"{self.args.output_dir}/reference"),
            of_model=fingerprint(model),
            computed_in=f"{self.accelerator.mixed_precision} mixed precision on {self.args.device.type}",
            rank=self.accelerator.process_index,
        )

    def _reference_pass(self, cache: ReferenceCache) -> ReferencePass:
        batch_size = self.args.reference_batch_size or self.args.per_device_eval_batch_size
        return ReferencePass(self, cache, batch_size=batch_size, progress=self._notify, crops=self.crops)

    def _notify(self, done: int, total: int) -> None:
        """Report the progress of a reference pass, in batches of this rank."""
        for callback in self.callback_handler.callbacks if self.is_world_process_zero() else ():
            if isinstance(callback, ReferencePassCallback):
                callback.on_reference_pass(done, total)
