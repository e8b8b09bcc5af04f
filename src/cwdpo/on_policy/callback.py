"""On-policy negatives inside training: when they are sampled anew, and which of them a batch gets.

They are put into a batch after it was collated, in the process that trains. So they reach every batch at once: it does
not matter how many workers collate, whether these persist, and how far they run ahead.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.batch import Batch
from cwdpo.config.recipe import NegativesConfig
from cwdpo.errors import ConfigError, UserError
from cwdpo.generation import LocalSampler, Sampler, Sampling
from cwdpo.negatives.candidates import Refresh, read_refreshes, remove_after, summed_up, write_refresh
from cwdpo.negatives.filtering import Rules
from cwdpo.negatives.server import Endpoint
from cwdpo.negatives.verify import Judge, load_judge
from cwdpo.on_policy.pool import NegativePool
from cwdpo.on_policy.refresh import Refresher, RefreshError
from cwdpo.on_policy.schedule import Curriculum, RefreshTimes, Staleness, epoch, epoch_steps, has_choice
from cwdpo.on_policy.served import ServedPolicy
from cwdpo.reference import Reference, ReferenceCache

if TYPE_CHECKING:
    from cwdpo.trainers.cw_dpo import CWDPOTrainer


logger = logging.getLogger(__name__)


def check_settings(trainer: "CWDPOTrainer", settings: NegativesConfig, *, samples: bool) -> None:
    """Refuse settings that cannot work together, and name those that do nothing.

    Args:
        trainer: whose policy is sampled.
        settings: the recipe's ``negatives``.
        samples: whether any step asks for samples.

    Raises:
        ConfigError: says what to write.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "negatives are sampled from whole weights, which FSDP and DeepSpeed divide among the GPUs. Train with DDP "
            "(torchrun alone), or sample beforehand with `cwdpo negatives sample` and leave `negatives` out."
        )
    if settings.refresh == "auto" and not trainer.cools:
        raise ConfigError(
            "negatives.refresh is auto, which watches the cooling weight, but cooling is off or constant. "
            "Write `refresh: epoch` or a number of steps."
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
            "`refresh: epoch` or a number of steps."
        )


def tell(refresh: Refresh) -> None:
    """Say what came of a refresh."""
    if refresh.error is not None:
        logger.warning("sampling negatives failed (%s); training goes on with what it has", refresh.error)
        return
    counts = refresh.counts()
    own, kept = counts.pop("dataset", 0), counts.pop("kept", 0)
    dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
    logger.info(
        "step %d: %d new negatives (dropped: %s); %d of the rows measured", refresh.step, kept, dropped or "none", own
    )
    if not kept and (dropped or not own):
        logger.warning("step %d: no sampled answer may be a negative (%s)", refresh.step, dropped or "none sampled")


def warn_without_choice(rows: Any, settings: NegativesConfig, *, samples: bool) -> None:
    """Say so where the curriculum has nothing to choose from."""
    if has_choice((rows[i][1] for i in range(len(rows))), settings, samples=samples):
        return
    logger.warning(
        "negatives.curriculum has no effect: no prompt has more candidates than it takes (%s, per_prompt is %s). Write "
        "a larger k, a smaller per_prompt, or give rows more negatives.",
        f"k is {settings.k}" if samples else "nothing is sampled",
        "null" if settings.per_prompt is None else settings.per_prompt,
    )


class OnPolicy(TrainerCallback):
    """Keeps a stage-2 trainer's on-policy negatives. A callback that the trainer also asks about every batch."""

    def __init__(
        self,
        trainer: "CWDPOTrainer",
        settings: NegativesConfig,
        directory: Path,
        *,
        judge: Judge | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """Set up; nothing is sampled before training begins.

        Args:
            trainer: whose policy is sampled.
            settings: the recipe's ``negatives``.
            directory: of the refreshes' files.
            judge: in place of the one that the settings name.
            sampler: in place of the policy itself.

        Raises:
            ConfigError: the settings do not fit each other or the trainer.
        """
        self.trainer, self.settings, self.directory = trainer, settings, directory
        self.failure: str | None = None
        """Why training was stopped, where it was."""

        self.curriculum = None if settings.curriculum is None else Curriculum(settings.curriculum)
        """How hard the negatives are to be. Where it is ``auto``, let it follow readings before training."""

        self._staleness, self._times = Staleness(), RefreshTimes(settings)
        self._latest: Refresh | None = None
        self._pool = NegativePool()
        check_settings(trainer, settings, samples=self._times.samples)
        sampling = Sampling(
            k=settings.k,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )
        self._refresher = Refresher(
            trainer,
            sampling,
            rules=Rules(overlap=settings.max_overlap, length_gap=settings.length_gap),
            judge=judge or (load_judge(settings.judge) if settings.judge else None),
            drop_easier_than=settings.drop_easier_than,
            drop_ches_above=settings.drop_ches_above,
            per_prompt=settings.per_prompt,
            measures_own=settings.measures_own,
        )
        self._sampler = sampler or self._default_sampler(sampling)

    def measure_with(self, reference: Reference) -> None:
        """Have the reference's log-probs of new negatives computed once, on arrival."""
        self._refresher.reference = reference

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read back what was sampled before the checkpoint, or sample for the first time.

        Raises:
            UserError: the first sampling failed, and training is not to begin without.
            ConfigError: the curriculum has nothing to follow.
        """
        self.failure = None
        if self.curriculum is not None:
            self.curriculum.begin()
            warn_without_choice(self.trainer.train_dataset, self.settings, samples=self._times.samples)
        if state.is_world_process_zero:
            remove_after(self.directory, state.global_step if state.global_step else -1)
        self.trainer.accelerator.wait_for_everyone()
        self._latest, self._pool = None, NegativePool()
        for refresh in read_refreshes(self.directory):
            self._use(refresh)
        self._staleness = Staleness.restored(state) if state.global_step else Staleness()
        self._refresh_if_due(state)
        if self.failure is not None:
            raise UserError(self.failure)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sample anew where it is time, before a checkpoint of this step is written."""
        if self.settings.refresh == "auto":
            self._staleness.end_step(self.trainer.accelerator)
        if state.global_step < state.max_steps and not control.should_training_stop:
            self._refresh_if_due(state)
        self._staleness.save(state)
        if self.failure is not None:
            control.should_save = control.should_training_stop = True

    def close(self) -> None:
        """Give back what sampling holds outside this process, also after errors."""
        if isinstance(self._sampler, ServedPolicy):
            self._sampler.close(is_main=self.trainer.is_world_process_zero())

    def note(self) -> dict[str, Any]:
        """What to note of the stage: how many refreshes, what became of all candidates, and the seconds it took."""
        return summed_up(read_refreshes(self.directory))

    def mixed(self, batch: Batch) -> Batch:
        """The batch with the negatives that its prompts have at this step."""
        share = self._times.share(self.trainer.state)
        return self._pool.mixed(batch, share=share, count=self.settings.per_prompt, level=self._level())

    def observe(self, batch: Batch, rejected: Tensor, weight: Tensor) -> Mapping[str, Tensor]:
        """See what a step made of its negatives.

        Args:
            batch: as :meth:`mixed` gave it.
            rejected: ``(pairs,)`` positions of rejected answers.
            weight: ``(pairs,)`` w_c of each.

        Returns:
            What to log: ``negatives/on_policy``, ``(pairs,)``, 1 where the negative was sampled from the policy, else
            0; with a curriculum also ``negatives/level``, ``(pairs,)``, and ``negatives/lbar``, of those measured.
        """
        is_sampled = self._pool.is_sampled(batch, rejected)
        if self.settings.refresh == "auto":
            self._staleness.add(weight[is_sampled])
        seen = {"negatives/on_policy": is_sampled.float()}
        level = self._level()
        if level is not None:
            seen["negatives/level"] = torch.full_like(seen["negatives/on_policy"], level)
            seen["negatives/lbar"] = self._pool.lbars(batch, rejected)
        return seen

    def _level(self) -> float | None:
        state = self.trainer.state
        return None if self.curriculum is None else self.curriculum.level(state.global_step / state.max_steps)

    def _refresh_if_due(self, state: TrainerState) -> None:
        if not self._times.is_due(state, self._latest, self._staleness):
            return
        number = self._latest.number + 1 if self._latest else 1
        began, candidates, error = (time.monotonic(), time.process_time()), [], None
        share = self._times.largest_share(state, epoch_steps=epoch_steps(self.trainer))
        try:
            if share and isinstance(self._sampler, ServedPolicy):
                self._sampler.hand_over(number, is_main=state.is_world_process_zero)
            candidates = self._refresher.run(number, share=share, sampler=self._sampler)
        except RefreshError as problem:
            error = str(problem)
        if error is not None and self.settings.on_error == "stop":
            self.failure = (
                f"sampling negatives failed at step {state.global_step} ({error}). Training stopped with a checkpoint; "
                "mend the cause and resume, or write `negatives: {on_error: continue}` to go on without."
            )
            return
        refresh = Refresh(
            number=number,
            step=state.global_step,
            epoch=epoch(state),
            seed=self.trainer.args.seed,
            details=self._details(*began),
            error=error,
            candidates=candidates,
        )
        if state.is_world_process_zero:
            write_refresh(self.directory, refresh)
            tell(refresh)
        self._use(refresh)
        self._staleness = Staleness()

    def _use(self, refresh: Refresh) -> None:
        """Train on a refresh from now on; a failed one leaves the one before in place."""
        self._latest = refresh
        if refresh.error is None:
            self._pool = NegativePool(refresh, seed=self.trainer.args.seed)
            if isinstance(self.trainer.reference, ReferenceCache):
                self._pool.add_to(self.trainer.reference)

    def _default_sampler(self, sampling: Sampling) -> Sampler:
        model, endpoint = self.trainer.model, self.settings.endpoint
        if endpoint is not None:
            return ServedPolicy(model, Endpoint(endpoint), sampling, self.directory)
        assert model is not None
        processor: Any = self.trainer.processing_class  # typed as a processor or any of its parts
        return LocalSampler(model, processor, sampling, encoder=self._refresher.encoder)

    def _details(self, began: float, cpu_began: float) -> dict[str, Any]:
        return {
            "model": str(self.trainer.model.config.name_or_path),  # type: ignore[union-attr]
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - began, 3),
            "cpu_seconds": round(time.process_time() - cpu_began, 3),
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "k": self.settings.k,
            "max_new_tokens": self.settings.max_new_tokens,
            "curriculum": self.settings.curriculum,
            "judge": self.settings.judge,
            "endpoint": self.settings.endpoint,
        }
