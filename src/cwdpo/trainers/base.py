"""What both trainers share: rows in, an engine for log-probs, metrics out, and a resume that loses nothing."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.encode import Encoder
from cwdpo.engine import Engine, make_engine, within_budget
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.saving import restore_weights
from cwdpo.trainers.arguments import AnswerArguments
from cwdpo.trainers.checkpoints import last_checkpoint, no_partial_checkpoints
from cwdpo.trainers.ranks import agree_on_engine, check_sharding
from cwdpo.trainers.step_metrics import Observations, TokenCount
from cwdpo.trainers.steps import StepTrainer


class AnswerTrainer(StepTrainer):
    """A Trainer whose batch is prompts with answers. Not used itself: the two stages subclass it."""

    roles: Sequence[Role]
    """The answers of a row that take part in a step, in this order."""

    required: Sequence[Role]
    """Those of them that every row must have."""

    train_dataset: RowDataset | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        args: AnswerArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        engine: Engine | None = None,
    ) -> None:
        """Arguments are the Trainer's; an ``engine`` that others use too is checked once for all of them."""
        if isinstance(model, str):
            processing_class = processing_class or load_processor(model)
            model = load_policy(model)
        policy: Any = model
        if processing_class is None:
            raise ValueError("pass processing_class=AutoProcessor.from_pretrained(...): it turns rows into tensors.")
        if peft_config is not None:
            policy = get_peft_model(policy, peft_config)
        self.engine = within_budget(engine or make_engine(args.engine), args.max_tokens_per_batch)
        self.encoder = Encoder(
            processing_class,
            max_length=args.max_length,
            model_max_length=getattr(policy.config.get_text_config(), "max_position_embeddings", None),
        )
        self._observed = {"train": Observations(), "eval": Observations()}
        collator: Any = AnswerCollator(self.encoder, roles=self.roles, required=self.required)
        super().__init__(
            model=policy,
            args=args,
            data_collator=collator,
            train_dataset=_as_rows(train_dataset, "train_dataset"),
            eval_dataset=_as_rows(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.probe_metrics: Callable[[], dict[str, float]] | None = None
        """Readings of probes that an evaluation reports too; set by :class:`cwdpo.probes.callback.Probing`."""
        self._tokens = TokenCount()
        self.add_callback(self._tokens)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed divide the weights, so that no process has the whole model."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def batch_loss(
        self, model: nn.Module, batch: Batch, *, of_step: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, ``()``, and per-answer values to log, ``(n,)`` each.

        Args:
            model: the policy, in its wrappers.
            batch: what is computed at once.
            of_step: ``(roles,)`` answers by role in the whole step: every mean in the loss is weighted with
                :func:`cwdpo.trainers.steps.share`. None means that the batch is the whole step.
        """
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """See ``Trainer.compute_loss``. ``num_items_in_batch`` is the step's number of answers by role."""
        of_step = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else None
        loss, seen = self.batch_loss(model, inputs, of_step=of_step)
        self._observed["train" if model.training else "eval"].add(seen)
        if model.training:
            self._tokens.add(count_tokens(inputs))
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss alone; everything else that evaluation reports comes from what ``batch_loss`` saw."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """See ``Trainer.evaluation_loop``; adds the means of the observed values."""
        self._observed["eval"].summary()  # drops what a broken-off evaluation left
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        seen = self._observed["eval"].summary() | (self.probe_metrics() if self.probe_metrics else {})
        metrics = (output.metrics or {}) | {f"{metric_key_prefix}_{name}": value for name, value in seen.items()}
        return output._replace(metrics=metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See ``Trainer.log``; a line of training also carries the observed values."""
        if "loss" in logs:
            logs = {**logs, **self._observed["train"].summary(), "num_tokens": float(self._tokens.total())}
        super().log(logs, start_time)

    @property
    def histograms(self) -> dict[str, list[int]]:
        """What the newest line of training does not say in scalars, for records that hold more than scalars."""
        return self._observed["train"].histograms

    def floating_point_ops(self, inputs: Any) -> int:
        """The usual 6 * tokens * parameters; an estimate, for the Trainer's own log."""
        if not hasattr(self, "_num_parameters"):
            policy: Any = self.model
            self._num_parameters = int(policy.num_parameters(exclude_embeddings=True))
        return 6 * count_tokens(inputs) * self._num_parameters

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
        output_dir = Path(str(self.args.output_dir))
        check_sharding(self)
        agree_on_engine(self)
        with no_partial_checkpoints(output_dir):
            checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
            if checkpoint is not None:
                self._restore(checkpoint)
            with _without_reload_warnings():
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._restore(self.state.best_model_checkpoint)
        return output

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        if not wanted:
            return None
        found = last_checkpoint(Path(str(self.args.output_dir))) if wanted is True else wanted
        if found is None:
            raise ValueError(f"no whole checkpoint in {self.args.output_dir}; leave out resume_from_checkpoint.")
        return str(found)

    def _restore(self, checkpoint: str) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # those load by their own formats, strictly
        if not sharded and not isinstance(self.model, PeftModel):
            assert self.model is not None
            restore_weights(self.model, Path(checkpoint))


def count_tokens(batch: Batch) -> int:
    """Tokens of all prompts and answers, each once."""
    prompts = sum(prompt["input_ids"].numel() for prompt in batch["prompts"])
    return prompts + int(batch["answer_mask"].sum())


def _as_rows(dataset: Any, name: str) -> Any:
    if isinstance(dataset, dict):  # several evaluation sets by name
        return {key: _as_rows(rows, f"{name}[{key!r}]") for key, rows in dataset.items()}
    return dataset if dataset is None or isinstance(dataset, RowDataset) else RowDataset(dataset, name=name)


@contextmanager
def _without_reload_warnings() -> Iterator[None]:
    """The Trainer's raw reload reports keys that ``_restore`` has already loaded under their right names."""

    def is_news(record: logging.LogRecord) -> bool:
        return "keys in the checkpoint model loaded" not in record.getMessage()

    logger = logging.getLogger("transformers.trainer")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)
