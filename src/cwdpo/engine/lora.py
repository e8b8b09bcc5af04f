"""LoRA layers in less memory and fewer passes over it: the frozen layer and its update are one function, with a
backward pass of its own. PEFT's layer makes four tensors of the output's size on the way forward (the layer, the
update, the scaled update, the sum) and as many backward, and keeps a copy of its input wherever it changes its type;
here the update is added where the layer's output lies, and the input is kept as it came.

The arithmetic is PEFT's, so that values and gradients differ by rounding alone (``tests/engine/test_lora.py``), and
adapters of zero change nothing at all. Hu et al. (2021), "LoRA", equation 3: ``h = W x + (alpha / r) B A x``.
"""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def fuse_lora(model: nn.Module) -> int:
    """Let the plain LoRA layers of a model compute as above, in place; how many there are.

    Layers of other classes (quantised, of convolutions) stay PEFT's, and so does each call that is not plain: with
    dropout, several adapters, merged or switched off ones, a variant such as DoRA, a scale that is a tensor, or hooks
    on the parts.
    """
    layers = [module for module in model.modules() if type(module) is lora.Linear]
    for layer in layers:
        layer.__class__ = FusedLora
    return len(layers)


class FusedLora(lora.Linear):
    """PEFT's layer but for its ``forward``; saved, merged and loaded as PEFT's.

    Where rows are few, as in sampling, a call's time is Python's. So parts are looked up in the modules' own
    dictionaries, and without gradients no autograd function is called.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        name = None if args or kwargs else self._plain_adapter()
        if name is None:
            return super().forward(x, *args, **kwargs)
        layer, down, up = (part._parameters for part in self._parts(name))
        weights: tuple[Any, Any, Any, Any] = (layer["weight"], layer["bias"], down["weight"], up["weight"])
        types = _types(x, *weights)
        if types is None:
            return super().forward(x, *args, **kwargs)
        if not torch.is_grad_enabled():
            return _forward(x, *weights, self.scaling[name], *types)[0]
        found: Tensor = _LoraLinear.apply(x, *weights, self.scaling[name], *types)  # type: ignore[no-untyped-call]
        return found

    def _plain_adapter(self) -> str | None:
        """The one active adapter, where there is nothing but it and the frozen layer."""
        if self.disable_adapters or self.merged or torch.compiler.is_compiling():
            return None
        active = self.active_adapters
        name = active[0] if len(active) == 1 else ""
        inside: Any = self._modules
        if name not in inside["lora_A"]._modules or name in self.lora_variant:
            return None
        parts = self._parts(name)
        frozen = not any(weight.requires_grad for weight in parts[0]._parameters.values() if weight is not None)
        is_plain = frozen and all(map(_is_plain, parts)) and parts[2]._parameters["bias"] is None
        is_plain = is_plain and _is_plain(inside["lora_dropout"]._modules[name], nn.Identity)
        return name if is_plain and isinstance(self.scaling[name], float | int) else None

    def _parts(self, name: str) -> tuple[Any, Any, Any]:
        """The frozen layer, A and B."""
        inside: Any = self._modules
        return inside["base_layer"], inside["lora_A"]._modules[name], inside["lora_B"]._modules[name]


def _is_plain(part: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a call of a part is its class's arithmetic and nothing else."""
    return type(part) is kind and not (
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in part.__dict__
    )


def _types(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[torch.dtype, torch.dtype] | None:
    """What a layer, and what its adapter computes in; None where that is PEFT's to say."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # tensors without values, on "meta"
        return None
    if torch.is_autocast_enabled(device):
        mixed = torch.get_autocast_dtype(device)  # of all types but float64, which stays
        return None if torch.float64 in (x.dtype, weight.dtype, down.dtype, up.dtype) else (mixed, mixed)
    own, wide = weight.dtype, down.dtype
    if x.dtype != own or up.dtype != wide:
        return None
    return (own, wide) if own == wide or torch.promote_types(own, wide) == wide else None


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    own: torch.dtype,
    wide: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The result, and what lies behind A, as rows; the layer computes in ``own``, its adapter in ``wide``."""
    inputs = x.to(own)
    # in the shape that it came in: as rows, a layer with a bias may round in another way than it does alone
    alone = linear(inputs, weight.to(own), None if bias is None else bias.to(own))
    low = linear(_rows(inputs).to(wide), down.to(wide))
    out = _rows(alone).to(wide)
    torch.addmm(out, low, up.to(wide).t(), alpha=scale, out=out)
    return out.to(own).view(alone.shape).data, low  # a view, without ``data``, may not be changed in place by a model


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + scale (x A^T) B^T``, with gradients for ``x``, ``A`` and ``B``.

    What is kept for the backward pass are ``x`` and the weights as they came, and ``x A^T``: layers with the same input
    keep it once, where PEFT keeps a copy for each in the type that it computes in.
    """

    @staticmethod
    def forward(ctx: Any, *call: Any) -> Tensor:  # as of :func:`_forward`
        out, low = _forward(*call)
        x, weight, _, down, up, ctx.scale, ctx.own, ctx.wide = call
        ctx.save_for_backward(x, weight, down, up, low)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        own, wide = ctx.own, ctx.wide
        with torch.autocast(x.device.type, enabled=False):  # types are those of the way forward
            of_out = _rows(gradient)
            of_wide = of_out.to(wide)
            # a narrow matrix in the order that it is read in: on CPUs as it lies takes five times as long
            of_low = linear(of_wide, up.to(wide).t().contiguous()).mul_(ctx.scale)
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = (of_out @ weight.to(own)).to(wide)
                torch.addmm(of_x, of_low, down.to(wide), out=of_x)
                of_x = of_x.to(x.dtype).view(x.shape)
            of_down = (of_low.t() @ _rows(x).to(wide)).to(down.dtype)
            of_up = (low.t() @ of_wide).t().mul(ctx.scale).to(up.dtype)
        return of_x, None, None, of_down, of_up, None, None, None
