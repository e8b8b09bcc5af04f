"""What answers say: yes, an option, objects; and their variety, against counting by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cwdpo.errors import DataError
from cwdpo.evaluation.answers import (
    Vocabulary,
    distinct,
    exact_match,
    is_letter,
    is_yes,
    option_of,
    options_in,
    says_yes,
)


@pytest.mark.parametrize(
    ("answer", "same"),
    [("a RED disc", True), ("Red disc!", True), ("red", False), ("a red disc there", False), ("", False)],
)
def test_exact_match(answer: str, same: bool) -> None:
    assert exact_match(answer, ["A blue disc.", "The red disc."]) is same


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("Yes.", True, True),
        ("no", False, False),
        ("  NO, there is no dog", False, False),
        ("Yes there is", True, None),
        ("No parking here", False, None),
        ("Nothing", None, None),
        ("It is, yes", None, None),
        ("yesterday", None, None),
        ("", None, None),
    ],
)
def test_yes_and_no(answer: str, said: bool | None, right: bool | None) -> None:
    assert says_yes(answer) is said
    assert is_yes(answer) is right


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Which?\nA. red\nB. blue\nC. green", ["red", "blue", "green"]),
        ("Which?\n(A) red disc\n(B) blue\nSay the letter.", ["red disc", "blue"]),
        ("Which?\n A) red\n B) blue", ["red", "blue"]),
        ("A: red\nB: blue", ["red", "blue"]),
        ("Which?\nA. red", []),
        ("Which?\nA. red\nC. blue", []),
        ("Which?\nB. red\nC. blue", []),
        ("A red disc.\nB is a letter.", []),
        ("What is this?", []),
    ],
)
def test_options_in_a_prompt(prompt: str, options: list[str]) -> None:
    assert options_in(prompt) == options


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("a hot dog", 1),
        ("B", 1),
        ("(c)", 2),
        ("B. hot dog", 1),
        ("b) something", 1),
        ("The answer is C", 2),
        ("Answer: a", 0),
        ("It is a hot dog, I think", 1),
        ("A dog or a hot dog", None),
        ("D", None),
        ("A cat", 2),
        ("concatenate", None),
        ("", None),
    ],
)
def test_option_of_an_answer(answer: str, place: int | None) -> None:
    assert option_of(answer, ["Two birds", "Hot dog", "cat", *(["dog"] if "or" in answer else [])]) == place


def test_letters() -> None:
    assert [is_letter(text) for text in ("B", "(b)", "B.", "b)", "Bo", "", "B C", "4")] == [True] * 4 + [False] * 4


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    path = tmp_path / "objects.txt"
    path.write_text("# furniture\ncouch, sofa, love seat\n\ndog, puppy\nhot dog\nperson, man\nwine glass\nbox\n")
    return Vocabulary.read(path)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("Two DOGS and a puppy on the sofa.", {"dog", "couch"}),
        ("People eat hot dogs.", {"person", "hot dog"}),
        ("A dog hot on its heels", {"dog"}),
        ("love seats, wine glasses, boxes", {"couch", "wine glass", "box"}),
        ("a hotdog and a doghouse", set()),
        ("", set()),
        ("hot", set()),
    ],
)
def test_named_objects(vocabulary: Vocabulary, text: str, objects: set[str]) -> None:
    assert vocabulary.named_in(text) == objects


PLURALS = """
    cups cup, buses bus, dishes dish, sandwiches sandwich, boxes box, glasses glass, vases vase, horses horse, skis ski,
    knives knife, shelves shelf, gloves glove, olives olive, ties tie, berries berry, women woman, tennis tennis
"""


@pytest.mark.parametrize("pair", PLURALS.split(","))
def test_both_numbers_are_one_object(tmp_path: Path, pair: str) -> None:
    several, one = pair.split()
    for written in (several, one):
        (tmp_path / "objects.txt").write_text(f"{written}\n")
        vocabulary = Vocabulary.read(tmp_path / "objects.txt")
        assert vocabulary.named_in(f"Some {several} here") == vocabulary.named_in(f"A {one}") == {written}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n# nothing\n", "holds no object"),
        ("dog\ncat, dogs\n", ":2: 'dogs' stands for dog and for cat"),
        ("dog\n?!\n", r":2: '\?!' has no letter"),
    ],
)
def test_a_bad_vocabulary_says_what_to_write(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "objects.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Vocabulary.read(path)
    path.write_bytes(b"dog\n\xff")
    with pytest.raises(DataError, match="byte 5 is not UTF-8"):
        Vocabulary.read(path)
    with pytest.raises(DataError, match="no such file"):
        Vocabulary.read(tmp_path / "missing.txt")


def test_distinct_ngrams_by_hand() -> None:
    answers = [["a", "dog", "a", "dog"], ["a", "cat"], [], ["one"]]
    ones, without = distinct(answers, 1)
    assert ones == 4 / 7  # a, dog, cat, one
    assert without.tolist() == [3 / 3, 3 / 5, 4 / 7, 3 / 6]
    twos, without = distinct(answers, 2)
    assert twos == 3 / 4  # "a dog", "dog a", "a cat"
    assert without.tolist() == [1.0, 2 / 3, 3 / 4, 3 / 4]
    assert np.isnan(distinct([["a"]], 2)[0])


def test_distinct_without_a_row_is_distinct_of_the_others() -> None:
    rng = np.random.default_rng(0)
    answers = [[str(word) for word in rng.integers(9, size=6)] for _ in range(12)]
    for n in (1, 2):
        _, without = distinct(answers, n)
        left_out = [[row for j, row in enumerate(answers) if j != i] for i in range(12)]
        by_hand = []
        for rows in left_out:
            grams = list(itertools.chain(*(zip(*(row[k:] for k in range(n)), strict=False) for row in rows)))
            by_hand.append(len(set(grams)) / len(grams))
        assert without.tolist() == pytest.approx(by_hand)
