"""Weights, gradients or optimizer states divided among processes: FSDP2 and DeepSpeed's ZeRO."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from cwdpo.batch import Batch
from cwdpo.data.collate import RowDataset
from cwdpo.data.rows import Row
from cwdpo.engine.layout import pass_groups
from cwdpo.errors import ConfigError
from cwdpo.models.parts import bare_model
from cwdpo.trainers.arguments import AnswerArguments


@contextmanager
def dividing_among_cpus(args: TrainingArguments) -> Iterator[None]:
    """While open, an Accelerator that is made divides the weights among CPU processes too.

    Of itself it does so among GPUs alone: CPU processes would each train the whole model, without a word. And what it
    writes into the environment is forgotten before the next: a stage's settings are not those of another.
    """
    for name in _written:
        os.environ.pop(name, None)
    _written.clear()
    before = set(os.environ)
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU and args.fsdp_plugin_args is not None:
        state.distributed_type = DistributedType.MULTI_GPU
    if state.distributed_type == DistributedType.MULTI_CPU and args.deepspeed is not None:
        import deepspeed

        # it would be compiled at the first start, and gloo does the same
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    yield
    _written.update({name for name in set(os.environ) - before if name.startswith(("ACCELERATE_", "FSDP_"))})


_written: set[str] = set()
"""Names in the environment by which accelerate has remembered settings of the last trainer."""


def refuse_one_process(args: TrainingArguments) -> None:
    """Refuse to divide a model where there is nobody to divide it among."""
    what = "fsdp" if args.fsdp_plugin_args is not None else "deepspeed" if args.deepspeed is not None else None
    if what is not None and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            f"trainer.{what} divides the model among processes, and there is one. Start several with `torchrun "
            f"--nproc-per-node N -m cwdpo train RECIPE`, or take {what} out.",
            setting=what,
        )


def divides_weights(accelerator: Accelerator) -> bool:
    """Whether no process will have the whole model: with FSDP, and with stage 3 of DeepSpeed's ZeRO."""
    return _fsdp(accelerator) is not None or _zero_stage(accelerator) == 3


def divides_gradients(accelerator: Accelerator) -> bool:
    """Whether processes must use the same weights in the same order: with FSDP, and with every stage of ZeRO."""
    return _fsdp(accelerator) is not None or _zero_stage(accelerator) > 0


def fit_fsdp(accelerator: Accelerator, args: TrainingArguments, model: nn.Module) -> None:
    """Change what accelerate would do with FSDP2 so that it works for a model.

    The model's layers are gathered one by one, where the user names none: accelerate takes the classes that
    transformers does not split, and ends in an error where the model has no layer of one of them, and LLaVA names those
    of all vision towers that it may have. And layers checkpoint themselves: where accelerate wraps them for that, PEFT
    saves no adapters, as it does not find them under the wrappers' names.
    """
    plugin = _fsdp(accelerator)
    if plugin is None:
        return
    if plugin.transformer_cls_names_to_wrap is None:
        here = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(here & set(bare_model(model)._no_split_modules or ()))
    if plugin.activation_checkpointing:
        plugin.activation_checkpointing, args.activation_checkpointing = False, True


def check_sharding(accelerator: Accelerator, args: AnswerArguments) -> None:
    """Refuse to divide weights where it would end in an error, or lose what other settings ask for."""
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        for setting, problem in args.refused_under_deepspeed():
            raise ConfigError(problem, setting=setting)
    fsdp = _fsdp(accelerator)
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise ConfigError(
            "FSDP version 1 frees the output embeddings before the log-probs of answers are read with them. "
            "Write `fsdp_config: {version: 2}`, which is the default.",
            setting="fsdp_config",
        )
    if fsdp is not None and fsdp.cpu_ram_efficient_loading:
        raise ConfigError(
            "cpu_ram_efficient_loading gives the weights to the first process alone, but each has the whole model when "
            "it computes its share of the reference. Write `fsdp_config: {cpu_ram_efficient_loading: false}`, which is "
            "the default; with `accelerate config`, answer no to it.",
            setting="fsdp_config",
        )


def choose_stand_in(sets: Iterable[RowDataset], collate: Callable[[Sequence[tuple[int, Row]]], Batch]) -> Batch | None:
    """What gives an image to passes that have none, see :mod:`cwdpo.engine.stand_in`; None where all rows have images,
    or none has. Refuse rows that may not share a pass: processes would make different numbers of passes."""
    kinds: dict[int, tuple[int, Row]] = {}
    for rows in sets:
        for place in range(len(rows)):
            item = rows[place]
            kinds.setdefault(len(item[1].images), item)
    if len(kinds) > 1 and len(pass_groups(collate(list(kinds.values()))["prompts"])) > 1:
        numbers = " and ".join(map(str, sorted(kinds)))
        raise ConfigError(
            f"the rows have {numbers} images, which cannot share a forward pass of this model; where FSDP or DeepSpeed "
            "divide it, processes with different numbers of passes would wait for each other forever. Train the rows "
            "of each kind one after the other, or without FSDP and DeepSpeed (`torchrun` alone)."
        )
    if len(kinds) < 2 or 0 not in kinds:
        return None
    return collate([kinds[min(number for number in kinds if number)]])


def fill_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give weights that no step has used the state that their first use would find: zeros.

    A checkpoint of FSDP2 is loaded only where every weight that trains has a state, and a vision tower has weights that
    nothing uses, such as its last layer in LLaVA.
    """
    for group in optimizer.param_groups:
        known = next((weight for weight in group["params"] if optimizer.state.get(weight)), None)
        if known is None:
            continue
        for weight in group["params"]:
            if weight.requires_grad and not optimizer.state.get(weight):
                optimizer.state[weight] = {
                    name: torch.zeros_like(weight if value.shape == known.shape else value)
                    for name, value in optimizer.state[known].items()
                    if isinstance(value, torch.Tensor)
                }


def _fsdp(accelerator: Accelerator):  # type: ignore[no-untyped-def]  # accelerate has no types
    return getattr(accelerator.state, "fsdp_plugin", None)


def _zero_stage(accelerator: Accelerator) -> int:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else int(plugin.zero_stage)
