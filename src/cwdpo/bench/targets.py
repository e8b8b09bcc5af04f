"""What a step may cost at most, as a share of TRL's with its CUDA behaviour. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Quantity: TypeAlias = Literal["FLOPs", "saved activations", "time"]

_FLOPS = {
    # lora, checkpointing
    (False, False): {"ii": 0.44, "i256": 0.43, "i1024": 0.40},
    (True, False): {"ii": 0.39, "i256": 0.38, "i1024": 0.33},
    (True, True): {"ii": 0.35, "i256": 0.31, "i1024": 0.22},
}
_FLOPS_WITH_FEATURES = {"i1024": 0.20}  # LoRA without checkpointing
_SAVED = {False: 0.56, True: 0.62}
_TIME = {"ii": 0.47, "i256": 0.45, "i1024": 0.45}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit, and how it was kept."""

    quantity: Quantity
    features: bool
    """Whether it is for kept features, or for the tree with a cached reference alone."""

    limit: float
    ratio: float | None = None
    """What was measured; None before."""

    @property
    def met(self) -> bool:
        """Whether the measured ratio, unrounded, is within the limit."""
        return self.ratio is not None and self.ratio <= self.limit


def targets(setting: str, *, lora: bool, checkpointing: bool) -> Sequence[Target]:
    """The limits for one setting of the bench.

    Example:
        >>> [(target.quantity, target.limit) for target in targets("ii", lora=True, checkpointing=True)]
        [('FLOPs', 0.35), ('time', 0.47)]
    """
    found: list[tuple[float | None, Quantity, bool]] = [
        (_FLOPS.get((lora, checkpointing), {}).get(setting), "FLOPs", False)
    ]
    if lora and not checkpointing:
        found.append((_FLOPS_WITH_FEATURES.get(setting), "FLOPs", True))
    if not checkpointing:
        found.append((_SAVED[lora], "saved activations", False))
    found.append((_TIME[setting], "time", False))
    return [Target(quantity=q, features=f, limit=limit) for limit, q, f in found if limit is not None]
