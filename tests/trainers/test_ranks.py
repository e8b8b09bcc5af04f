"""What several processes are refused, and how a sharded model answers."""

import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.naive_logprobs import rows_of, token_logprobs, weighted_loss
from tiny.prompts import load_model, make_batch, make_prompt
from torch import distributed

from cwdpo.data.collate import RowDataset
from cwdpo.data.rows import Row
from cwdpo.engine import make_engine
from cwdpo.errors import ConfigError
from cwdpo.trainers.base import check_sharding


def sharded(rows: list[Row], **plugins: Any) -> Any:
    """What :func:`check_sharding` looks at."""
    fsdp, deepspeed = plugins.get("fsdp"), plugins.get("deepspeed")
    state = SimpleNamespace(
        fsdp_plugin=fsdp and SimpleNamespace(fsdp_version=fsdp),
        deepspeed_plugin=deepspeed and SimpleNamespace(zero_stage=deepspeed),
    )
    return SimpleNamespace(state=state), RowDataset(rows)


def test_what_cannot_work_is_refused(rows: list[Row]) -> None:
    pictured = [row for row in rows if row.images]
    assert 0 < len(pictured) < len(rows)
    check_sharding(*sharded(rows))
    check_sharding(*sharded(rows, deepspeed=2))
    check_sharding(*sharded(pictured, fsdp=2))
    check_sharding(*sharded([replace(row, images=()) for row in rows], deepspeed=3))
    with pytest.raises(ConfigError, match="version: 2"):
        check_sharding(*sharded(pictured, fsdp=1))
    for plugin in ({"fsdp": 2}, {"deepspeed": 3}):
        with pytest.raises(ConfigError, match="some rows have images and some have none"):
            check_sharding(*sharded(rows, **plugin))


def rank(number: int, store: Path, checkpoint: Path, result: Any) -> None:
    """One of two ranks of a model whose weights are divided: the largest gaps of log-probs and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=number, world_size=2)
    prompts = [make_prompt(checkpoint, 1 + i, words=3 + i, seed=10 * number + i) for i in range(2)]
    batch = make_batch(prompts, [[4, 2], [3, 5]])
    whole, model = load_model(checkpoint), load_model(checkpoint)
    expected = token_logprobs(whole, batch)
    weighted_loss(expected).backward()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    engine = make_engine("tree")
    found = rows_of(engine.logprobs(model, batch))
    weighted_loss(found).backward()
    gap = max((ours - theirs).abs().max().item() for ours, theirs in zip(found, expected, strict=True))
    gradients = []
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        mean = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        distributed.all_reduce(mean)
        if ours.grad is not None:
            gradients.append(((ours.grad.full_tensor() - mean / 2).abs().max().item(), mean.abs().max().item() / 2))
    largest = max(size for _, size in gradients)
    result.put((gap, max(error for error, _ in gradients) / largest, largest))
    distributed.barrier()  # so that neither leaves while the other still needs it
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_weights_divided_by_fsdp_answer_like_whole_ones(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    context = get_context("spawn")
    result = context.SimpleQueue()
    children = [context.Process(target=rank, args=(n, tmp_path / "store", tiny(name), result)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(180)
        assert child.exitcode == 0
    for gap, error, largest in (result.get(), result.get()):
        assert largest > 1e-4
        assert gap < 1e-5
        assert error < 1e-5
