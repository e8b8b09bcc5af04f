"""Cooling-weighted DPO: stable preference fine-tuning of vision-language models (arXiv 2510.11978)."""

from cwdpo.version import __version__

__all__ = ["__version__"]
