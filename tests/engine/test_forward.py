"""A pass computes the last layer only where answers are predicted, and looks up once what is constant for a model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.naive_logprobs import gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt
from torch import nn

from cwdpo.batch import Batch, Role
from cwdpo.engine import forward
from cwdpo.engine.forward import not_numbers, works_on_single_positions
from cwdpo.engine.layout import one_row_a_prompt
from cwdpo.engine.tree import TreeEngine

Tiny = Callable[[str], Path]
EXACT = (*NAMES, *MORE_NAMES, "smolvlm")


def pictures(directory: Path, answers: list[list[int]], *, seed: int = 0) -> Batch:
    prompts = [make_prompt(directory, 1, words=3 + i, seed=seed + i) for i in range(len(answers))]
    return make_batch(prompts, answers, seed=seed)


def count_tokens(module: Any) -> list[int]:
    """Filled, at each of a module's calls, with the positions it is given."""
    seen: list[int] = []
    # behind every other hook: this sees what the module's own forward is given
    module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("name", EXACT)
def test_only_predicting_positions_reach_the_last_mlp(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), pictures(tiny(name), [[4, 2, 1], [3]])
    layers = model.get_decoder().layers
    last, first = count_tokens(layers[-1].mlp), count_tokens(layers[0].mlp)
    TreeEngine().logprobs(model, batch)
    layout, _ = one_row_a_prompt(batch)
    assert last == [(1 + 3 + 1 + 0) + (1 + 2)]  # each row's last prompt token, and all of its answers' but their last
    assert first == [layout.inputs["input_ids"].numel()]


@pytest.mark.parametrize("reentrant", [True, False])
def test_each_recomputation_knows_its_own_pass(reentrant: bool, tiny: Tiny) -> None:
    model = load_model(tiny("qwen3_vl"))
    batches = [pictures(tiny("qwen3_vl"), answers, seed=i) for i, answers in enumerate(([[4, 2]], [[3], [5, 1]]))]
    expected = gradients(model, sum(weighted_loss(token_logprobs(model, batch)) for batch in batches))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    mlp = count_tokens(model.get_decoder().layers[-1].mlp)
    found = [TreeEngine().logprobs(model, batch) for batch in batches]
    with torch.no_grad():
        TreeEngine().logprobs(model, batches[0])  # another pass before the first one is computed again
    loss = sum(weighted_loss(rows_of(each)) for each in found)
    assert gradient_gap(gradients(model, loss), expected) < 1e-5
    assert mlp[:3] == [5, 8, 5]
    assert set(mlp[3:]) <= {5, 8}


def test_other_passes_are_left_alone(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), pictures(tiny("llava"), [[4, 2]])
    prompt = batch["prompts"][0]
    before = model(**prompt).logits
    model.activation_checkpointing_enable()
    model.train()
    loss = TreeEngine().logprobs(model, batch).token.sum()
    loss.backward()
    model.eval()
    assert torch.equal(model(**prompt).logits, before)


def test_a_pass_that_breaks_off_leaves_nothing(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), pictures(tiny("llava"), [[4, 2]])
    prompt = batch["prompts"][0]
    before = model(**prompt).logits

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    handle = model.get_decoder().layers[-1].mlp.down_proj.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        TreeEngine().logprobs(model, batch)
    handle.remove()
    assert torch.equal(model(**prompt).logits, before)


def test_adapters_put_in_after_a_first_pass(tiny: Tiny) -> None:
    model, batch = load_model(tiny("qwen2_5_vl")), pictures(tiny("qwen2_5_vl"), [[4, 2], [3, 1]])
    TreeEngine().logprobs(model, batch)
    torch.manual_seed(0)
    config = LoraConfig(target_modules=r".*language_model.*_proj", init_lora_weights=False)
    adapted: Any = get_peft_model(model, config)
    expected = gradients(adapted, weighted_loss(token_logprobs(adapted, batch)))
    found = gradients(adapted, weighted_loss(rows_of(TreeEngine().logprobs(adapted, batch))))
    assert any("layers.1.mlp" in name for name in expected)
    assert gradient_gap(found, expected) < 1e-5


class Mixing(nn.Module):
    """What an MLP must not be: each position is scaled by what the others hold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden) * self.scale


def test_a_module_with_weights_of_its_own_is_computed_whole(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), pictures(tiny("llava"), [[4, 2]])
    layer = model.get_decoder().layers[-1]
    assert works_on_single_positions(layer.mlp)
    layer.mlp = Mixing(layer.mlp)
    assert not works_on_single_positions(layer.mlp)
    seen = count_tokens(layer.mlp)
    TreeEngine().logprobs(model, batch)
    assert seen == [one_row_a_prompt(batch)[0].inputs["input_ids"].numel()]


def test_convolutions_and_experts_are_not_taken_for_linear() -> None:
    experts = nn.Module()
    experts.weight = nn.Parameter(torch.zeros(4, 3, 3))
    assert not works_on_single_positions(nn.Sequential(nn.Linear(3, 3), experts))
    assert not works_on_single_positions(nn.Sequential(nn.Conv1d(3, 3, 2)))
    assert works_on_single_positions(nn.Sequential(nn.Linear(3, 3), nn.SiLU()))


def test_the_entropy_of_chosen_answers_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("llava")), pictures(tiny("llava"), [[4, 2], [3, 1]])
    batch["roles"] = np.array([int(Role.CHOSEN), int(Role.REJECTED), int(Role.REJECTED), int(Role.CHOSEN)])
    for chunk in (forward._CHUNK_ELEMENTS, 1):  # the second gives each token a chunk of its own
        monkeypatch.setattr(forward, "_CHUNK_ELEMENTS", chunk)
        whole = TreeEngine().logprobs(model, batch, want=("entropy",))
        part = TreeEngine().logprobs(model, batch, want=("chosen_entropy",))
        assert torch.equal(part.token, whole.token)
        assert whole.entropy is not None
        assert part.entropy is not None
        assert torch.equal(part.entropy[[0, 3]], whole.entropy[[0, 3]])
        assert not part.entropy[[1, 2]].any()
        assert whole.entropy[[1, 2]].any()


def test_what_is_constant_for_a_model_is_looked_up_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("qwen2_5_vl")), pictures(tiny("qwen2_5_vl"), [[4, 2]])
    own, text = model.config._attn_implementation, model.config.get_text_config()
    engine, seen = TreeEngine(), []
    layer = model.get_decoder().layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: seen.append(text._attn_implementation))
    expected = engine.logprobs(model, batch).token
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: pytest.fail("all modules are walked over again"))
    monkeypatch.setattr(forward, "frozen_image_parts", lambda bare: pytest.fail("they are known"))
    model.train()
    engine._forward._frozen[model] = []
    assert torch.equal(engine.logprobs(model, batch).token, expected)
    assert seen[0] == seen[1] != own
    assert model.config._attn_implementation == text._attn_implementation == own
    assert model.config.vision_config._attn_implementation == own


@pytest.mark.parametrize(("want", "chosen"), [("entropy", None), ("chosen_entropy", torch.tensor([0, 1]))])
def test_a_token_that_cannot_be_has_no_share_of_the_entropy(want: Any, chosen: torch.Tensor | None) -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0], [0.0, torch.nan, 0.0, 0.0, 0.0]])
    found = forward._read(logits, torch.tensor([0, 0]), [want], chosen)["entropy"]
    assert found[0].item() == pytest.approx(math.log(4))
    assert found[1].isnan()  # a model that is ruined still says so


def test_the_advice_for_logits_that_are_not_numbers_fits_their_type() -> None:
    for precision in (torch.float32, torch.bfloat16):  # what is finite in a file does not overflow in these
        assert str(not_numbers(precision)).endswith("(NaN): its weights are broken. Take another checkpoint.")
    assert "overflows in float16" in str(not_numbers(torch.float16))
    assert "`model.dtype: bfloat16`" in str(not_numbers(torch.float16))
