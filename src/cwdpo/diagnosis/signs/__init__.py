"""The signs, one function each: a finding, None where all is well, or MissingReadingsError where readings lack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cwdpo.diagnosis.history import Finding, StageHistory
from cwdpo.diagnosis.signs.distribution import overconfidence, reference_drift
from cwdpo.diagnosis.signs.negatives import easy_negative_saturation, false_negatives, over_cooling, stale_contrast
from cwdpo.diagnosis.signs.optimisation import gradient_spikes, non_finite_loss, reward_at_start, stalled_learning
from cwdpo.diagnosis.signs.shortcuts import image_blindness, length_shortcut
from cwdpo.diagnosis.signs.squeezing import likelihood_displacement, squeezing
from cwdpo.records import SignName


class Sign(NamedTuple):
    """One thing that can go wrong."""

    name: SignName
    judge: Callable[[StageHistory], Finding | None]
    needs_preferences: bool
    """Looked for in stages that train preferences only."""


SIGNS: Sequence[Sign] = (
    Sign("non_finite_loss", non_finite_loss, False),
    Sign("reward_at_start", reward_at_start, True),
    Sign("squeezing", squeezing, True),
    Sign("likelihood_displacement", likelihood_displacement, True),
    Sign("false_negatives", false_negatives, True),
    Sign("overconfidence", overconfidence, False),
    Sign("reference_drift", reference_drift, True),
    Sign("image_blindness", image_blindness, False),
    Sign("length_shortcut", length_shortcut, True),
    Sign("easy_negative_saturation", easy_negative_saturation, True),
    Sign("over_cooling", over_cooling, True),
    Sign("stale_contrast", stale_contrast, True),
    Sign("gradient_spikes", gradient_spikes, False),
    Sign("stalled_learning", stalled_learning, False),
)
"""In the order of :data:`cwdpo.records.SIGN_NAMES`."""
