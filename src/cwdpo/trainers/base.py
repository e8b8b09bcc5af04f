"""What both trainers share: rows in, a step in parts that fit in memory, metrics out, a resume that loses nothing."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from cwdpo.batch import Batch, Role, on_device, places_of
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.encode import EncodedMemory, Encoder
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, features_of, make_engine, with_stand_in, within_budget
from cwdpo.engine.layout import parts_within, select_prompts
from cwdpo.engine.lora import fuse_lora
from cwdpo.errors import ConfigError, UserError, path_advice
from cwdpo.models.checkpoints import begin_checkpoint, find_damage, no_unfinished_checkpoints, verified_checkpoint
from cwdpo.models.loading import some
from cwdpo.models.parts import model_limits
from cwdpo.models.saving import restore_weights
from cwdpo.phases import phase
from cwdpo.records import StepMetric
from cwdpo.trainers.accepting import (
    check_engine,
    check_trainable,
    given_processor,
    processor_beside,
    refuse_collator,
    refuse_file,
    refuse_unknown,
    take_policy,
)
from cwdpo.trainers.arguments import AnswerArguments
from cwdpo.trainers.callbacks import Sealing
from cwdpo.trainers.finite import FiniteSteps, broken_weights
from cwdpo.trainers.recomputing import StepRows, decide_recomputing
from cwdpo.trainers.reference_pass import agree_on_engine
from cwdpo.trainers.rounding import LostUpdates
from cwdpo.trainers.sharding import (
    check_sharding,
    choose_stand_in,
    divides_gradients,
    divides_weights,
    dividing_among_cpus,
    fill_optimizer_state,
    fit_fsdp,
    refuse_one_process,
)
from cwdpo.trainers.step_metrics import StepMetrics, TokenCount, check_best_metric
from cwdpo.trainers.steps import (
    WHOLE,
    BucketEpoch,
    LengthBuckets,
    Step,
    count_roles,
    cut_further,
    estimate_row_tokens,
)
from cwdpo.trainers.used_weights import UsedWeights

logger = logging.getLogger(__name__)

Rows: TypeAlias = RowDataset | datasets.Dataset | Sequence[Row | Mapping[str, Any]]
"""Rows, or records in any form that ``cwdpo check`` reads."""


class AnswerTrainer(Trainer):
    """A Trainer whose batch is prompts with answers. Not used itself: the two stages subclass it.

    A step's loss is a mean over all its answers, however its rows are divided among micro-batches, ranks and parts.
    """

    roles: Sequence[Role]
    """The answers of a row that take part in a step, in this order."""
    required: Sequence[Role]
    """Those of them that every row must have."""
    predicted: Mapping[Role, str]
    """The two metrics that :meth:`predict` gives of each row: of its chosen answer, and of its negatives."""

    crops = False
    """Whether batches have their prompts under crops of the images too."""

    loss_is_scaled_for_ga = True  # get_batch_samples counts the step's answers, and each loss is a share of their mean

    model: nn.Module
    args: AnswerArguments
    train_dataset: RowDataset | None
    eval_dataset: RowDataset | dict[str, RowDataset] | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path | None,
        args: AnswerArguments,
        *,
        data_collator: object = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        processing_class: ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tokenizer: ProcessorMixin | None = None,
        engine: Engine | None = None,
        encoded: EncodedMemory | None = None,
        **unknown: object,
    ) -> None:
        """Arguments are the Trainer's and TRL's; a ConfigError names one of the wrong kind.

        ``compute_metrics`` gets what :meth:`predict` gives; a ``data_collator`` is refused; ``tokenizer`` is an older
        name of ``processing_class``. An ``engine`` that others use too is checked once for all of them, and rows that
        others have ``encoded`` with the same processor are not encoded again.
        """
        refuse_unknown(unknown, args, inspect.signature(type(self)).parameters)
        refuse_collator(data_collator)
        check_engine(engine)
        rows = None if train_dataset is None else _as_rows(train_dataset, "train_dataset")
        if rows is not None and not len(rows):
            raise ConfigError(
                "train_dataset has no rows. Give some, or leave it out to evaluate alone: stage 2 then needs a number "
                "as cooling_floor, which is otherwise measured on these rows."
            )
        evaluated = _by_name(eval_dataset, "eval_dataset")
        if rows is not None:
            self.check_rows(rows)
        refuse_file(args.output_dir, "output_dir")
        if compute_metrics is not None and not callable(compute_metrics):
            raise ConfigError(f"compute_metrics is {compute_metrics!r}, and not a function. Give one of a prediction.")
        if compute_metrics is None:
            check_best_metric(args, self.metrics_of(args), list(evaluated) if isinstance(evaluated, dict) else ())
        processor = given_processor(processing_class, tokenizer)
        loading = args.loading_options()
        set_seed(args.seed)  # new adapters begin at random values
        policy: Any = take_policy(model, peft_config, loading=loading, quantization_config=quantization_config)
        if rows is not None:
            check_trainable(policy)
        processor = processor or processor_beside(model, trust_remote_code=loading["trust_remote_code"])
        self.engine = within_budget(engine or make_engine(args.engine), args.max_tokens_per_batch)
        self.encoder = Encoder(
            processor,
            max_length=args.max_length,
            limits=model_limits(policy),
            memory=encoded or EncodedMemory(),
        )
        self.collate = AnswerCollator(self.encoder, roles=self.roles, required=self.required, crops=self.crops)
        self.probe_metrics: Callable[[], dict[str, float]] | None = None
        """Readings of probes that an evaluation reports too; set by :class:`cwdpo.probes.callback.Probing`."""
        self._metrics = {"train": StepMetrics(), "eval": StepMetrics()}
        self._tokens, self._epoch, self.lost_updates = TokenCount(), BucketEpoch(), LostUpdates()
        self._used_weights = UsedWeights()
        self._warned_of_long_row = False
        super().__init__(
            model=policy,
            args=args,
            data_collator=self.collate,  # type: ignore[arg-type]
            train_dataset=rows,
            eval_dataset=evaluated,
            processing_class=processor,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if not self.is_sharded:  # divided weights are put together where PEFT's layers call their parts
            fuse_lora(self.model)
        self.finite = FiniteSteps(self, skips=args.on_nonfinite == "skip")
        """Looks at each step last before its update, after all other callbacks."""
        self.finite.on_skip(self._metrics["train"].forget_step)
        self.finite.on_skip(self.lost_updates.forget_step)
        for callback in (*AnswerTrainer.own_callbacks(self), self.finite):
            self.add_callback(callback)

    def check_rows(self, rows: RowDataset) -> None:
        """Refuse, with a ConfigError, rows that this trainer cannot train on, as far as they show it before any model
        is loaded."""

    @classmethod
    def metrics_of(cls, args: Any) -> Sequence[StepMetric]:
        """The names of what :meth:`batch_loss` gives to log in an evaluation, under some settings."""
        raise NotImplementedError

    def batch_loss(self, model: nn.Module, batch: Batch, step: Step = WHOLE) -> tuple[Tensor, dict[StepMetric, Tensor]]:
        """The loss of a batch, ``()``, with every mean weighted by :meth:`Step.share_of`, and per-answer values to log,
        ``(n,)`` each; ``model`` is in its wrappers."""
        raise NotImplementedError

    def create_accelerator_and_postprocess(self) -> None:
        """See ``Trainer.create_accelerator_and_postprocess``."""
        refuse_one_process(self.args)
        with dividing_among_cpus(self.args):
            super().create_accelerator_and_postprocess()
        check_sharding(self.accelerator, self.args)
        fit_fsdp(self.accelerator, self.args, self.model)

    def own_callbacks(self) -> list[TrainerCallback]:
        """The callbacks that belong to this trainer, beside :attr:`finite`; they were added when it was made, in this
        order."""
        return [self._metrics["train"], self._tokens, self._epoch, self._used_weights, self.lost_updates]

    def with_negatives(self, batch: Batch) -> Batch:
        """A collated batch with the negatives that it is trained on; before it is counted or divided."""
        return batch

    def look_ahead(self, model: nn.Module, parts: Sequence[Batch], step: Step) -> Step:
        """The step, with what the loss needs to know of all parts of a batch before the first is computed."""
        return step

    def around_training(self) -> AbstractContextManager[None]:
        """What is prepared before the first step, and put away after the last, however training ends."""
        return nullcontext()

    def prepare_evaluation(self, rows: RowDataset | None) -> None:
        """Called before rows are evaluated; None stands for those that the trainer was made with."""
        if not self.is_in_train:
            self._have_images_everywhere([rows])
            agree_on_engine(self, self.model, rows or self.train_dataset, self.collate)

    @property
    def step_rows(self) -> int:
        """Rows of a step, those of all micro-batches of all ranks. Fewer than the settings say, once
        ``auto_find_batch_size`` has found that so many have no room."""
        return self.get_total_train_batch_size(self.args)

    @property
    def batch_rows(self) -> int:
        """Of these, the rows of one micro-batch of one rank."""
        return self.step_rows // int(self.args.gradient_accumulation_steps * self.args.world_size)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or ZeRO-3 divide the weights, so that no process has the whole model."""
        return divides_weights(self.accelerator)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """See ``Trainer.train``. Resuming and best-model loading restore every weight or fail.

        The Trainer reloads a full checkpoint by raw names and without asking whether any was found; for classes whose
        saved names differ from the module's (Qwen2-VL, LLaVA) it then goes on from the wrong weights
        (transformers issue 43701). So the weights are restored here, by the model's own name mapping, before and after.
        """
        if self.train_dataset is None:
            raise ConfigError(f"there is nothing to train on. Write {type(self).__name__}(..., train_dataset=rows).")
        self._have_images_everywhere([self.train_dataset, *self._evaluated()])
        directory, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        sealing = Sealing(self, directory, limit)
        with (
            self.around_training(),
            no_unfinished_checkpoints(directory, is_main=self.is_world_process_zero()),
            self._with(sealing),
        ):
            self.remove_callback(self.finite)
            self.add_callback(self.finite)  # after those that were added since
            agree_on_engine(self, self.model, self.train_dataset, self.collate)
            checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
            if checkpoint is not None:
                self._restore(checkpoint)
            if self.args.activation_checkpointing == "auto":
                self.args.activation_checkpointing = decide_recomputing(
                    self, StepRows(self.collate, self.row_lengths, self.args.max_tokens_per_batch), checkpoint
                )
            with _without_reload_warnings():
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._restore(self.state.best_model_checkpoint)
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See ``Trainer.get_train_dataloader``; ``length_buckets`` puts rows of similar length in one step."""
        if not self.args.length_buckets:
            return super().get_train_dataloader()
        args = self.args
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset.")
        self._epoch.buckets = LengthBuckets(
            self.row_lengths(),
            step_rows=self.step_rows,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_size=self.batch_rows,
            sampler=self._epoch.buckets,
            collate_fn=self.collate,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def row_lengths(self) -> list[int]:
        """Tokens of each training row with the answers of a step; estimates, unless a stage has counted them."""
        return [] if self.train_dataset is None else estimate_row_tokens(self.train_dataset, self.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """See ``Trainer.get_batch_samples``; gives a :class:`Step` as the number of items.

        The Trainer hands that number to ``training_step`` and ``compute_loss`` of each batch without reading it, and
        has no other value that goes from here to there.
        """
        if self.state.global_step >= self.state.max_steps:  # resumed at the last step, the Trainer would take one more
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        if self.args.logging_strategy == "no":  # a callback may still log a step, but none is sure to
            self._metrics["train"].clear()
        self._metrics["train"].begin_step()
        batches = [self.with_negatives(batch) for batch in batches]
        counts = count_roles(batches).to(device, non_blocking=True)
        return batches, Step(self.accelerator.reduce(counts, reduction="mean"))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """See ``Trainer.training_step``; one backward pass for each part that ``max_tokens_per_batch`` allows."""
        return self.finite.counted(self._in_parts(model, inputs, num_items_in_batch), inputs)

    def _in_parts(self, model: nn.Module, inputs: Any, num_items_in_batch: Any) -> Tensor:
        if self.args.max_tokens_per_batch is None:
            return super().training_step(model, inputs, num_items_in_batch)
        batch: Any = self._prepare_inputs(inputs)
        parts = self._parts(model, batch)
        if len(parts) == 1:
            return super().training_step(model, batch, num_items_in_batch)
        step: Any = self.look_ahead(model, parts, num_items_in_batch or Step(count_roles([batch])))
        losses = []
        for part in parts:
            # ranks wait for each other once a batch, after the last part
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, step))  # type: ignore[arg-type]
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See ``Trainer.compute_loss``; ``num_items_in_batch`` is the :class:`Step`, None where the batch is all."""
        self._used_weights.note(inputs)
        loss, values = self.batch_loss(model, inputs, step=num_items_in_batch or WHOLE)
        loss = self._used_weights.touch(model, loss)
        if model.training:
            self._tokens.add(count_tokens(inputs))
            self._metrics["train"].add(values)
        return (loss, {"loss": loss.detach(), **values}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See ``Trainer.log``; a line of training also carries the metrics of its steps."""
        if "loss" in logs:
            logs = {**logs, **self._metrics["train"].summary(), "num_tokens": float(self._tokens.total())}
            if self.finite.skips:
                mean = self.finite.mean_loss()
                logs |= {"skipped_steps": self.finite.skipped} | ({} if mean is None else {"loss": mean})
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See ``Trainer.save_model``; a checkpoint of weights that are not finite is not begun."""
        refuse_file(output_dir, "save_model")
        if _internal_call and (broken := broken_weights(self.model)):
            raise UserError(
                f"step {self.state.global_step} has ruined the model, which is not saved: {len(broken)} of its trained "
                f"weights are infinite or not numbers ({some(broken)}). Go back to an earlier checkpoint, with a lower "
                "trainer.learning_rate; in float16 use bfloat16."
            )
        if _internal_call and self.is_fsdp_enabled and self.optimizer is not None:
            fill_optimizer_state(self.optimizer)
        if _internal_call and output_dir is not None and self.is_world_process_zero():
            begin_checkpoint(Path(output_dir))
        with phase("saving"):
            super().save_model(output_dir, _internal_call)
        if self.is_in_train and _internal_call and output_dir is not None:
            # the Trainer would now remove old checkpoints, before this one is sealed; Sealing sets it again
            self.args.save_total_limit = None

    @property
    def histograms(self) -> dict[str, list[int]]:
        """What belongs to the newest line of training beside its scalars, for records that hold more than scalars."""
        return self._metrics["train"].histograms

    def floating_point_ops(self, inputs: Any) -> int:
        """The usual 6 * tokens * parameters; an estimate, for the Trainer's own log."""
        if not hasattr(self, "_num_parameters"):
            policy: Any = self.model
            self._num_parameters = int(policy.num_parameters(exclude_embeddings=True))
        return 6 * count_tokens(inputs) * self._num_parameters

    def evaluate(
        self,
        eval_dataset: Rows | Mapping[str, Rows] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """See ``Trainer.evaluate``; rows may be in any form that training takes."""
        own = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        rows: Any = eval_dataset
        if not (isinstance(rows, str) and rows in own):
            rows = _by_name(rows, "eval_dataset")
        if not isinstance(rows, dict):  # each set of a dictionary comes back here by itself
            self.prepare_evaluation(rows if isinstance(rows, RowDataset) else None)
        with phase("evaluation"):
            return super().evaluate(rows, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Rows, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """See ``Trainer.predict``; rows may be in any form that training takes.

        Returns:
            ``predictions`` are ``(rows, 2)``, float32, in the order of the rows: a value of the chosen answer and the
            mean of the same value over the row's negatives, NaN where it has none. The value is lbar in stage 1 (nats
            per token, of the gentle negative) and the reward in stage 2 (beta times the log-ratio). ``label_ids`` are
            ``(rows,)`` zeros, int64: the column of the better answer. ``metrics`` are those of an evaluation.
        """
        rows = _as_rows(test_dataset, "test_dataset")
        self.prepare_evaluation(rows)
        return super().predict(rows, ignore_keys, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: str | RowDataset | None = None) -> DataLoader[Any]:  # type: ignore[override]
        """See ``Trainer.get_eval_dataloader``, which gives persistent workers' rows in place of new ones."""
        if isinstance(eval_dataset, RowDataset) and eval_dataset is not self.eval_dataset:
            return self.get_test_dataloader(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss and what :meth:`predict` gives of each row; what else is reported is remembered.

        Of rows that are there a second time, the Trainer drops what is given, and the rest does not count them.
        """
        batch: Any = self._prepare_inputs(inputs)
        rows = len(batch["prompts"])
        once = self._rows_once(rows)
        if 0 < once < rows:
            # the losses find the crops of a row by its index, and pass over others
            crops = {"cropped": batch["cropped"]} if "cropped" in batch else {}
            batch = select_prompts(batch, [*range(once)])[0] | crops
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, values = self.compute_loss(model, batch, return_outputs=True)
        del values["loss"]
        if once:
            self._metrics["eval"].add(values)
        if prediction_loss_only:
            return loss.detach(), None, None
        found = self._of_rows(batch, values)
        found = nn.functional.pad(found, (0, 0, 0, rows - len(found)), value=torch.nan)  # ranks give equally many
        # labels are what makes the Trainer call compute_metrics
        return loss.detach(), found, torch.zeros(len(found), dtype=torch.int64, device=found.device)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """See ``Trainer.evaluation_loop``; adds the means of the metrics that :meth:`batch_loss` gives."""
        self._metrics["eval"].clear()  # of an evaluation that was interrupted
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        found = self._metrics["eval"].summary() | (self.probe_metrics() if self.probe_metrics else {})
        metrics = (output.metrics or {}) | {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return output._replace(metrics=metrics)

    def _rows_once(self, rows: int) -> int:
        """How many rows of this rank's batch, the first ones, are not there a second time: accelerate fills the last
        batches with rows of the first, so that ranks have equally many."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(int(state.remainder) - int(self.accelerator.process_index) * rows, 0), rows)

    def _of_rows(self, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """``(P, 2)`` the predicted values of each row's answers, the mean where there are several of a role."""
        columns = []
        for role, name in self.predicted.items():
            found, places = values[name].float(), batch["prompt_index"][places_of(batch, role)]
            total = found.new_zeros(len(batch["prompts"])).index_add(0, on_device(places, found.device), found)
            columns.append(total / on_device(np.bincount(places, minlength=len(total)), found.device))
        return torch.stack(columns, dim=1)

    @contextmanager
    def _with(self, sealing: Sealing) -> Iterator[None]:
        """Old checkpoints are removed when a new one is sealed, and not by the Trainer, before."""
        self.add_callback(sealing)
        try:
            yield
        finally:
            self.args.save_total_limit = sealing.limit
            self.remove_callback(sealing)

    def _evaluated(self) -> list[RowDataset]:
        sets = self.eval_dataset
        return list(sets.values()) if isinstance(sets, dict) else [] if sets is None else [sets]

    def _have_images_everywhere(self, sets: Iterable[RowDataset | None]) -> None:
        """Where processes must use the same weights, see that each pass over these rows has an image."""
        if self.args.world_size == 1 or self._used_weights.has_stand_in or not divides_gradients(self.accelerator):
            return
        if self.is_sharded and (features := features_of(self.engine)) is not None:
            features.refuse("the weights are divided among processes, which must all encode at the same time")
        stand_in = choose_stand_in([rows for rows in sets if rows is not None], self.collate)
        self.engine = with_stand_in(self.engine, stand_in)
        self._used_weights.has_stand_in = stand_in is not None

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from, verified; the same on every rank."""
        if not wanted:
            return None
        found: str | None = None
        problem: str | None = None
        if self.is_world_process_zero():
            try:
                found = _verified(wanted, Path(str(self.args.output_dir)))
            except UserError as error:
                problem = str(error)
        found, problem = broadcast_object_list([found, problem])
        if problem is not None:
            raise UserError(problem)
        return found

    def _restore(self, checkpoint: str) -> None:
        if not self.is_sharded:  # divided weights load strictly, in formats of their own
            restore_weights(self.model, Path(checkpoint))

    def _parts(self, model: nn.Module, batch: Batch) -> list[Batch]:
        budget = self.args.max_tokens_per_batch
        assert budget is not None
        with self.compute_loss_context_manager():  # the engine may check itself on the batch, as it will be used
            costs = self.engine.costs(model, batch)
        tokens = [cost.rows * cost.tokens for cost in costs]
        if max(tokens) > budget and not self._warned_of_long_row:
            self._warned_of_long_row = True
            logger.warning(
                "row %d has %d tokens, more than max_tokens_per_batch (%d): such rows run alone",
                batch["row_index"][tokens.index(max(tokens))],
                max(tokens),
                budget,
            )
        parts = parts_within(costs, budget)
        if self.args.world_size > 1:  # wrappers and losses wait for each other in every pass
            number = torch.tensor(len(parts), device=self.args.device)
            parts = cut_further(parts, int(self.accelerator.gather(number).max()))
        return [batch] if len(parts) == 1 else [select_prompts(batch, sorted(part))[0] for part in parts]


def _verified(wanted: str | bool, directory: Path) -> str:
    """The newest whole checkpoint, or the one that is wanted, if it is whole and holds the optimizer's state."""
    found = verified_checkpoint(directory) if wanted is True else Path(str(wanted))
    if found is None:
        raise UserError(f"no whole checkpoint in {directory}; leave out resume_from_checkpoint.")
    if not found.is_dir():
        raise UserError(f"there is no directory {found}. {path_advice(found, otherwise='True takes the newest one.')}")
    problem = None if wanted is True else find_damage(found, thorough=True)
    if problem is not None:
        raise UserError(f"{wanted} is damaged ({problem}). Resume from another checkpoint.")
    if not (found / "scheduler.pt").is_file() and not [*found.glob("global_step*")]:  # DeepSpeed's
        raise UserError(
            f"{found} holds no state of the optimizer (it was saved with save_only_model), so training cannot go on as "
            "if it had not been interrupted. Start a new training from this checkpoint's model: leave out "
            "resume_from_checkpoint, and name the checkpoint as the model."
        )
    return str(found)


def count_tokens(batch: Batch) -> int:
    """Tokens of all prompts and answers, each once."""
    prompts = sum(prompt["input_ids"].numel() for prompt in batch["prompts"])
    cropped = count_tokens(batch["cropped"]) if "cropped" in batch else 0
    return prompts + int(batch["lengths"].sum()) + cropped


def _as_rows(rows: Rows, name: str) -> RowDataset:
    if isinstance(rows, RowDataset):
        return rows
    taken = RowDataset(rows, name=name)
    if len(taken):
        taken[0]  # what is wrong with every row is said at once, and not after a model was loaded
    return taken


def _by_name(rows: Rows | Mapping[str, Rows] | None, name: str) -> RowDataset | dict[str, RowDataset] | None:
    """The same for several sets of rows, each by its name."""
    if isinstance(rows, dict):
        return {key: _as_rows(of_key, f"{name}[{key!r}]") for key, of_key in rows.items()}
    return None if rows is None else _as_rows(rows, name)


@contextmanager
def _without_reload_warnings() -> Iterator[None]:
    """The Trainer's raw reload reports keys that ``_restore`` has already loaded under their right names."""

    def is_news(record: logging.LogRecord) -> bool:
        return "keys in the checkpoint model loaded" not in record.getMessage()

    reload_logger = logging.getLogger("transformers.trainer")
    reload_logger.addFilter(is_news)
    try:
        yield
    finally:
        reload_logger.removeFilter(is_news)
