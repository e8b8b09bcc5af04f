"""The objectives as pure functions: :mod:`smooth_sft <cwdpo.losses.smooth_sft>` is stage 1,
:mod:`preference <cwdpo.losses.preference>` the family that stage 2 chooses from.
"""

from cwdpo.losses.preference import LOSSES, Pairs, cw_dpo_loss, preference_loss
from cwdpo.losses.smooth_sft import constrained_sft_loss, smoothed_nll, smoothed_sft_loss

__all__ = [
    "LOSSES",
    "Pairs",
    "constrained_sft_loss",
    "cw_dpo_loss",
    "preference_loss",
    "smoothed_nll",
    "smoothed_sft_loss",
]
