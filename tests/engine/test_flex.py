"""The tree by flex_attention: the same masks, the same numbers, and only where it is asked for.

The kernel needs a compiler and has no backward pass on a CPU. So all that is ours is looked at with a stand-in that
takes the same block masks, and the kernel itself in its forward pass.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt
from torch.nn.functional import scaled_dot_product_attention

from cwdpo.batch import Batch
from cwdpo.engine import attention, make_engine
from cwdpo.engine.tree import TreeEngine

Tiny = Callable[[str], Path]
EXACT = (*NAMES, *MORE_NAMES, "smolvlm")


def mixed_batch(directory: Path) -> Batch:
    kinds = (2, 1, 1 if directory.name == "paligemma" else 0)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7], [6, 2], [3]])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the rows that reach the stand-in kernel."""
    seen: list[int] = []

    def dense(query: Any, key: Any, value: Any, *, block_mask: Any, scale: float | None) -> Any:
        length = query.shape[2]
        index = torch.arange(length)
        rows = torch.arange(query.shape[0])[:, None, None, None]
        mask = block_mask.mask_mod(rows, torch.tensor(0), index[None, None, :, None], index[None, None, None, :])
        seen.append(length)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    monkeypatch.setattr(attention, "flex_kernel", lambda: dense)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_same_numbers_and_gradients(name: str, checkpointing: bool, tiny: Tiny, calls: list[int]) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    expected = token_logprobs(model, batch)
    by_name = gradients(model, weighted_loss(expected))
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    found = TreeEngine(attention="flex").logprobs(model, batch)
    forward = len(calls)
    assert forward >= 2  # layers
    assert gap(found, expected) < 1e-5
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5
    assert (len(calls) > forward) == checkpointing  # what is computed again runs by flex_attention again


@pytest.mark.slow
def test_the_kernel_itself_forward(tiny: Tiny) -> None:
    for name in ("qwen2_5_vl", "gemma3", "paligemma"):  # mrope, sliding windows, a prefix that sees both ways
        model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
        with torch.no_grad():
            assert gap(TreeEngine(attention="flex").logprobs(model, batch), token_logprobs(model, batch)) < 1e-5, name


@pytest.mark.slow
def test_a_model_that_runs_by_flex_attention_already(tiny: Tiny) -> None:
    model = load_model(tiny("llava"), attn_implementation="flex_attention")
    batch = mixed_batch(tiny("llava"))
    with torch.no_grad():
        assert gap(TreeEngine().logprobs(model, batch), token_logprobs(load_model(tiny("llava")), batch)) < 1e-5


def test_only_where_it_is_asked_for(tiny: Tiny, calls: list[int]) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    with torch.no_grad():
        make_engine("auto").logprobs(model, batch)
        assert calls == []
        TreeEngine(attention="flex").logprobs(model, batch)
    assert len(calls) == 2  # layers
