"""The plain engine against each answer alone, unpadded, with full logits from the model's own forward."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.naive_logprobs import (
    gap,
    gradient_gap,
    gradients,
    rows_of,
    token_logprobs,
    weighted_loss,
    whole_distributions,
)
from tiny import AWKWARD_NAMES, MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import forward as head_module
from cwdpo.engine.plain import PlainEngine

Tiny = Callable[[str], Path]
EVERY = (*NAMES, *MORE_NAMES, *AWKWARD_NAMES)
ONE_IMAGE, SEVERAL, TEXT = 1, 2, 0


def mixed_batch(directory: Path) -> Batch:
    """Several images, one, none; eight answers, two, one; of all lengths down to a single token."""
    kinds = (SEVERAL, ONE_IMAGE, ONE_IMAGE if directory.name == "paligemma" else TEXT)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7, 2, 9, 3, 1, 5], [6, 2], [3]])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_each_answer_alone(name: str, side: Any, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    with torch.no_grad():
        found = PlainEngine(padding_side=side).logprobs(model, batch)
        assert gap(found, token_logprobs(model, batch)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_gradients_equal_each_answer_alone(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    expected = gradients(model, weighted_loss(token_logprobs(model, batch)))
    found = gradients(model, weighted_loss(rows_of(PlainEngine().logprobs(model, batch))))
    assert gradient_gap(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "idefics3", "mllama"])
def test_order_and_batch_split_change_nothing(name: str, tiny: Tiny) -> None:
    model, engine = load_model(tiny(name)), PlainEngine()
    prompts = [make_prompt(tiny(name), images, words=2 + images, seed=3) for images in (2, 0, 1)]
    answers = [[4, 2], [3, 8], [1, 5]]
    batch = make_batch(prompts, answers)
    with torch.no_grad():
        whole = engine.logprobs(model, batch)
        backwards = Batch(
            row_index=batch["row_index"],
            prompts=prompts[::-1],
            prompt_index=np.array([0, 0, 1, 1, 2, 2]),
            roles=batch["roles"],
            lengths=batch["lengths"][::-1],
            answer_ids=batch["answer_ids"].flip(0),
            answer_mask=batch["answer_mask"].flip(0),
            keys=batch["keys"],
        )
        torch.testing.assert_close(engine.logprobs(model, backwards).token.flip(0), whole.token, atol=1e-5, rtol=0)
        for i, prompt in enumerate(prompts):
            alone = make_batch([prompt], [answers[i]])
            ids, mask = batch["answer_ids"][2 * i : 2 * i + 2], batch["answer_mask"][2 * i : 2 * i + 2]
            alone |= {"answer_ids": ids, "answer_mask": mask}
            found = engine.logprobs(model, alone).token
            torch.testing.assert_close(found, whole.token[2 * i : 2 * i + 2], atol=1e-5, rtol=0)


def test_details_against_full_logits(tiny: Tiny) -> None:
    model, batch = load_model(tiny("qwen2_vl")), mixed_batch(tiny("qwen2_vl"))
    want = ("uniform", "entropy", "collision", "confidence", "hit", "distribution")
    with torch.no_grad():
        found = PlainEngine().logprobs(model, batch, want=want)
        expected = whole_distributions(model, batch)
    hits = 0
    for a, rows in enumerate(expected):
        ids, n = batch["answer_ids"][a], len(rows)
        for t, row in enumerate(rows.tolist()):
            assert found.uniform[a, t].item() == pytest.approx(sum(row) / len(row), abs=1e-4)
            plogp = -sum(torch.tensor(row).exp().double().mul(torch.tensor(row)).tolist())
            assert found.entropy[a, t].item() == pytest.approx(plogp, abs=1e-4)
            agreement = math.log(sum(math.exp(2 * value) for value in row))
            assert found.collision[a, t].item() == pytest.approx(agreement, abs=1e-4)
            assert found.confidence[a, t].item() == pytest.approx(torch.tensor(max(row)).exp().item(), abs=1e-5)
            assert found.hit[a, t].item() == (row.index(max(row)) == ids[t].item())
            hits += int(found.hit[a, t])
        torch.testing.assert_close(found.distribution[a, :n], rows, atol=1e-5, rtol=0)
        assert not any(getattr(found, detail)[a, n:].any() for detail in want)


def test_hit_is_true_on_the_likeliest_token(tiny: Tiny) -> None:
    model, engine = load_model(tiny("llava")), PlainEngine()
    batch = make_batch([make_prompt(tiny("llava"), 1)], [[3]])
    with torch.no_grad():
        likeliest = whole_distributions(model, batch)[0][0].argmax()
        batch["answer_ids"][0, 0] = likeliest
        assert engine.logprobs(model, batch, want=["hit"]).hit[0].tolist()[0] is True


def test_gradient_of_uniform_reaches_the_model_and_entropy_does_not(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    batch = make_batch([make_prompt(tiny("llava"), 1)], [[3, 2]])
    found = PlainEngine().logprobs(model, batch, want=["uniform", "entropy"])
    assert not found.entropy.requires_grad
    expected = sum(rows.mean(dim=-1).sum() for rows in whole_distributions(model, batch))
    assert gradient_gap(gradients(model, found.uniform.sum()), gradients(model, expected)) < 1e-5


@pytest.mark.parametrize("keep", [0, 2**23])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_chunked_head_equals_whole(keep: int, rows: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("gemma3")), mixed_batch(tiny("gemma3"))
    whole = PlainEngine().logprobs(model, batch, want=["uniform", "entropy"])
    expected = gradients(model, whole.token.sum() + whole.uniform.sum())
    monkeypatch.setattr(head_module, "_KEEP_ELEMENTS", keep)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", rows * model.get_output_embeddings().weight.shape[0])
    found = PlainEngine().logprobs(model, batch, want=["uniform", "entropy"])
    torch.testing.assert_close(found.token, whole.token, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.entropy, whole.entropy, atol=1e-5, rtol=0)
    assert gradient_gap(gradients(model, found.token.sum() + found.uniform.sum()), expected) < 1e-6


def test_no_more_than_a_chunk_of_logits_is_ever_built(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("qwen3_vl")), mixed_batch(tiny("qwen3_vl"))
    head, sizes = model.get_output_embeddings(), []
    head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    limit = 4 * head.weight.shape[0]
    monkeypatch.setattr(head_module, "_KEEP_ELEMENTS", 0)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", limit)
    PlainEngine().logprobs(model, batch).token.sum().backward()
    assert max(sizes) == limit
    chunks = -(-int(batch["answer_mask"].sum()) // 4)
    assert len(sizes) == 2 + 2 * chunks  # the model's own call, the check, each chunk forward and again backward


def test_details_are_not_computed_again_going_backward(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("qwen3_vl")), mixed_batch(tiny("qwen3_vl"))
    own, calls = head_module._details, []
    monkeypatch.setattr(head_module, "_KEEP_ELEMENTS", 0)
    monkeypatch.setattr(head_module, "_details", lambda *args: calls.append(1) or own(*args))
    found = PlainEngine().logprobs(model, batch, want=["entropy", "uniform"])
    (found.token.sum() + found.uniform.sum()).backward()
    assert len(calls) == 1


def test_softcap_is_honoured_where_the_model_applies_it(tiny: Tiny) -> None:
    model = load_model(tiny("gemma3"))  # its config has a soft cap, which this class ignores
    batch = make_batch([make_prompt(tiny("gemma3"), 1)], [[3, 2]])
    before = PlainEngine().logprobs(model, batch).token.detach()
    model.config.text_config.final_logit_softcapping = cap = 0.7
    own = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        return type(output)(logits=cap * torch.tanh(output.logits / cap))

    model.forward = capped
    found = PlainEngine().logprobs(model, batch)
    assert gap(found, token_logprobs(model, batch)) < 1e-5
    assert not torch.allclose(found.token, before, atol=1e-2)


@pytest.mark.parametrize(("name", "value", "factor"), [("logit_scale", 0.25, 0.25), ("logits_scaling", 4.0, 0.25)])
def test_logit_scale_and_divisor(name: str, value: float, factor: float, tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    setattr(model.config.text_config, name, value)
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    assert head_module.configured_transform(model)(logits).tolist() == [[factor, -2 * factor, 3 * factor]]


def test_unknown_transform_is_caught(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    own = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        return type(output)(logits=output.logits * 1.5)

    model.forward = scaled
    with pytest.raises(RuntimeError, match=r"log-probs differ by .* nats"):
        PlainEngine().logprobs(model, make_batch([make_prompt(tiny("llava"), 1)], [[3]]))


def test_lora(tiny: Tiny) -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    model: Any = get_peft_model(load_model(tiny("qwen2_5_vl")), config).eval()
    batch = mixed_batch(tiny("qwen2_5_vl"))
    expected = token_logprobs(model, batch)
    found = PlainEngine().logprobs(model, batch)
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert any("lora" in name for name in by_name)
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


def test_bfloat16_weights_and_autocast(tiny: Tiny) -> None:
    batch = mixed_batch(tiny("qwen2_vl"))
    full, half = load_model(tiny("qwen2_vl")), load_model(tiny("qwen2_vl"), dtype=torch.bfloat16)
    batch["prompts"] = [{k: v.clone() for k, v in prompt.items()} for prompt in batch["prompts"]]
    with torch.no_grad():
        expected = token_logprobs(full, batch)
        found = PlainEngine().logprobs(half, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = PlainEngine().logprobs(full, batch)
    for each in (found, cast):
        assert each.token.dtype == torch.float32
        assert 1e-5 < gap(each, expected) < 0.3


def test_prompts_that_cannot_share_a_pass_come_back_in_order(tiny: Tiny) -> None:
    model = load_model(tiny("mllama"))
    prompts = [make_prompt(tiny("mllama"), images, words=3, seed=i) for i, images in enumerate((1, 0, 1, 0, 2))]
    batch = make_batch(prompts, [[2], [3, 1], [4], [1, 5], [2, 2]])
    with torch.no_grad():
        found = PlainEngine().logprobs(model, batch, want=["entropy"])
        assert gap(found, token_logprobs(model, batch)) < 1e-5
    assert found.entropy is not None
    assert found.mask.equal(batch["answer_mask"])
