"""Cooling-weighted DPO: stable preference fine-tuning of vision-language models (arXiv 2510.11978).

What is public is loaded when it is first used, so that ``import cwdpo`` does not load torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


_TRAINERS = ("CWDPOConfig", "CWDPOTrainer", "SmoothSFTConfig", "SmoothSFTTrainer")
_MODULES = ("cooling", "diagnosis", "losses")

__all__ = [
    "CWDPOConfig",
    "CWDPOTrainer",
    "SmoothSFTConfig",
    "SmoothSFTTrainer",
    "__version__",
    "cooling",
    "diagnosis",
    "losses",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for."""
    if name in _TRAINERS:
        return getattr(import_module("cwdpo.trainers"), name)
    if name in _MODULES:
        return import_module(f"cwdpo.{name}")
    raise AttributeError(f"module 'cwdpo' has no attribute {name!r}; public are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
