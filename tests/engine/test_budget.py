"""A budget bounds what passes through the model at once, counted as the engine lays it out, and changes no number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, token_logprobs
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import make_engine, within_budget
from cwdpo.engine.layout import plain_costs, tree_costs
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
