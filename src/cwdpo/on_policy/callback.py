"""On-policy negatives inside training: when they are sampled again, and which of them a batch gets.

They are put into a batch after it was collated, in the process that trains. So they reach every batch at once: it does
not matter how many workers collate, whether these persist, and how far they run ahead.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback, TrainerControl, TrainerState

from cwdpo.batch import Batch, Integers, on_device
from cwdpo.config.recipe import NegativesConfig
from cwdpo.data.rows import Row
from cwdpo.engine import features_of
from cwdpo.errors import ConfigError, UserError
from cwdpo.generation import LocalSampler, Sampler, Sampling
from cwdpo.negatives.candidates import Candidate, Refresh, read_refreshes, remove_after, summed_up, write_refresh
from cwdpo.negatives.filtering import RightAnswers
from cwdpo.negatives.server import Endpoint
from cwdpo.negatives.verify import Judge, load_judge
from cwdpo.on_policy.pool import NegativePool, RowTexts
from cwdpo.on_policy.refresh import Refresher, RefreshError
from cwdpo.on_policy.schedule import Curriculum, RefreshTimes, Staleness, epoch, epoch_steps, warn_without_choice
from cwdpo.on_policy.served_policy import ServedPolicy
from cwdpo.phases import phase
from cwdpo.records import StepMetric
from cwdpo.reference import Reference, ReferenceCache
from cwdpo.trainer_protocol import TrainerProtocol

logger = logging.getLogger(__name__)


class OnPolicy(TrainerCallback):
    """Keeps the on-policy negatives of stage 2.

    As a callback it samples them at the right steps. The trainer asks it for each batch (:meth:`mixed`), shows it the
    weights (:meth:`observe`), and trains inside :meth:`in_training`.
    """

    def __init__(
        self,
        trainer: TrainerProtocol,
        settings: NegativesConfig,
        directory: Path,
        *,
        processor: ProcessorMixin,
        cools: bool = True,
        judge: Judge | None = None,
        sampler: Sampler | None = None,
        also_right: Sequence[Row] = (),
    ) -> None:
        """Set up; nothing is sampled before training begins.

        Args:
            settings: the recipe's ``negatives``; a ConfigError where they do not fit each other or the trainer.
            directory: of the refreshes' files.
            cools: whether the trainer weighs negatives by the cooling weight.
            judge: in place of the one that the settings name.
            sampler: in place of the policy itself.
            also_right: rows that are not trained on, whose right answers are no negatives either.
        """
        self.trainer, self.settings, self.directory, self.also_right = trainer, settings, directory, also_right
        self.curriculum = None if settings.curriculum is None else Curriculum(settings.curriculum)
        """How hard the negatives are to be. Where it is ``auto``, let it follow readings before training."""

        self._staleness, self._times = Staleness(), RefreshTimes(settings)
        _check(settings, samples=self._times.samples, cools=cools, is_sharded=trainer.is_sharded)
        self._refresher = Refresher(
            trainer, settings, judge=judge or (load_judge(settings.judge) if settings.judge else None)
        )
        sampling = Sampling(**{each.name: getattr(settings, each.name) for each in fields(Sampling)})
        model, encoder = trainer.model, self._refresher.encoder
        if sampler is None and settings.endpoint is not None:
            sampler = ServedPolicy(model, Endpoint(settings.endpoint), sampling, directory)
        self._sampler: Sampler = sampler or LocalSampler(
            model, processor, sampling, encoder=encoder, features=features_of(trainer.engine)
        )
        self._cache: ReferenceCache | None = None
        self._texts: RowTexts | None = None
        self._latest: Refresh | None = None
        self._pool = NegativePool()
        self._error: UserError | None = None

    def keep_references(self, cache: ReferenceCache, reference: Reference) -> None:
        """Have log pi_ref of each new negative computed once, by a reference, and kept in a cache."""
        self._cache, self._refresher.reference = cache, reference

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Inside, the stage is trained. If sampling failed, the UserError comes in the end, after a checkpoint."""
        self._error = None
        try:
            yield
        finally:
            self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Give back what sampling holds outside this process, also after errors."""
        if isinstance(self._sampler, ServedPolicy):
            self._sampler.close(is_main=self.trainer.is_world_process_zero())

    def note(self) -> dict[str, Any]:
        """What to note of the stage: how many refreshes, what became of all candidates, and the seconds it took."""
        return summed_up(read_refreshes(self.directory))

    def mixed(self, batch: Batch) -> Batch:
        """The batch with the negatives that its prompts have at this step."""
        assert self._texts is not None, "training has begun"
        return self._pool.mixed(
            batch,
            self._texts,
            share=self._times.share(self.trainer.state),
            count=self.settings.per_prompt,
            level=self._level(),
        )

    def observe(self, batch: Batch, rejected: Integers, weight: Tensor) -> Mapping[StepMetric, Tensor]:
        """Look at the weights w_c, ``(pairs,)``, that a step gave its negatives, ``(pairs,)`` positions in the batch.

        Returns:
            What to log: ``negatives/on_policy``, ``(pairs,)``, 1 where the negative was sampled from the policy, else
            0; with a curriculum also ``negatives/level``, ``(pairs,)``, and ``negatives/lbar``, of those measured.
        """
        is_sampled = self._pool.is_sampled(batch, rejected)
        if self.settings.refresh == "auto":
            self._staleness.add(weight.index_select(0, on_device(np.flatnonzero(is_sampled), weight.device)))
        metrics: dict[StepMetric, Tensor] = {"negatives/on_policy": torch.from_numpy(is_sampled).float()}
        level = self._level()
        if level is not None:
            metrics["negatives/level"] = torch.full_like(metrics["negatives/on_policy"], level)
            metrics["negatives/lbar"] = self._pool.lbars(batch, rejected)
        return metrics

    def forget_step(self) -> None:
        """Do not count the weights of the step that is going on: it is skipped."""
        self._staleness.forget_step()

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Read back what was sampled before the checkpoint, or sample; training must not begin if that fails."""
        rows = self.trainer.train_dataset
        assert rows is not None, "training has rows"
        if self.curriculum is not None:
            self.curriculum.check()
            warn_without_choice((rows[i][1] for i in range(len(rows))), self.settings, samples=self._times.samples)
        right_answers = RightAnswers((rows[index][1] for index in range(len(rows))), also=self.also_right)
        self._refresher.right_answers, self._texts = right_answers, RowTexts(rows, right_answers)
        if state.is_world_process_zero:
            remove_after(self.directory, state.global_step if state.global_step else -1)
        self.trainer.accelerator.wait_for_everyone()
        self._latest, self._pool = None, NegativePool()
        for refresh in read_refreshes(self.directory):
            self._use(refresh)
        self._staleness = Staleness.restored(state) if state.global_step else Staleness()
        if state.global_step < state.max_steps:  # resumed at its end, the stage has no use for more
            self._refresh_if_due(state)
        if self._error is not None:
            raise self._error

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Sample again where it is time, before a checkpoint of this step is written."""
        if self.settings.refresh == "auto":
            self._staleness.end_step(self.trainer.accelerator)
        if state.global_step < state.max_steps and not control.should_training_stop:
            self._refresh_if_due(state)
        self._staleness.save(state)
        if self._error is not None:  # raised in the end of training, so that the checkpoint is written first
            control.should_save = control.should_training_stop = True

    def _level(self) -> float | None:
        state = self.trainer.state
        return None if self.curriculum is None else self.curriculum.level(state.global_step / state.max_steps)

    def _refresh_if_due(self, state: TrainerState) -> None:
        if not self._times.is_due(state, self._latest, self._staleness):
            return
        number = self._latest.number + 1 if self._latest else 1
        began, candidates, error = (time.monotonic(), time.process_time()), list[Candidate](), None
        failures: list[str] = []
        rows = self.trainer.train_dataset
        share = self._times.largest_share(state, epoch_steps=epoch_steps(self.trainer.step_rows, len(rows or ())))
        try:
            with phase("sampling"):
                if share and isinstance(self._sampler, ServedPolicy):
                    self._sampler.hand_over(number, is_main=state.is_world_process_zero)
                candidates, failures = self._refresher.run(number, share=share, sampler=self._sampler)
        except RefreshError as problem:
            error = str(problem)
        if error is not None and self.settings.on_error == "stop":
            self._error = UserError(
                f"sampling negatives failed at step {state.global_step} ({error}). Training stopped with a checkpoint; "
                "fix the cause and resume, or write `negatives: {on_error: continue}` to go on without."
            )
            return
        refresh = Refresh(
            number=number,
            step=state.global_step,
            epoch=epoch(state),
            seed=self.trainer.args.seed,
            details=self._details(*began) | ({"failed_portions": failures} if failures else {}),
            error=error,
            candidates=candidates,
        )
        if state.is_world_process_zero:
            write_refresh(self.directory, refresh)
            _log(refresh)
        self._use(refresh)
        self._staleness = Staleness()

    def _use(self, refresh: Refresh) -> None:
        """Train on a refresh from now on; a failed one leaves the one before in place."""
        self._latest = refresh
        if refresh.error is None:
            self._pool = NegativePool(refresh, seed=self.trainer.args.seed)
            if self._cache is not None:
                self._pool.add_to(self._cache)

    def _details(self, began: float, cpu_began: float) -> dict[str, Any]:
        """The rest of what a refresh's file says of how it was made."""
        settings = ("temperature", "top_p", "k", "max_new_tokens", "curriculum", "judge", "endpoint")
        return {
            "model": str(self.trainer.model.config.name_or_path),  # type: ignore[union-attr]
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - began, 3),
            "cpu_seconds": round(time.process_time() - cpu_began, 3),
            **{name: getattr(self.settings, name) for name in settings},
        }


def _check(settings: NegativesConfig, *, samples: bool, cools: bool, is_sharded: bool) -> None:
    """Refuse settings that cannot work together, and name those that do nothing."""
    if is_sharded:
        raise ConfigError(
            "negatives are sampled from whole weights, which FSDP and ZeRO-3 divide among the GPUs. Train with DDP "
            "(torchrun alone), or sample beforehand with `cwdpo negatives sample` and leave `negatives` out.",
            setting="negatives",
        )
    if settings.refresh == "auto" and not cools:
        raise ConfigError(
            "negatives.refresh is auto, which watches the cooling weight, but cooling is off or constant. "
            "Write `refresh: epoch` or a number of steps.",
            setting="negatives.refresh",
        )
    if samples:
        return
    if settings.curriculum is None:
        logger.warning(
            "negatives.on_policy_fraction is 0, so nothing is sampled. Write a share such as 0.5, or `negatives: null`."
        )
    elif settings.refresh == "auto":
        raise ConfigError(
            "negatives.refresh is auto, which watches sampled negatives, but negatives.on_policy_fraction is 0. Write "
            "`refresh: epoch` or a number of steps.",
            setting="negatives.refresh",
        )


def _log(refresh: Refresh) -> None:
    if refresh.error is not None:
        logger.warning("sampling negatives failed (%s); training goes on with what it has", refresh.error)
        return
    failures = refresh.details.get("failed_portions", [])
    if failures:
        logger.warning(
            "%d portions of the sampled negatives failed (%s); their rows train on their own until the next refresh",
            len(failures),
            failures[0],
        )
    counts = refresh.counts()
    own, kept = counts.pop("dataset", 0), counts.pop("kept", 0)
    dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
    logger.info(
        "step %d: %d new negatives (dropped: %s); %d of the rows measured", refresh.step, kept, dropped or "none", own
    )
    if not kept and (dropped or not own):
        logger.warning("step %d: no sampled answer may be a negative (%s)", refresh.step, dropped or "none sampled")
