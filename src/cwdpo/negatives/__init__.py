"""Negatives: made by one small edit, mixed, and filtered; pure functions on text that load no model and no torch."""

from cwdpo.negatives.gentle import GentleNegative, gentle_negative
from cwdpo.negatives.gentle.lexicon import Lexicon, read_lexicon

__all__ = ["GentleNegative", "Lexicon", "gentle_negative", "read_lexicon"]
