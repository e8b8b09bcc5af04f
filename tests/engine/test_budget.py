"""A budget bounds what passes through the model at once, counted as the engine lays it out, and changes no number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, token_logprobs
from tiny.prompts import load_model, make_batch, make_prompt
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor

from cwdpo.batch import AnswerLogprobs, Batch
from cwdpo.engine import make_engine, within_budget
from cwdpo.engine.layout import Cost, plain_costs, tree_costs
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine

Tiny = Callable[[str], Path]
ENGINES = [TreeEngine(), PlainEngine(), PlainEngine(images_once=True)]


def batch_of(directory: Path) -> Batch:
    prompts = [make_prompt(directory, images, words=3 + 2 * i, seed=i) for i, images in enumerate((1, 0, 1, 2))]
    return make_batch(prompts, [[4, 7], [6, 2], [3], [2, 5, 5]])


def tokens_of_passes(model: Any) -> list[int]:
    seen: list[int] = []
    model.get_decoder().layers[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2].numel()))
    return seen


@pytest.mark.parametrize("engine", ENGINES, ids=["tree", "plain", "images_once"])
def test_passes_keep_to_the_budget_and_the_numbers_stay(engine: Any, tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), batch_of(tiny("llava"))
    largest = max(cost.rows * cost.tokens for cost in engine.costs(model, batch))
    passes = tokens_of_passes(model)
    with torch.no_grad():
        found = within_budget(engine, largest).logprobs(model, batch)
        assert 1 < len(passes) <= 4
        assert max(passes) <= largest
        assert gap(found, token_logprobs(model, batch)) < 1e-5


def test_with_gradient_a_batch_passes_whole(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), batch_of(tiny("llava"))
    passes = tokens_of_passes(model)
    within_budget(TreeEngine(), 1).logprobs(model, batch).token.sum().backward()
    assert len(passes) == 1


def shard_as_fsdp2(weight: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(weight.data, mesh))


def shard_as_zero3(weight: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    weight.ds_id = 0  # how DeepSpeed marks each weight
    return weight


class Counting:
    """Stands for an engine whose passes would have to wait for other ranks."""

    def __init__(self) -> None:
        self.report: dict[str, Any] = {}
        self.passes = 0

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return tree_costs(batch)

    def logprobs(self, model: nn.Module, batch: Batch, **_: Any) -> AnswerLogprobs:
        self.passes += 1
        return AnswerLogprobs(token=batch["answer_mask"].float(), mask=batch["answer_mask"])


@pytest.mark.parametrize(
    ("shard", "passes"), [(shard_as_fsdp2, 1), (shard_as_zero3, 1), (lambda weight, mesh: weight, 4)]
)
def test_sharded_weights_take_a_batch_whole_so_that_all_ranks_make_equally_many_passes(
    shard: Callable[..., nn.Parameter], passes: int, tiny: Tiny
) -> None:
    model, batch, engine = nn.Linear(2, 2), batch_of(tiny("llava")), Counting()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model.weight = shard(model.weight, init_device_mesh("cpu", (1,)))
        with torch.no_grad():
            within_budget(engine, 1).logprobs(model, batch)
    finally:
        distributed.destroy_process_group()
    assert engine.passes == passes


def test_without_a_budget_there_is_no_wrapper() -> None:
    engine = TreeEngine()
    assert within_budget(engine, None) is engine


@pytest.mark.parametrize(("name", "costs"), [("llava", tree_costs), ("lfm2_vl", plain_costs)])
def test_costs_are_those_of_the_engine_that_will_be_used(name: str, costs: Any, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), batch_of(tiny(name))
    engine = make_engine("auto")
    assert engine.costs(model, batch) == costs(batch)
    with torch.no_grad():
        engine.logprobs(model, batch)
    assert len(engine.report["choices"]) == 1
