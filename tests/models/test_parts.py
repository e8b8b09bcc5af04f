"""A fingerprint is equal exactly when the weights are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import build
from torch import nn

from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy
from cwdpo.models.parts import fingerprint

Tiny = Callable[[str], Path]


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
