"""Adapters go where they are meant to, and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cwdpo.errors import ConfigError, UserError
from cwdpo.models import adapters
from cwdpo.models.adapters import add_lora, load_adapter, lora_targets, quantization_config
from cwdpo.models.loading import load_policy
from cwdpo.models.parts import part_sizes

Tiny = Callable[[str], Path]

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "idefics3"]
LINEAR_PER_LAYER = {
    *(f"self_attn.{kind}_proj" for kind in "qkvo"),
    *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
}
VISION = ("model.visual.", "model.vision_tower.", "model.vision_model.")


@pytest.mark.parametrize("name", FAMILIES)
def test_language_is_every_linear_layer_of_the_language_model(name: str, tiny: Tiny) -> None:
    decoder = "model.text_model" if name == "idefics3" else "model.language_model"
    expected = {f"{decoder}.layers.{layer}.{kind}" for layer in range(2) for kind in LINEAR_PER_LAYER}
    assert set(lora_targets(load_policy(tiny(name)), "language")) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_takes_the_tower_only_if_it_is_not_frozen(name: str, tiny: Tiny) -> None:
    model = load_policy(tiny(name))
    linear = {key for key, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert set(lora_targets(model, "all-linear", freeze_vision=False)) == linear
    frozen = set(lora_targets(model, "all-linear"))
    assert frozen == {key for key in linear if not key.startswith(VISION)}
    assert frozen < linear


def test_names_and_patterns(tiny: Tiny) -> None:
    model = load_policy(tiny("llava"))
    layer = "model.language_model.layers.{}.self_attn.q_proj"
    with pytest.raises(ConfigError, match="hits the vision tower"):
        lora_targets(model, ["q_proj"])
    assert len(lora_targets(model, ["q_proj"], freeze_vision=False)) == 4
    assert lora_targets(model, r".*language_model.*q_proj") == [layer.format(0), layer.format(1)]
    assert lora_targets(model, [layer.format(1)]) == [layer.format(1)]


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (["q_prj"], "Did you mean `q_proj`"),
        ("gate_projs", "Did you mean `gate_proj`"),
        ("zzz", "Layers are called"),
        ("(", "not a regular expression"),
    ],
)
def test_nothing_hit_is_refused(target: Any, match: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=match):
        lora_targets(load_policy(tiny("llava")), target)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("target", ["language", "all-linear"])
def test_fresh_adapters_change_nothing_and_alone_train(name: str, target: str, tiny: Tiny) -> None:
    ids = torch.arange(10, 40)[None]
    model = load_policy(tiny(name)).eval()
    targets = lora_targets(model, target)
    before = model(input_ids=ids).logits
    adapted = add_lora(model, r=2, alpha=4, target_modules=target).eval()
    assert torch.equal(adapted(input_ids=ids).logits, before)
    sizes = {size.part: size for size in part_sizes(adapted)}
    assert all(size.trainable == (size.total if part == "adapters" else 0) for part, size in sizes.items())
    trained = {key.split(".lora_")[0] for key, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained == {f"base_model.model.{key}" for key in targets}


def shake(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("trainable", [True, False])
def test_saved_adapters_load_whole(trainable: bool, tiny: Tiny, tmp_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    adapted = add_lora(load_policy(tiny("qwen2_5_vl")), r=2, alpha=4).eval()
    shake(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = load_adapter(load_policy(tiny("qwen2_5_vl")), tmp_path, trainable=trainable).eval()
    assert torch.equal(loaded(input_ids=ids).logits, adapted(input_ids=ids).logits)
    assert not torch.equal(loaded(input_ids=ids).logits, load_policy(tiny("qwen2_5_vl")).eval()(input_ids=ids).logits)
    assert any(weight.requires_grad for weight in loaded.parameters()) == trainable


def test_incomplete_or_foreign_adapters_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapters"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    add_lora(load_policy(tiny("llava")), r=2, alpha=4).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    lost = weights.pop(next(iter(weights)))
    save_file(weights, file)
    with pytest.raises(UserError, match="lacks 1 adapter weights"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    save_file({**weights, "base_model.model.other.lora_A.weight": lost}, file)
    with pytest.raises(UserError, match="lacks 1 adapter weights"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    file.write_bytes(b"12345678")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(load_policy(tiny("llava")), tmp_path)


def test_quantization_needs_its_library_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cwdpo"):
        quantization_config()
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        quantization_config()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.quantization_config.BitsAndBytesConfig.post_init", lambda self: None)
    four, eight = quantization_config(4, "fp4", False), quantization_config(8)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "fp4", False)
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)
