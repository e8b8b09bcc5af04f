"""LoRA layers with a backward pass of their own, beside PEFT's."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners import lora as peft
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
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


def outcome(model: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """The result, and the gradients of the input and of every weight, of a weighted sum of a model's results."""
    own = x.clone().requires_grad_()
    found = (call or model)(own)
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


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("lies", ["as rows", "transposed", "cut out"])
def test_adapters_of_zero_change_nothing_at_all(kind: torch.dtype, lies: str, is_mixed: bool) -> None:
    """However the input lies in memory: a layer with a bias rounds in another way where it does not lie as rows."""
    model = adapted(kind, zero=True)
    own = fused(model)
    x = torch.randn(9, 7, INPUTS, generator=torch.Generator().manual_seed(1)).to(kind)
    x = {"as rows": x, "transposed": x.transpose(0, 1), "cut out": x[:, 1:5]}[lies]

    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        with own.disable_adapter():
            expected = own(x)

        assert torch.equal(own(x), expected)
        with torch.no_grad():
            assert torch.equal(own(x), expected)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (0,), (2, 0)])
def test_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    model, x = adapted(), torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(1))

    found, expected = outcome(fused(model), x), outcome(deepcopy(model), x)

    assert found["result"].shape == (*shape, OUTPUTS)
    assert found["input"].shape == x.shape
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_inputs_that_do_not_lie_as_rows() -> None:
    model, x = adapted(), torch.randn(INPUTS, 7, 2, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)

    assert biggest_gap(outcome(fused(model), x), outcome(deepcopy(model), x)) < 1e-6


@pytest.mark.parametrize("shape", [(INPUTS,), (5, INPUTS), (2, 7, INPUTS)])
def test_models_may_change_a_result_in_place(shape: tuple[int, ...]) -> None:
    model, x = adapted(), torch.randn(*shape, generator=torch.Generator().manual_seed(1))

    def changed(model: nn.Module) -> dict[str, Tensor]:
        model.register_forward_hook(lambda module, args, output: output.mul_(2).add_(1))
        return outcome(model, x)

    assert biggest_gap(changed(fused(model)), changed(deepcopy(model))) < 1e-6


@pytest.mark.parametrize("what", ["input", "base_layer", "lora_A.default", "lora_B.default"])
def test_a_change_between_forward_and_backward_is_noticed(what: str) -> None:
    layer: Any = fused(adapted()).base_model.model[0]
    x = inputs().requires_grad_() * 1
    loss = layer(x).sum()
    with torch.no_grad():
        (x if what == "input" else layer.get_submodule(what).weight).add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_there_is_no_second_derivative() -> None:
    x = inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(fused(adapted())(x).pow(2).sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_that_are_computed_again_give_the_same_gradients(use_reentrant: bool) -> None:
    model = fused(adapted())
    expected = outcome(deepcopy(model), inputs())

    found = outcome(model, inputs(), partial(checkpoint, model, use_reentrant=use_reentrant))

    assert biggest_gap(found, expected) == 0.0


def test_a_backward_pass_under_mixed_precision_keeps_its_types() -> None:
    model = fused(adapted())
    x, grads = inputs().requires_grad_(), []
    for is_mixed in (False, True):
        loss = model(x).pow(2).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            grads.append(torch.autograd.grad(loss, x)[0])

    assert torch.equal(*grads)


def test_float64_stays_under_mixed_precision() -> None:
    model, x = adapted(torch.float64), inputs(torch.float64)

    with torch.autocast("cpu", torch.bfloat16):
        assert biggest_gap(outcome(fused(model), x), outcome(deepcopy(model), x)) == 0.0


@pytest.mark.parametrize("what", ["input", "base_layer", "lora_A.default", "lora_B.default"])
def test_float64_beside_other_types_is_an_error_under_mixed_precision_as_in_peft(what: str) -> None:
    model, x = adapted(), inputs(torch.float64 if what == "input" else torch.float32)
    for layer in (model, fused(model)):
        if what != "input":
            layer.base_model.model[0].get_submodule(what).double()  # type: ignore[operator, union-attr]

        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="dtype"):
            layer(x)


def test_without_values_there_is_a_shape() -> None:
    assert fused(adapted()).to("meta")(inputs().to("meta")).shape == (2, 7, OUTPUTS)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B", "lora_"])
def test_parts_that_do_not_train(frozen: str) -> None:
    model = adapted()
    for name, weight in model.named_parameters():
        weight.requires_grad_(frozen not in name and "lora_" in name)

    assert biggest_gap(outcome(fused(model), inputs()), outcome(deepcopy(model), inputs())) < 1e-6


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


def with_other_scales(model: PeftModel) -> None:
    for layer in model.modules():
        if isinstance(layer, peft.Linear):
            layer.scaling["default"] = nn.Parameter(torch.tensor(layer.scaling["default"]))  # type: ignore[assignment]


def merged(model: PeftModel) -> None:
    model.merge_adapter()


def switched_off(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def trained_whole(model: PeftModel) -> None:
    for name, weight in model.named_parameters():
        weight.requires_grad_("base_layer" in name)


@pytest.mark.parametrize("change", [with_two, with_other_scales, merged, switched_off, trained_whole])
def test_what_is_not_plain_is_left_to_peft(change: Any) -> None:
    model, own = adapted(), adapted()
    fuse_lora(own)
    for each in (model, own):
        torch.manual_seed(1)
        change(each)

    assert biggest_gap(outcome(own, inputs()), outcome(model, inputs())) == 0.0


def test_rows_with_an_adapter_each_are_left_to_peft() -> None:
    model = adapted().eval()
    torch.manual_seed(1)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    names = ["default", "second"]

    assert torch.equal(fused(model)(inputs(), adapter_names=names), model(inputs(), adapter_names=names))


def test_compilers_see_peft_s_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = adapted(), fused(adapted())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    assert biggest_gap(outcome(own, inputs()), outcome(model, inputs())) == 0.0


def with_own_forward(part: nn.Module) -> None:
    inner = part.forward
    part.forward = lambda x: inner(x) + 1  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "forward": with_own_forward,
    "forward hook": lambda part: part.register_forward_hook(lambda part, args, output: output + 1),
    "forward pre-hook": lambda part: part.register_forward_pre_hook(lambda part, args: (args[0] * 2,)),
    "backward hook": lambda part: part.register_full_backward_hook(lambda part, inner, outer: (inner[0] * 2,)),
    "backward pre-hook": lambda part: part.register_full_backward_pre_hook(lambda part, outer: (outer[0] * 2,)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default", "lora_dropout.default"])
def test_changed_parts_are_called(part: str, change: str) -> None:
    model, own = adapted(), fused(adapted())
    for each in (model, own):
        CHANGES[change](each.base_model.model[0].get_submodule(part))  # type: ignore[operator, union-attr]

    assert biggest_gap(outcome(own, inputs()), outcome(model, inputs())) < 1e-6


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_bias_that_trains_gets_its_gradient(bias: str) -> None:
    model = adapted(bias=bias)

    expected = outcome(deepcopy(model), inputs())

    assert any("base_layer.bias" in name for name in expected)
    assert biggest_gap(outcome(fused(model), inputs()), expected) < 1e-6


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")
@pytest.mark.parametrize(
    "settings",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}],
    ids=["dropout", "dora", "bias of adapters"],
)
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


@pytest.mark.parametrize("other", ["base_layer.weight", "lora_B.default.weight"])
def test_types_that_do_not_fit_are_an_error_as_in_peft(other: str) -> None:
    model = adapted()
    for name, weight in model.named_parameters():
        if name.endswith(other):
            weight.data = weight.data.bfloat16()

    for each in (model, fused(model)):
        with pytest.raises(RuntimeError, match="same dtype"):
            each(inputs())


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


def test_classes_that_others_made_of_peft_s_layer_stay_theirs() -> None:
    class Own(peft.Linear):
        pass

    model = adapted()
    layers = [module for module in model.modules() if type(module) is peft.Linear]
    layers[0].__class__ = Own

    assert fuse_lora(model) == 1
    assert [type(layer) for layer in layers] == [Own, FusedLora]


def test_a_plain_call_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = fused(adapted()), []
    short: Any = lora._LoraLinear.apply
    monkeypatch.setattr(lora._LoraLinear, "apply", lambda *args: calls.append(1) or short(*args))

    own(inputs())

    assert len(calls) == 2


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    flops = []
    for each in (adapted(), fused(adapted())):
        with FlopCounterMode(display=False) as counter:
            each(inputs()).sum().backward()
        flops.append(counter.get_total_flops())

    assert flops[0] == flops[1] > 0


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
