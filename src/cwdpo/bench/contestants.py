"""Who is measured: TRL and this package, in the forms a user can choose, each able to take one step on one batch."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import set_seed

from cwdpo.engine import FeatureCache, make_engine
from cwdpo.engine.tree import TreeEngine
from cwdpo.errors import UserError
from cwdpo.models.adapters import lora_targets
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer

_SEED = 0
_STEP_AWAY = 0.005
"""Standard deviation of what is added to every trained weight, so that policy and reference differ and the loss is not
ln 2 whatever the log-probs are."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant is given."""

    model: Any
    """A bare model; each contestant takes a copy."""

    processor: Any
    rows: Dataset
    """One batch."""

    lora_rank: int | None
    """Rank of adapters on the language model; None trains every weight, the vision tower's too."""

    checkpointing: bool
    directory: Path
    """Where trainers may write."""

    on_gpu: bool = False
    """Whether contestants run on a GPU, wherever the model is."""


class Contestant:
    """A trainer with one batch, ready to step."""

    def __init__(self, trainer: Any, batch: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext):
        """Take over a trainer.

        Args:
            trainer: of transformers' kind; what it does when training begins must be done already, but for activation
                checkpointing.
            batch: as its collator makes it.
            context: open during every step.
        """
        self.trainer, self.context = trainer, context
        self.device: torch.device = trainer.args.device
        self.batch = send_to_device(batch, self.device)
        if trainer.args.activation_checkpointing:
            trainer.model.activation_checkpointing_enable()
        _step_away(trainer.model)
        trainer.model.train()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While open, the contestant is on its device; afterwards, if that is a GPU, in main memory: nine of them would
        not fit beside each other."""
        if self.device.type != "cuda":
            yield
            return
        for module in self.modules():
            module.to(self.device)
        try:
            yield
        finally:
            for module in self.modules():
                module.to("cpu")
            torch.cuda.empty_cache()

    def modules(self) -> list[nn.Module]:
        """The policy, and the reference where it is a model of its own."""
        reference = getattr(self.trainer, "ref_model", None) or getattr(
            getattr(self.trainer, "reference", None), "model", None
        )
        return [module for module in (self.trainer.model, reference) if isinstance(module, nn.Module)]

    def loss(self) -> Tensor:
        """The forward pass: the loss, ``()``, with its graph."""
        with self.context(), self.trainer.compute_loss_context_manager():
            loss: Tensor = self.trainer.compute_loss(self.trainer.model, self.batch)
        return loss

    def step(self) -> float:
        """Forward and backward pass; the loss. The optimiser, which costs all contestants the same, is left out."""
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.trainer.model.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def reference_pass(self) -> None:
        """The pass over one batch that fills the reference cache, once a run. Not for TRL, which has none."""
        self.trainer.model.eval()
        with self.trainer.compute_loss_context_manager():
            self.trainer.engine.logprobs(self.trainer.model, self.batch)
        self.trainer.model.train()

    def weights(self) -> Iterator[Tensor]:
        """The tensors that are held between steps."""
        model: nn.Module = self.trainer.model
        yield from model.parameters()
        yield from model.buffers()


def require_trl() -> Any:
    """The ``trl`` package, which is a development dependency.

    Raises:
        UserError: it is not installed, or chooses what it scores in a way that is not known here.
    """
    try:
        import trl.trainer.utils
    except ImportError as error:
        raise UserError("`cwdpo bench` measures TRL too, which is not installed. Run `pip install trl`.") from error
    package: Any = trl
    if not hasattr(package.trainer.utils, "_use_triton"):
        raise UserError("this version of TRL is not known here. Run `pip install trl==1.16.0`.")
    return package


def trl_dpo(task: Task, *, compact_head: bool) -> Contestant:
    """TRL's ``DPOTrainer``.

    Args:
        task: what to train on.
        compact_head: score answer tokens alone, as TRL does on CUDA; on a CPU it scores every position.

    Raises:
        UserError: see :func:`require_trl`.
    """
    theirs = require_trl()

    def forced() -> AbstractContextManager[Any]:
        return mock.patch.object(theirs.trainer.utils, "_use_triton", return_value=True)

    set_seed(_SEED)  # of the adapters' first values
    model = copy.deepcopy(task.model)
    trainer = theirs.DPOTrainer(
        model=model,
        ref_model=None if task.lora_rank else copy.deepcopy(task.model).requires_grad_(False),
        args=theirs.DPOConfig(max_length=None, **_arguments(task)),
        train_dataset=task.rows,
        processing_class=task.processor,
        peft_config=_lora(model, task.lora_rank),
    )
    batch = trainer.data_collator([task.rows[i] for i in range(len(task.rows))])
    return Contestant(trainer, dict(batch), forced if compact_head else nullcontext)


def cw_dpo(
    task: Task,
    *,
    engine: Literal["tree", "plain"],
    reference: Literal["cached", "live"],
    features: bool = False,
    flex: bool = False,
) -> Contestant:
    """This package's stage 2 without cooling, which is DPO.

    Args:
        task: what to train on.
        engine: how rows are laid out.
        reference: computed once, or in every step.
        features: keep image features from step to step; for a frozen tower.
        flex: run the tree's rows by ``flex_attention``, however short.
    """
    kept = FeatureCache() if features else None
    set_seed(_SEED)  # of the adapters' first values
    model = copy.deepcopy(task.model)
    trainer = CWDPOTrainer(
        model,
        args=CWDPOConfig(cooling=False, engine=engine, reference=reference, **_arguments(task)),
        train_dataset=task.rows,
        processing_class=task.processor,
        peft_config=_lora(model, task.lora_rank),
        engine=TreeEngine(flex_from=1, features=kept) if flex else make_engine(engine, features=kept),
    )
    trainer.open()
    rows: Any = trainer.train_dataset
    collator: Any = trainer.data_collator
    return Contestant(trainer, collator([rows[i] for i in range(len(rows))]))


def _arguments(task: Task) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(dir=task.directory),
        "per_device_train_batch_size": len(task.rows),
        "per_device_eval_batch_size": len(task.rows),
        "activation_checkpointing": task.checkpointing,
        "bf16": task.on_gpu and task.model.dtype == torch.bfloat16,
        "use_cpu": not task.on_gpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "beta": 0.1,
        "seed": _SEED,
    }


def _lora(model: Any, rank: int | None) -> LoraConfig | None:
    if rank is None:
        return None
    targets = lora_targets(model, "language")
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")


@torch.no_grad()
def _step_away(model: nn.Module) -> None:
    """Add the same noise to every contestant's trained weights, and nothing to their references."""
    generator = torch.Generator().manual_seed(_SEED)
    for weight in model.parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator) * _STEP_AWAY
            weight.add_(noise.to(weight.device, weight.dtype))
