"""The tree by flex_attention: the same masks, the same numbers, and only where it was checked.

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
from cwdpo.engine import checked as choice
from cwdpo.engine import make_engine
from cwdpo.engine import tree as tree_attention
from cwdpo.engine.checked import Check
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

    monkeypatch.setattr(tree_attention, "flex_kernel", lambda: dense)
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
    found = TreeEngine(flex_from=1).logprobs(model, batch)
    forward = len(calls)
    assert forward >= 2  # layers
    assert gap(found, expected) < 1e-5
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5
    assert (len(calls) > forward) == checkpointing  # what is computed again runs by flex_attention again


def test_short_rows_keep_their_own_attention(tiny: Tiny, calls: list[int]) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    TreeEngine(flex_from=1000).logprobs(model, batch)
    assert calls == []


@pytest.mark.slow
def test_the_kernel_itself_forward(tiny: Tiny) -> None:
    for name in ("qwen2_5_vl", "gemma3", "paligemma"):  # mrope, sliding windows, a prefix that sees both ways
        model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
        with torch.no_grad():
            assert gap(TreeEngine(flex_from=1).logprobs(model, batch), token_logprobs(model, batch)) < 1e-5, name


@pytest.mark.slow
def test_a_model_that_runs_by_flex_attention_already(tiny: Tiny) -> None:
    model = load_model(tiny("llava"), attn_implementation="flex_attention")
    batch = mixed_batch(tiny("llava"))
    with torch.no_grad():
        assert gap(TreeEngine().logprobs(model, batch), token_logprobs(load_model(tiny("llava")), batch)) < 1e-5


@pytest.mark.parametrize("broken", [False, True])
def test_used_for_long_rows_where_the_check_allows(
    broken: bool, tiny: Tiny, calls: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "_flex_pays", lambda bare, batch: True)  # it says no on a CPU
    monkeypatch.setattr("cwdpo.engine.checked.FLEX_FROM", 1)
    if broken:
        kernel = tree_attention.flex_kernel()
        monkeypatch.setattr(tree_attention, "flex_kernel", lambda: lambda *args, **kwargs: 2 * kernel(*args, **kwargs))
    model, batch, engine = load_model(tiny("llava")), mixed_batch(tiny("llava")), make_engine("auto")
    with torch.no_grad():
        assert gap(engine.logprobs(model, batch), token_logprobs(model, batch)) < 1e-5
    (made,) = engine.report["choices"]
    assert made["engine"] == "tree"
    assert made["checks"]["flex_attention"]["ok"] is not broken
    assert ("flex_attention is not used" in caplog.text) == broken
    assert (len(calls) > 2 * 2) != broken  # beyond two layers of the check's two passes


def test_never_on_a_cpu(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        choice.CheckedEngine,
        "_with_flex",
        lambda self, *args: asked.append("flex") or Check(True, ""),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr("cwdpo.engine.checked.FLEX_FROM", 1)
    with torch.no_grad():
        make_engine("auto").logprobs(load_model(tiny("llava")), mixed_batch(tiny("llava")))
    assert asked == []
