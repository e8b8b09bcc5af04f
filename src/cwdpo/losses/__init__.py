"""The objectives of both stages, as pure functions of log-probs."""

from cwdpo.losses.cw_dpo import cw_dpo_loss
from cwdpo.losses.smooth_sft import constrained_sft_loss, smoothed_nll, smoothed_sft_loss

__all__ = ["constrained_sft_loss", "cw_dpo_loss", "smoothed_nll", "smoothed_sft_loss"]
