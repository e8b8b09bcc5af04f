"""What is denied or left open is not edited: the answer would stay right."""

import pytest

from cwdpo.negatives import read_lexicon
from cwdpo.negatives.gentle import edits_by_kind
from cwdpo.negatives.gentle.edits import Reading, apply

LEXICON = read_lexicon()


def every(text: str) -> set[str]:
    """Every edit that an answer allows."""
    reading = Reading(text, LEXICON)
    return {apply(edit, reading).text for edits in edits_by_kind(reading).values() for edit in edits}


@pytest.mark.parametrize(
    "text",
    [
        "There is no dog.",
        "There are no red cars in the picture.",
        "not wearing a shirt",
        "He isn't riding a bike.",
        "He isn\u2019t riding a bike.",
        "She doesn't hold a red umbrella.",
        "A woman never wearing a red dress.",
        "The dog is not on the couch.",
        "Neither the cat nor the dog is black.",
        "It could be a dog or a cat.",
        "It is either red or orange.",
        "A red or orange car.",
        "A red car or a blue bus.",
        "A dog, a cat, or a horse.",
        "Nobody is riding a horse.",
        "A room without chairs, tables and two red couches.",
        "It cannot be a dog.",
    ],
)
def test_nothing_denied_or_left_open_is_touched(text: str) -> None:
    assert every(text) == set()


@pytest.mark.parametrize(
    ("text", "made", "never"),
    [
        ("A man without a hat.", {"A woman without a hat.", "A man with a hat."}, "helmet"),
        ("A red car instead of a bus.", {"A blue car instead of a bus."}, "truck instead of a truck"),
        ("A blue car rather than a red bus.", {"A green car rather than a red bus."}, "green bus"),
        ("There is no dog but a red car.", {"There is no dog but a blue car."}, "rabbit"),
        ("There is no dog. A cat sleeps.", {"There is no dog. A rabbit sleeps."}, "no rabbit"),
        ("No, the cat is white.", {"No, the cat is black."}, "no cat"),
        ("A boy, not wearing a hat, rides a horse.", {"A girl, not wearing a hat, rides a horse."}, "helmet"),
        ("It is a dog or a cat. The car is red.", {"It is a dog or a cat. The car is blue."}, "rabbit"),
    ],
)
def test_the_rest_of_an_answer_is_free(text: str, made: set[str], never: str) -> None:
    found = every(text)
    assert made <= found
    assert not any(never in one for one in found)


def test_short_answers_turn_round() -> None:
    assert every("No, there is no dog.") == {"Yes, there is a dog."}
    assert every("No") == {"Yes"}
