"""Which parts are frozen, what type pixels have; and a fingerprint is equal exactly when the weights are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import build
from torch import nn

from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy
from cwdpo.models.parts import cast_images, fingerprint, frozen_image_parts, keep_in_eval, vision_tower

Tiny = Callable[[str], Path]


def names(model: nn.Module) -> list[str]:
    """The parts found, by their names in the bare model."""
    found = {id(part) for part in frozen_image_parts(model)}
    return [name.removeprefix("base_model.model.") for name, module in model.named_modules() if id(module) in found]


@pytest.mark.parametrize(
    ("name", "trains", "expected"),
    [
        ("llava", "nothing but the language model", ["model.vision_tower", "model.multi_modal_projector"]),
        ("llava", "multi_modal_projector", ["model.vision_tower"]),
        ("llava", "vision_tower.encoder.layers.1", ["model.multi_modal_projector"]),
        ("idefics3", "vision_model", ["model.connector"]),
        ("qwen2_5_vl", "nothing but the language model", ["model.visual"]),
        ("qwen2_5_vl", "merger", ["model.visual.patch_embed", "model.visual.rotary_pos_emb", "model.visual.blocks"]),
        ("qwen2_5_vl", "visual.blocks.0", ["model.visual.merger"]),
        ("qwen2_5_vl", "visual", []),
    ],
)
def test_the_frozen_parts_are_those_without_a_weight_that_trains(
    name: str, trains: str, expected: list[str], tiny: Tiny
) -> None:
    model = load_policy(tiny(name), freeze_vision=False)
    language = {id(weight) for part in (model.get_decoder(), model.lm_head) for weight in part.parameters()}
    for full, weight in model.named_parameters():
        weight.requires_grad_(id(weight) in language or trains in full)
    assert names(model) == expected
    model.train()
    keep_in_eval(frozen_image_parts(model))
    inside = {id(module) for part in frozen_image_parts(model) for module in part.modules()}
    assert {id(module) for module in model.modules() if not module.training} == inside


def test_the_base_under_adapters_is_not_a_frozen_part(tiny: Tiny) -> None:
    """LoRA freezes the whole language model, which trains through its adapters; an adapter in the tower counts too."""
    on_language = add_lora(load_policy(tiny("llava")), r=2, alpha=4)
    assert names(on_language) == ["model.vision_tower", "model.multi_modal_projector"]
    on_all = add_lora(
        load_policy(tiny("llava"), freeze_vision=False), r=2, alpha=4, target_modules="all-linear", freeze_vision=False
    )
    assert names(on_all) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pixels_take_the_type_of_the_tower_and_nothing_else_is_cast(dtype: str, tiny: Tiny) -> None:
    model = load_policy(tiny("llava"), dtype="float32")
    tower = vision_tower(model)
    assert tower is not None
    tower.to(getattr(torch, dtype))
    given = {"pixel_values": torch.ones(1), "input_ids": torch.ones(1, dtype=torch.int64), "mask": torch.ones(1).bool()}
    found = cast_images(model, given)
    assert {name: value.dtype for name, value in found.items()} == {
        "pixel_values": getattr(torch, dtype),
        "input_ids": torch.int64,
        "mask": torch.bool,
    }


def test_survives_saving_and_ignores_mode(tiny: Tiny, tmp_path: Path) -> None:
    model = load_policy(tiny("qwen2_vl"))
    before = fingerprint(model)
    model.save_pretrained(tmp_path)
    assert fingerprint(load_policy(tmp_path, freeze_vision=False).train()) == before
    assert len(before) == 32


def test_seed_alone_decides(tmp_path: Path) -> None:
    one, same, other = (
        fingerprint(load_policy(build("llava", tmp_path / str(i), seed=seed))) for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other


@pytest.mark.parametrize("key", ["model.vision_tower.", "model.multi_modal_projector.", "lm_head."])
def test_one_bit_in_one_weight_shows(key: str, tiny: Tiny) -> None:
    model = load_policy(tiny("llava"))
    before = fingerprint(model)
    weight = next(weight for name, weight in model.named_parameters() if name.startswith(key))
    flat = weight.data.view(-1).view(torch.int32)
    flat[-1] ^= 1
    assert fingerprint(model) != before
    flat[-1] ^= 1
    assert fingerprint(model) == before


def test_names_shapes_dtypes_and_buffers_count() -> None:
    def of(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return fingerprint(module)

    zeros = torch.zeros(4)
    prints = [
        of(a=zeros),
        of(b=zeros),
        of(a=zeros.view(2, 2)),
        of(a=torch.zeros(4, dtype=torch.int32)),
        of(),
        of(a=zeros + 1),
    ]
    assert len(set(prints)) == len(prints)
    assert of(a=torch.tensor(1.0), b=zeros) == of(b=zeros, a=torch.tensor(1.0))
    assert of(a=torch.arange(6.0).view(2, 3).t()) == of(a=torch.arange(6.0).view(2, 3).t().contiguous())


def test_adapters_count(tiny: Tiny) -> None:
    model = add_lora(load_policy(tiny("llava")), r=2, alpha=4)
    before = fingerprint(model)
    next(weight for name, weight in model.named_parameters() if "lora_B" in name).data[0, 0] = 1e-3
    assert fingerprint(model) != before


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="meta device"):
        fingerprint(nn.Linear(1, 1, device="meta"))
