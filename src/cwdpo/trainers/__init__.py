"""The two stages as trainers on ``transformers.Trainer``."""

from cwdpo.trainers.arguments import CWDPOConfig, SmoothSFTConfig
from cwdpo.trainers.cw_dpo import CWDPOTrainer
from cwdpo.trainers.smooth_sft import SmoothSFTTrainer

__all__ = ["CWDPOConfig", "CWDPOTrainer", "SmoothSFTConfig", "SmoothSFTTrainer"]
