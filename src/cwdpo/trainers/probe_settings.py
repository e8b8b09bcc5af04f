"""What a stage's probes measure, and what follows from their readings."""

from collections.abc import Sequence
from dataclasses import dataclass

from cwdpo.probes import GROUPS


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What is measured and what follows from it; see :class:`cwdpo.config.recipe.ProbesConfig`."""

    every: int | None = None
    groups: Sequence[str] = GROUPS
    stop_on: Sequence[str] = ()
    patience: int = 2
    tolerance: float = 0.02
    keep_best: bool = False
    seed: int = 0
