"""Names are taken apart into what they say, and minimal pairs differ in one thing."""

import pytest
from emoji_names import difference, minimal_pairs, read_name

PEOPLE = "People & Body/person"


@pytest.mark.parametrize(
    ("name", "group", "values"),
    [
        ("woman firefighter: medium-dark skin tone", PEOPLE, [("who", "woman"), ("tone", "medium-dark")]),
        ("firefighter", PEOPLE, [("who", "person"), ("tone", "default")]),
        ("man: dark skin tone, red hair", PEOPLE, [("who", "man"), ("tone", "dark"), ("hair", "red hair")]),
        ("woman", PEOPLE, [("who", "woman"), ("tone", "default"), ("hair", "default")]),
        (
            "kiss: woman, man, light skin tone, dark skin tone",
            PEOPLE,
            [("who", "woman"), ("who", "man"), ("tone", "light"), ("tone", "dark")],
        ),
        (
            "women holding hands: medium skin tone",
            PEOPLE,
            [("who", "women"), ("tone", "medium"), ("tone", "medium")],
        ),
        ("seven-thirty", "Travel & Places/time", [("hour", "seven")]),
        ("light blue heart", "Smileys & Emotion/heart", [("colour", "blue")]),
        ("winking face with tongue", "Smileys & Emotion/face-tongue", [("expression", "winking"), ("with", "tongue")]),
        ("flag: White Russia", "Flags/country-flag", []),
    ],
)
def test_reads_every_attribute(name: str, group: str, values: list[tuple[str, str]]) -> None:
    assert list(read_name(name, group).values) == values


@pytest.mark.parametrize(
    ("one", "other", "attribute"),
    [
        ("woman firefighter: dark skin tone", "woman firefighter: light skin tone", "tone"),
        ("woman firefighter: dark skin tone", "firefighter: dark skin tone", "who"),
        ("woman firefighter", "woman firefighter: dark skin tone", "tone"),
        ("man: bald", "man", "hair"),
        ("kiss: man, man, light skin tone", "kiss: man, man, light skin tone, dark skin tone", "tone"),
        ("woman firefighter: dark skin tone", "man firefighter: light skin tone", None),
        ("woman firefighter", "woman farmer", None),
        ("woman firefighter", "woman firefighter", None),
        ("people holding hands", "people holding hands: dark skin tone", None),  # both people change
    ],
)
def test_names_the_one_attribute_that_differs(one: str, other: str, attribute: str | None) -> None:
    assert difference(read_name(one, PEOPLE), read_name(other, PEOPLE)) == attribute


def test_pairs_are_found_both_ways() -> None:
    names = ("judge", "woman judge", "woman judge: dark skin tone", "man pilot")
    pairs = minimal_pairs({name: read_name(name, PEOPLE) for name in names})
    assert pairs == {
        "judge": {"woman judge": "who"},
        "woman judge": {"judge": "who", "woman judge: dark skin tone": "tone"},
        "woman judge: dark skin tone": {"woman judge": "tone"},
        "man pilot": {},
    }
