"""``activation_checkpointing: auto``: activations are recomputed where a step needs its memory, and kept otherwise.

To recompute them takes a third more time and changes no number. What a step needs is estimated; on a GPU, where more
than was asked for can be taken back, a trial step has the last word. What was decided stands beside the checkpoints.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn

from cwdpo.batch import Batch
from cwdpo.data.check import ROUGH, memory_estimate
from cwdpo.data.collate import AnswerCollator
from cwdpo.engine import Engine, features_of
from cwdpo.engine.layout import Cost, parts_within, select_prompts
from cwdpo.memory import free_memory, human_bytes, processes_here
from cwdpo.models.parts import bare_model
from cwdpo.records import object_in, write_json
from cwdpo.trainer_protocol import TrainerProtocol
from cwdpo.trainers.sharding import divides_gradients

logger = logging.getLogger(__name__)

_FILE = "activation_checkpointing.json"
"""Beside the checkpoints."""


_SPARE = 10
"""One byte in so many that are free stays free in a trial: sampled answers may be longer than the rows' own."""


@dataclass(frozen=True)
class StepRows:
    """How a trainer's rows become the passes of a step."""

    collate: AnswerCollator
    lengths: Callable[[], Sequence[int]]
    """Counts the tokens of each training row; not called where the answer is known without."""

    budget: int | None
    """As ``max_tokens_per_batch``."""


def decide_recomputing(trainer: TrainerProtocol, rows: StepRows, checkpoint: str | None) -> bool:
    """Whether training has to recompute activations, the same on all ranks; the log says why.

    Neither weights nor random numbers are changed. Training that goes on from a ``checkpoint`` does as it did before.
    """
    before = None if checkpoint is None else object_in(Path(checkpoint).parent / _FILE).get("on")
    before = broadcast_object_list([before])[0]
    if isinstance(before, bool):
        is_on, reason = before, "as it was when training began"
    elif divides_gradients(trainer.accelerator):
        is_on, reason = True, "weights or gradients are divided among processes, where no single step can be tried"
    else:
        with _same_random_numbers(trainer.args.device):
            is_on, reason = _decide(trainer, rows)
        # what the process with the least room must do, all do
        is_on = bool(trainer.accelerator.gather(torch.tensor(int(is_on), device=trainer.args.device)).max())
    if trainer.is_world_process_zero():
        directory = Path(str(trainer.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / _FILE, {"on": is_on, "reason": reason})
    logger.info("activation_checkpointing is %s: %s", "on" if is_on else "off", reason)
    return is_on


def _decide(trainer: TrainerProtocol, rows: StepRows) -> tuple[bool, str]:
    """Whether the longest rows need it in one step, and why."""
    data, lengths, device = trainer.train_dataset, rows.lengths(), trainer.args.device
    if not data:
        return False, "there are no rows to train on"
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])[: trainer.batch_rows]
    batch: Batch = send_to_device(rows.collate([data[i] for i in longest_first]), device)
    with trainer.accelerator.autocast():  # the engine may check itself on the batch, as it will be used
        passes, tokens = _largest_passes(trainer.engine, trainer.model, batch, rows.budget)
    half = trainer.args.bf16 or trainer.args.fp16
    passing, updating = step_bytes(trainer.model, tokens, bytes_per_value=2 if half else None)
    room = memory_room(device)
    counted = f"the longest rows ({tokens:,} tokens) take about {human_bytes(passing + updating)} of the"
    counted += f" {human_bytes(room)} that are free"
    can_try = device.type not in _MAIN_MEMORY
    # without a trial the estimate may be wrong by its whole factor
    if (passing + updating) * (1 if can_try else ROUGH) > room:
        return True, counted
    if can_try and not trial_fits(trainer, passes, reserved=updating + room // _SPARE):
        return True, f"{counted}, but a trial step ran out of memory"
    return False, f"{counted}, and a trial step had room" if can_try else counted


def _largest_passes(engine: Engine, model: nn.Module, batch: Batch, budget: int | None) -> tuple[list[Batch], int]:
    """What of a batch has its activations in memory at one time, at the most, and its tokens with padding."""

    def tokens(costs: Sequence[Cost]) -> int:
        return sum(cost.rows for cost in costs) * max(cost.tokens for cost in costs)

    if budget is None:
        passes = [batch, batch["cropped"]] if "cropped" in batch else [batch]
        return passes, sum(tokens(engine.costs(model, each)) for each in passes)
    costs = engine.costs(model, batch)
    parts = [sorted(part) for part in parts_within(costs, budget)]
    counts = [tokens([costs[i] for i in part]) for part in parts]
    largest = counts.index(max(counts))
    return [select_prompts(batch, parts[largest])[0]], counts[largest]


def step_bytes(model: nn.Module, tokens: int, *, bytes_per_value: int | None = None) -> tuple[int, int]:
    """Bytes that a step takes beside the weights: of the pass of so many tokens, with all activations, and of what the
    weights that train need for their update, which are gradients and AdamW's two moments.

    ``bytes_per_value`` are those of an activation; None takes the model's own type.
    """
    bare = bare_model(model)
    text = bare.config.get_text_config()
    passing = memory_estimate(
        num_parameters=0,
        trainable_parameters=0,
        bytes_per_value=bare.dtype.itemsize if bytes_per_value is None else bytes_per_value,
        tokens_per_batch=tokens,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocabulary_size=text.vocab_size,
    )["total"]
    return passing, 3 * sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)


_MAIN_MEMORY = ("cpu", "mps")
"""Devices that compute in the machine's own memory, where a step that takes too much may end the process."""


def memory_room(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type in _MAIN_MEMORY:
        return free_memory() // processes_here()
    card = torch.get_device_module(device)
    free: int = card.mem_get_info(device)[0]
    # what the allocator holds and nobody uses
    return free + int(card.memory_reserved(device)) - int(card.memory_allocated(device))


def trial_fits(trainer: TrainerProtocol, passes: Sequence[Batch], *, reserved: int) -> bool:
    """Whether log-probs of some batches and their gradients have room, all together and beside ``reserved`` bytes; the
    gradients are dropped.

    Images are encoded as if none was kept. The model's buffers, its modes and kept features stay as they were.
    """
    model, device = trainer.model, trainer.args.device
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    features = features_of(trainer.engine)
    beside: torch.Tensor | None = None
    try:
        beside = torch.empty(reserved, dtype=torch.uint8, device=device)
        model.train()
        with trainer.accelerator.autocast(), nullcontext() if features is None else features.off():
            total = torch.stack([trainer.engine.logprobs(model, batch).total.sum() for batch in passes]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        del beside
        model.zero_grad(set_to_none=True)
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if device.type not in _MAIN_MEMORY:
            torch.get_device_module(device).empty_cache()


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the numbers drawn afterwards are those that would have been drawn anyway."""
    python, numpy = random.getstate(), np.random.get_state()  # the one that libraries draw from
    own = {"devices": []} if device.type in ("cpu", "mps") else {"devices": [device], "device_type": device.type}
    try:
        with torch.random.fork_rng(**own):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
