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
    dropout, several adapters, merged or switched off ones, a variant such as DoRA, or hooks on the parts.
    """
    layers = [module for module in model.modules() if type(module) is lora.Linear]
    for layer in layers:
        layer.__class__ = FusedLora
    return len(layers)


class FusedLora(lora.Linear):
    """PEFT's layer but for its ``forward``; saved, merged and loaded as PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        name = None if args or kwargs else self._plain_adapter()
        types = None if name is None else self._types(x, name)
        if name is None or types is None:
            return super().forward(x, *args, **kwargs)
        layer, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        found: Tensor = _LoraLinear.apply(x, layer.weight, layer.bias, down, up, float(self.scaling[name]), *types)  # type: ignore[no-untyped-call]
        return found

    def _plain_adapter(self) -> str | None:
        """The one active adapter, where there is nothing but it and the frozen layer."""
        if self.disable_adapters or self.merged or torch.compiler.is_compiling():
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        (name,) = active
        if not isinstance(self.lora_dropout[name], nn.Identity) or self.lora_B[name].bias is not None:
            return None
        if not all(map(_is_plain, (self.base_layer, self.lora_A[name], self.lora_B[name]))):
            return None
        return None if self.base_layer.weight.requires_grad else name

    def _types(self, x: Tensor, name: str) -> tuple[torch.dtype, torch.dtype] | None:
        """What the layer, and what its adapter computes in; None where that is PEFT's to say."""
        parts: tuple[Any, ...] = (self.base_layer, self.lora_A[name], self.lora_B[name])
        layer, down, up = (part.weight.dtype for part in parts)
        if torch.is_autocast_enabled(x.device.type):
            mixed = torch.get_autocast_dtype(x.device.type)
            return mixed, mixed
        if x.dtype != layer or down != up or torch.promote_types(layer, down) != down:
            return None
        return layer, down


def _is_plain(part: nn.Module) -> bool:
    """Whether a call of a part is its class's arithmetic and nothing else."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return type(part) is nn.Linear and not any(hooks) and "forward" not in vars(part)


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + scale (x A^T) B^T``, with gradients for ``x``, ``A`` and ``B``.

    The layer computes in the type ``own`` and its adapter in ``wide``, as PEFT has it. What is kept for the backward
    pass are ``x`` and the weights as they came, and ``x A^T``: layers with the same input keep it once, where PEFT
    keeps a copy for each in the type that it computes in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        own: torch.dtype,
        wide: torch.dtype,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inputs = flat.to(own)
        low = linear(inputs.to(wide), down.to(wide))
        out = linear(inputs, weight.to(own), None if bias is None else bias.to(own)).to(wide)
        torch.addmm(out, low, up.to(wide).t(), alpha=scale, out=out)
        ctx.save_for_backward(flat, weight, down, up, low)
        ctx.scale, ctx.shape, ctx.own, ctx.wide = scale, x.shape, own, wide
        return out.to(own).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, low = ctx.saved_tensors
        own, wide = ctx.own, ctx.wide
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_wide = of_out.to(wide)
        # a narrow matrix in the order that it is read in: on CPUs as it lies takes five times as long
        of_low = linear(of_wide, up.to(wide).t().contiguous()).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight.to(own)).to(wide)
            torch.addmm(of_x, of_low, down.to(wide), out=of_x)
            of_x = of_x.to(flat.dtype).view(ctx.shape)
        of_down = (of_low.t() @ flat.to(own).to(wide)).to(down.dtype)
        of_up = (low.t() @ of_wide).t().mul(ctx.scale).to(up.dtype)
        return of_x, None, None, of_down, of_up, None, None, None
