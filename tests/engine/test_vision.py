"""Images are encoded once, and without gradient where nothing in the tower trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import AWKWARD_NAMES, MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine
from cwdpo.engine.vision import can_share_images, encode_frozen_without_grad

Tiny = Callable[[str], Path]
EVERY = (*NAMES, *MORE_NAMES, *AWKWARD_NAMES)
SHARING = [name for name in EVERY if name != "mllama"]


def mixed_batch(directory: Path) -> Batch:
    kinds = (1, 2, 1 if directory.name == "paligemma" else 0, 1)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7], [6, 2], [3], [2, 5, 5, 1]])


@pytest.mark.parametrize("name", SHARING)
def test_shared_images_equal_each_answer_alone(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    assert can_share_images(model)
    expected = token_logprobs(model, batch)
    found = PlainEngine(images_once=True).logprobs(model, batch)
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert any("vis" in name for name in by_name)  # the tower trains, through all the rows that share a picture
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


def test_mllama_cannot_share(tiny: Tiny) -> None:
    assert not can_share_images(load_model(tiny("mllama")))


def test_each_picture_is_encoded_once(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    pictures: list[int] = []
    count = lambda module, args, kwargs: pictures.append(len((*args, *kwargs.values())[0]))  # noqa: E731
    model.get_encoder(modality="image").register_forward_pre_hook(count, with_kwargs=True)
    PlainEngine(images_once=True).logprobs(model, batch)
    PlainEngine().logprobs(model, batch)
    assert pictures == [1 + 2 + 1, 3 * 1 + 2 * 2 + 4 * 1]


def graph_in_tower(model: Any, engine: Any, batch: Batch) -> list[bool]:
    """Whether the tower's last hidden states carry a gradient in a step."""
    seen: list[bool] = []

    def look(module: Any, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(hidden.requires_grad)

    handle = model.get_encoder(modality="image").register_forward_hook(look)
    engine.logprobs(model, batch).token.sum().backward()
    handle.remove()
    return seen


@pytest.mark.parametrize("engine", [PlainEngine(), PlainEngine(images_once=True), TreeEngine()])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics3"])
def test_a_frozen_tower_keeps_no_graph(name: str, engine: Any, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    model.enable_input_require_grads()
    assert all(graph_in_tower(model, engine, batch))
    model.get_encoder(modality="image").requires_grad_(False)
    assert not any(graph_in_tower(model, engine, batch))
    assert torch.is_grad_enabled()


def test_qwen_mergers_train_on_frozen_blocks(tiny: Tiny) -> None:
    model, batch = load_model(tiny("qwen3_vl")), mixed_batch(tiny("qwen3_vl"))
    tower = model.get_encoder(modality="image")
    expected = gradients(model, weighted_loss(token_logprobs(model, batch)))
    for name, weight in tower.named_parameters():
        weight.requires_grad_("merger" in name)
    blocks: list[bool] = []
    tower.blocks[-1].register_forward_hook(lambda module, args, output: blocks.append(output.requires_grad))
    model.enable_input_require_grads()
    found = gradients(model, weighted_loss(rows_of(TreeEngine().logprobs(model, batch))))
    assert blocks == [False]
    frozen = {n for n in expected if ".visual." in n and "merger" not in n}
    assert not frozen & set(found)
    assert any("deepstack_merger" in n for n in found)
    assert gradient_gap(found, {n: v for n, v in expected.items() if n not in frozen}) < 1e-5


def test_a_tower_that_trains_in_part_is_left_alone(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    tower = model.get_encoder(modality="image").requires_grad_(False)
    next(iter(tower.parameters())).requires_grad_(True)
    assert all(graph_in_tower(model, TreeEngine(), mixed_batch(tiny("llava"))))


def test_grad_mode_survives_an_error_in_the_tower(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    tower = model.get_encoder(modality="image").requires_grad_(False)
    with pytest.raises(AttributeError), encode_frozen_without_grad(model):
        tower(None)
    assert torch.is_grad_enabled()
