"""Negatives: made by one small edit, mixed, and filtered; pure functions on text that load no model and no torch."""

from cwdpo.negatives.gentle import GentleNegative, gentle_negative
from cwdpo.negatives.lexicon import Lexicon
from cwdpo.negatives.lexicon_reading import read_lexicon

__all__ = ["GentleNegative", "Lexicon", "gentle_negative", "read_lexicon"]
