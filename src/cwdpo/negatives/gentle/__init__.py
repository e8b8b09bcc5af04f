"""Gentle negatives: an answer with exactly one minor error, and everything else as it was.

Start at :func:`gentle_negative`; it needs neither model nor torch.
:mod:`cwdpo.negatives.offline_generation` asks a server.
"""

import difflib
import random
from collections.abc import Collection, Sequence
from itertools import chain

from cwdpo.errors import ConfigError
from cwdpo.negatives.filtering import normalised
from cwdpo.negatives.gentle.edits import Edit, GentleNegative, Reading, apply, outside_scopes
from cwdpo.negatives.gentle.lexicon import KINDS, Lexicon
from cwdpo.negatives.gentle.numbers import counts, numbers, swaps
from cwdpo.negatives.gentle.short_answers import choices, yes_no
from cwdpo.negatives.gentle.words import substitutions

__all__ = ["GentleNegative", "gentle_negative"]


def gentle_negative(
    text: str,
    *,
    lexicon: Lexicon,
    rng: random.Random,
    kinds: Sequence[str] | None = None,
    avoid: Collection[str] = (),
    prompt: str = "",
) -> GentleNegative | None:
    """Make one error in an answer.

    First a kind is drawn among those that the answer allows, then a place, so that no kind drowns the others.

    Args:
        text: a right answer.
        lexicon: from :func:`cwdpo.negatives.read_lexicon`.
        rng: source of all randomness.
        kinds: those to choose from; all by default.
        avoid: further right answers, which the result must not be.
        prompt: the question; its options are what a multiple-choice answer may become.

    Returns:
        The negative, or None where the lexicon knows no safe edit.

    Raises:
        ConfigError: an unknown kind.
    """
    right = {normalised(text), *map(normalised, avoid)}
    reading = Reading(text, lexicon)
    found = edits_by_kind(reading, prompt)
    order = [kind for kind in checked_kinds(kinds) if found.get(kind)]
    rng.shuffle(order)
    for kind in order:
        edits = found[kind]
        rng.shuffle(edits)
        for edit in edits:
            made = apply(edit, reading)
            if normalised(made.text) not in right:
                return made
    return None


def edits_by_kind(reading: Reading, prompt: str = "") -> dict[str, list[Edit]]:
    """Every edit that an answer allows, by kind, in the order of the text."""
    short = [*yes_no(reading), *choices(reading, prompt)]
    long = chain(substitutions(reading), counts(reading), numbers(reading), swaps(reading))
    found: dict[str, list[Edit]] = {}
    # a bare letter or a bare yes is an answer, not a sentence: nothing else in it has a meaning
    for edit in short or outside_scopes(long, reading):
        found.setdefault(edit.kind, []).append(edit)
    return found


def checked_kinds(kinds: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds asked for, in their fixed order; all where none are named."""
    for kind in kinds or ():
        if kind not in KINDS:
            near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            known = f"Write one or more, with commas between them: {', '.join(KINDS)}."
            raise ConfigError(f"{kind!r} is not a kind of edit. {meant}{known}")
    return tuple(kind for kind in KINDS if kinds is None or kind in kinds)
