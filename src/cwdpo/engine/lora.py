"""LoRA layers in fewer passes over memory: the frozen layer and its update are one function, with a backward pass of
its own. PEFT's layer makes four tensors of the output's size on the way forward (the layer, the update, the scaled
update, the sum) and as many backward; here the update is added where the layer's output lies.

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
        weights = None if args or kwargs else self._weights(x)
        if weights is None:
            return super().forward(x, *args, **kwargs)
        found: Tensor = _LoraLinear.apply(x.to(weights[0].dtype), *weights)  # type: ignore[no-untyped-call]
        return found

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float] | None:
        """Weight and bias of the layer, A, B and their scale, in one type; None where PEFT's own way is needed."""
        if self.disable_adapters or self.merged or torch.compiler.is_compiling():
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        (name,) = active
        layer, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        if not (_is_plain(layer) and _is_plain(down) and _is_plain(up)):
            return None
        if layer.weight.requires_grad or up.bias is not None or not isinstance(self.lora_dropout[name], nn.Identity):
            return None
        weights = (layer.weight, layer.bias, down.weight, up.weight)
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            weights = tuple(None if weight is None else weight.to(kind) for weight in weights)
        elif {x.dtype, down.weight.dtype, up.weight.dtype} != {layer.weight.dtype}:
            return None  # PEFT computes the update in the adapters' own type
        return *weights, float(self.scaling[name])


def _is_plain(part: nn.Module) -> bool:
    """Whether a call of a part is its class's arithmetic and nothing else."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return type(part) is nn.Linear and not any(hooks) and "forward" not in vars(part)


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + scale (x A^T) B^T``, with gradients for ``x``, ``A`` and ``B``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = linear(flat, down)
        out = linear(flat, weight, bias)
        torch.addmm(out, low, up.t(), alpha=scale, out=out)
        ctx.save_for_backward(flat, weight, down, up, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, low = ctx.saved_tensors
        above = gradient.reshape(-1, gradient.shape[-1])
        # a narrow matrix in the order that it is read in: on CPUs as it lies takes five times as long
        low_above = linear(above, up.t().contiguous()).mul_(ctx.scale)
        below = None
        if ctx.needs_input_grad[0]:
            below = above @ weight
            torch.addmm(below, low_above, down, out=below)
            below = below.view(ctx.shape)
        of_down = low_above.t() @ flat
        of_up = (low.t() @ above).t().mul_(ctx.scale)
        return below, None, None, of_down, of_up, None
