"""What the tree saves, counted by torch, at 1,024 image tokens."""

import copy
from typing import Any

import pytest
import torch
from tiny import build
from tiny.prompts import make_batch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, LlavaForConditionalGeneration

from cwdpo.batch import Batch
from cwdpo.engine import FeatureCache
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine

IMAGE_TOKENS, TEXT_TOKENS, ANSWER = 1024, 32, 32

# torch counts CUDA's attention kernels only
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config: Any = AutoConfig.from_pretrained(build("llava", tmp_path_factory.mktemp("flops") / "llava"))
    config.vision_config.image_size = 256
    config.text_config.max_position_embeddings = 2048
    return LlavaForConditionalGeneration(config).eval()


def batch_of(model: Any, answers: int) -> Batch:
    ids = torch.cat([torch.full((1, IMAGE_TOKENS), model.config.image_token_id), torch.full((1, TEXT_TOKENS), 70)], 1)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.rand(1, 3, 256, 256)}
    return make_batch([prompt], [[ANSWER] * answers])


def flops(engine: Any, model: Any, batch: Batch, *, backward: bool) -> int:
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, torch.set_grad_enabled(backward):
        logprobs = engine.logprobs(model, batch)
        if backward:
            logprobs.token.sum().backward()
    return int(counter.get_total_flops())


def warm(engine: Any, model: Any, batch: Batch) -> Any:
    with torch.no_grad():
        engine.logprobs(model, batch)  # the head is checked once a model, which is no part of a step
    return engine


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "backward", "limit"), [(8, False, 0.25), (2, True, 0.56)])
def test_tree_against_plain_rows(answers: int, backward: bool, limit: float, model: Any) -> None:
    batch = batch_of(model, answers)
    tree, plain = (
        flops(warm(engine, model, batch), model, batch, backward=backward) for engine in (TreeEngine(), PlainEngine())
    )
    # below 1 / answers, because the tree leaves out what nothing reads of the last layer
    assert 0.8 / answers < tree / plain <= limit


def test_kept_features_spare_the_tower_and_nothing_else(model: Any) -> None:
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen.get_decoder().requires_grad_(True)
    batch = batch_of(frozen, 2)
    engines = (TreeEngine(features=FeatureCache()), TreeEngine())
    kept, encoded = (flops(warm(engine, frozen, batch), frozen, batch, backward=True) for engine in engines)
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, torch.no_grad():
        frozen.get_image_features(pixel_values=batch["prompts"][0]["pixel_values"])
    assert encoded - kept == counter.get_total_flops() > 0.1 * encoded


def test_attention_is_counted(model: Any) -> None:
    batch = batch_of(model, 1)
    whole = flops(PlainEngine(), model, batch, backward=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        PlainEngine().logprobs(model, batch)
    length = IMAGE_TOKENS + TEXT_TOKENS + ANSWER - 1
    text, vision = 2 * 2 * 2 * 48 * length**2, 2 * 2 * 2 * 32 * (IMAGE_TOKENS + 1) ** 2
    assert whole - counter.get_total_flops() == text + vision
