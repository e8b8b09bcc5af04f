"""LoRA layers with a backward pass of their own, beside PEFT's."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cwdpo.engine import lora
from cwdpo.engine.lora import FusedLora, fuse_lora

INPUTS, MIDDLE, OUTPUTS = 12, 20, 8


def adapted(kind: torch.dtype = torch.float32, *, zero: bool = False, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(INPUTS, MIDDLE), nn.SiLU(), nn.Linear(MIDDLE, OUTPUTS, bias=False)).to(kind)
    chosen = {"r": 3, "lora_alpha": 5, "target_modules": ["0", "2"], "init_lora_weights": zero} | settings
    return get_peft_model(inner, LoraConfig(**chosen), autocast_adapter_dtype=False)  # type: ignore[arg-type]


def fused(model: PeftModel) -> PeftModel:
    own = deepcopy(model)
    assert fuse_lora(own) == 2
    return own


def inputs(kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 7, INPUTS, dtype=kind, generator=torch.Generator().manual_seed(1))


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The result, and the gradients of the input and of every weight, of a weighted sum of a model's results."""
    own = x.clone().requires_grad_()
    found = model(own)
    weights = torch.linspace(-1.0, 2.0, found.numel(), dtype=torch.float64).view(found.shape)
    (found.double() * weights).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert own.grad is not None
    return {"result": found.detach(), "input": own.grad, **gradients}


def biggest_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(((found[key] - expected[key]).norm() / expected[key].norm()).item() for key in found)


@pytest.mark.parametrize(("kind", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_results_and_gradients_are_those_of_peft(kind: torch.dtype, bound: float) -> None:
    model = adapted(kind)

    expected = outcome(deepcopy(model), inputs(kind))

    assert sum(".lora_" in name for name in expected) == 4
    assert biggest_gap(outcome(fused(model), inputs(kind)), expected) < bound


def test_under_mixed_precision_gradients_are_as_near_to_exact_ones_as_peft_s() -> None:
    model = adapted()
    exact = outcome(deepcopy(model), inputs())

    with torch.autocast("cpu", torch.bfloat16):
        found, peft = outcome(fused(model), inputs()), outcome(deepcopy(model), inputs())

    assert found["result"].dtype == torch.bfloat16
    assert biggest_gap(found, exact) < 1.2 * biggest_gap(peft, exact) < 0.02


def test_adapters_of_zero_change_nothing_at_all() -> None:
    model = adapted(zero=True)
    own = fused(model)

    with model.disable_adapter():
        expected = model(inputs())

    assert torch.equal(own(inputs()), expected)


def test_a_first_layer_whose_input_is_constant_gets_its_gradients() -> None:
    model = adapted()
    own = fused(model)

    for each in (model, own):
        each(inputs()).sum().backward()

    for (name, weight), other in zip(model.named_parameters(), own.parameters(), strict=True):
        assert weight.grad is None or torch.allclose(weight.grad, other.grad, rtol=1e-5), name


def with_two(model: PeftModel) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def with_hook(model: PeftModel) -> None:
    for module in model.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda module, args, output: output + 1)


def with_own_forward(model: PeftModel) -> None:
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = lambda x, inner=module.forward: inner(x) + 1  # type: ignore[method-assign, misc]


def merged(model: PeftModel) -> None:
    model.merge_adapter()


def switched_off(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def trained_whole(model: PeftModel) -> None:
    for name, weight in model.named_parameters():
        weight.requires_grad_("base_layer" in name)


@pytest.mark.parametrize("change", [with_two, with_hook, with_own_forward, merged, switched_off, trained_whole])
def test_what_is_not_plain_is_left_to_peft(change: Any) -> None:
    model, own = adapted(), adapted()
    fuse_lora(own)
    for each in (model, own):
        torch.manual_seed(1)
        change(each)

    assert biggest_gap(outcome(own, inputs()), outcome(model, inputs())) == 0.0


def test_a_bias_that_trains_gets_its_gradient() -> None:
    model = adapted(bias="all")

    expected = outcome(deepcopy(model), inputs())

    assert any("base_layer.bias" in name for name in expected)
    assert biggest_gap(outcome(fused(model), inputs()), expected) < 1e-6


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=["dropout", "dora"])
def test_layers_of_other_kinds_are_left_to_peft(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    own = fused(model)

    with torch.random.fork_rng():
        torch.manual_seed(2)
        expected = outcome(model, inputs())
        torch.manual_seed(2)
        found = outcome(own, inputs())

    assert biggest_gap(found, expected) == 0.0


def in_types(layers: torch.dtype, adapters: torch.dtype) -> PeftModel:
    model = adapted()
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(adapters if ".lora_" in name else layers)
    return model


def test_adapters_in_a_wider_type_than_their_layer_compute_in_theirs() -> None:
    model = in_types(torch.bfloat16, torch.float32)
    exact = outcome(deepcopy(model).double(), inputs(torch.bfloat16).double())

    found, peft = outcome(fused(model), inputs(torch.bfloat16)), outcome(deepcopy(model), inputs(torch.bfloat16))

    assert found["result"].dtype == found["input"].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for name, gradient in found.items() if ".lora_" in name)
    assert biggest_gap(found, exact) < 1.2 * biggest_gap(peft, exact) < 0.02


def test_adapters_in_a_narrower_type_than_their_layer_are_left_to_peft() -> None:
    model = in_types(torch.float32, torch.bfloat16)

    assert torch.equal(fused(model)(inputs()), model(inputs()))


@pytest.mark.parametrize(("layers", "is_mixed", "share"), [(torch.float32, True, 0.55), (torch.bfloat16, False, 0.25)])
def test_in_16_bits_layers_with_one_input_keep_it_once(layers: torch.dtype, is_mixed: bool, share: float) -> None:
    """Of three layers with the same input; PEFT's keep a copy each."""
    kept = []
    for own in (False, True):
        parts = nn.ModuleDict({name: nn.Linear(256, 256) for name in "qkv"}).to(layers)
        model = get_peft_model(parts, LoraConfig(r=2, target_modules=list("qkv")))  # type: ignore[arg-type]
        if own:
            assert fuse_lora(model) == 3
        x = torch.randn(400, 256, dtype=torch.bfloat16, requires_grad=True)
        sizes: dict[int, int] = {}
        tensors = []
        own_weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes, tensors: list[Tensor] = tensors) -> Tensor:
            tensors.append(tensor)  # so that no other takes its place
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            sum(layer(x).sum() for layer in model.base_model.model.values())
        kept.append(sum(size for place, size in sizes.items() if place not in own_weights))

    assert kept[1] < share * kept[0]


def test_a_plain_call_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = fused(adapted()), []
    short: Any = lora._LoraLinear.apply
    monkeypatch.setattr(lora._LoraLinear, "apply", lambda *args: calls.append(1) or short(*args))

    own(inputs())

    assert len(calls) == 2


def test_it_takes_no_more_arithmetic_and_is_saved_as_peft_s() -> None:
    model = adapted()
    own = fused(model)
    flops = []
    for each in (model, own):
        with FlopCounterMode(display=False) as counter:
            outcome(each, inputs())
        flops.append(counter.get_total_flops())

    assert flops[0] == flops[1] > 0
    saved = [get_peft_model_state_dict(each) for each in (model, own)]
    assert saved[0].keys() == saved[1].keys()
    assert all(isinstance(layer, FusedLora) for layer in own.modules() if hasattr(layer, "lora_A"))
    merged = [each.merge_and_unload()(inputs()) for each in (model, own)]
    assert torch.equal(merged[0], merged[1])
