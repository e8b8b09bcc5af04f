"""Words that look like what an edit wants, and are not."""

import pytest

from cwdpo.negatives import read_lexicon
from cwdpo.negatives.gentle import edits_by_kind
from cwdpo.negatives.gentle.edits import Reading, apply

LEXICON = read_lexicon()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cutting through red tape", "colour"),
        ("an orange and a knife", "colour"),
        ("an orange sliced in half", "colour"),
        ("You are right.", "relation"),
        ("right now", "relation"),
        ("He left the room.", "relation"),
        ("There was no dog left.", "relation"),
        ("the one on top", "count"),
        ("one of them", "count"),
        ("They can see the light.", "object"),
        ("a hot dog stand", "state"),
        ("turn on the light", "size"),
        ("a second helping", "number"),
        ("Mr. Brown is here", "colour"),
        ("the White House", "colour"),
        ("playing in New York", "age"),
        ("as long as it takes", "size"),
        ("They bear gifts", "object"),
        ("A no smoking sign", "yes_no"),
        ("Yes, because it is red and not blue.", "yes_no"),
        ("a", "choice"),
        ("Flight A380 on 12/05/2019", "number"),
        ("a cat and a dog", "order"),
        ("a red car and a blue car", "order"),
        ("A man is walking his dog and it is happy.", "count"),
        ("sheep in fields", "count"),
        ("A man in shorts runs along the river.", "count"),
        ("between 3 and 5 apples", "count"),
        ("between 3 and 5 apples", "number"),
        ("between two and five apples", "count"),
        ("1 foot", "number"),
        ("a light white shirt", "colour"),
        ("a dark red bench", "size"),
        ("A police officer riding a horse.", "count"),
        ("Yes, there are some dogs.", "yes_no"),
        ("a dog on the left and a dog on the right", "order"),
        ("two old dogs and three young dogs", "order"),
        ("A book lying on a table.", "action"),
        ("A tennis player with her racket.", "object"),
    ],
)
def test_traps_are_left_alone(text: str, kind: str) -> None:
    reading = Reading(text, LEXICON)
    assert [apply(edit, reading).text for edit in edits_by_kind(reading).get(kind, [])] == []
