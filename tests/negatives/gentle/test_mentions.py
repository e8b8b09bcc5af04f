"""A thing that an answer names several times changes everywhere, or nowhere."""

import random

import pytest

from cwdpo.negatives import gentle_negative, read_lexicon
from cwdpo.negatives.gentle import edits_by_kind
from cwdpo.negatives.gentle.edits import Reading, apply

LEXICON = read_lexicon()


def of(text: str, kind: str) -> set[str]:
    reading = Reading(text, LEXICON)
    return {apply(edit, reading).text for edit in edits_by_kind(reading).get(kind, [])}


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (
            "A dog sits on the grass. It is brown. The dog looks happy.",
            "object",
            "A hamster sits on the grass. It is brown. The hamster looks happy.",
        ),
        ("Two dogs; one dog is old.", "object", "Two cats; one cat is old."),
        ("A puppy plays. The dog is small.", "object", "A cat plays. The cat is small."),
        ("A dog and an elephant. The elephant eats.", "object", "A dog and a giraffe. The giraffe eats."),
        ("Two dogs play; the two dogs are brown.", "count", "Four dogs play; the four dogs are brown."),
        ("2 dogs play; the two dogs are brown.", "count", "3 dogs play; the three dogs are brown."),
        ("A red car. The red car is parked.", "colour", "A blue car. The blue car is parked."),
        ("A red car and a red bus.", "colour", "A blue car and a red bus."),
        ("a red car and a blue car", "object", "a red truck and a blue car"),
        ("a big red car near a large blue car", "size", "a small red car near a large blue car"),
    ],
)
def test_all_mentions_change(text: str, kind: str, expected: str) -> None:
    assert expected in of(text, kind)


def test_no_mention_is_left_behind() -> None:
    assert all("dog" not in made for made in of("A dog sits. The dog is old. Dogs like it.", "object"))
    assert all("two" not in made.lower() for made in of("Two dogs play; the two dogs are brown.", "count"))


def test_every_part_is_told() -> None:
    made = gentle_negative("A dog sits. An old dog.", lexicon=LEXICON, rng=random.Random(0), kinds=["object"])
    assert made is not None
    assert [made.text[slice(*after)] for _, after in made.parts] == [made.text.split()[1]] * 2
    assert [before for before, _ in made.parts] == [(2, 5), (19, 22)]
    assert made.before == (2, 22)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("A dog by the dog's bowl.", "object"),
        ("A car by the car window.", "object"),
        ("The car is red. It is a red car.", "colour"),
        ("Three dogs, two of them old.", "count"),
        ("Two dogs. One dog is old, the other is young.", "count"),
        ("Two dogs. Both dogs are old.", "count"),
        ("A dog on the grass; the dog eats.", "count"),
        ("The dog is left of the cat; the cat is on the right of the dog.", "relation"),
        ("a red car and a blue bus; the red car is old", "order"),
        ("It costs $4, and $4 is not much.", "number"),
    ],
)
def test_what_cannot_change_everywhere_stays(text: str, kind: str) -> None:
    assert of(text, kind) == set()
