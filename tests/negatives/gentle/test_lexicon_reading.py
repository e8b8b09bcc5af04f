"""Lexicon files: a user's words on top of ours, and messages that name file and line."""

import random
from pathlib import Path

import pytest

from cwdpo.errors import ConfigError
from cwdpo.negatives import gentle_negative, read_lexicon
from cwdpo.negatives.gentle.lexicon import parse_lexicon

DOORS = "groups:\n  gates:\n    kind: object\n    form: noun\n    members: [portcullis, drawbridge|bascule bridge]\n"


def test_a_users_group_is_added(tmp_path: Path) -> None:
    file = tmp_path / "castle.yaml"
    file.write_text(DOORS + "plurals: {portcullis: portcullises}\n")
    lexicon = read_lexicon(file)
    made = gentle_negative("Two portcullises", lexicon=lexicon, rng=random.Random(0), kinds=["object"])
    assert made is not None
    assert made.text == "Two drawbridges"
    assert "colours" in lexicon.groups
    assert gentle_negative("a portcullis", lexicon=read_lexicon(), rng=random.Random(0), kinds=["object"]) is None


def test_a_users_group_replaces_ours_and_null_takes_it_out() -> None:
    text = "groups:\n  colours: {kind: colour, members: [red, teal]}\n  coats: null\n"
    lexicon = parse_lexicon(text, "mine.yaml", onto=read_lexicon())
    assert {
        made.text
        for seed in range(20)
        if (made := gentle_negative("a red car", lexicon=lexicon, rng=random.Random(seed), kinds=["colour"]))
    } == {"a teal car"}
    assert "coats" not in lexicon.groups
    assert "coats" in read_lexicon().groups


def test_a_users_kept_phrase_is_kept() -> None:
    lexicon = parse_lexicon("keep: [red car]\n", "mine.yaml", onto=read_lexicon())
    assert gentle_negative("a red car", lexicon=lexicon, rng=random.Random(0), kinds=["colour", "object"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml: the lexicon is empty"),
        (
            "groups:\n  a:\n    kind: color\n    members: [x, y]\n",
            "mine.yaml:3: 'groups.a.kind' is 'color'. Did you mean 'colour'",
        ),
        ("groups:\n  a:\n    members: [x, y]\n", "mine.yaml:2: 'groups.a.kind' is missing. Write one of object"),
        ("groups:\n  a:\n    kind: object\n    members: [x]\n", "mine.yaml:4: 'groups.a.members' needs two members"),
        ("groups:\n  a:\n    kind: object\n    members: [x, x|y]\n", "mine.yaml:4: 'groups.a.members' has 'x' twice"),
        ("groups:\n  a:\n    kind: object\n", "mine.yaml:2: 'groups.a' needs either `members"),
        ("groups:\n  a:\n    kind: object\n    members: [on, off]\n", "mine.yaml:4: 'groups.a.members' holds true"),
        (
            "groups:\n  a:\n    kind: object\n    memebrs: [x, y]\n",
            "mine.yaml:4: 'groups.a.memebrs' is not a key of a lexicon. Did you mean 'members'",
        ),
        (
            "groups:\n  a:\n    kind: object\n    members: [x, y]\n    next: [<dett>]\n",
            "mine.yaml:2: 'groups.a' names the class <dett>. Did you mean 'det'",
        ),
        (
            "groups:\n  a:\n    kind: object\n    members: [x, y]\n    guards:\n      z: {next: [w]}\n",
            "mine.yaml:6: 'groups.a.guards.z' guards no word",
        ),
        (
            "groups:\n  a:\n    kind: object\n    members: [x, y]\n    next: [two words]\n",
            "mine.yaml:5: 'groups.a.next' holds 'two words'",
        ),
        ("verbs:\n  sit: [sits]\n", "mine.yaml:2: 'verbs.sit' has 1 forms"),
        ("group: {}\n", "mine.yaml:1: 'group' is not a key of a lexicon. Did you mean 'groups'"),
        ("groups:\n\t- a", "mine.yaml:2: this line is indented with a tab"),
    ],
)
def test_mistakes_are_reported_with_their_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_lexicon(text, "mine.yaml", onto=read_lexicon())
    assert message in str(error.value)


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_lexicon("groups:\n  a: {kind: x, members: [b, c]}\n  d: {kind: y, members: [e, f]}\n", "mine.yaml")
    assert [line.split(":")[1] for line in str(error.value).splitlines()] == ["2", "3"]


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_lexicon(tmp_path / "nothing.yaml")


def test_synonyms_of_one_group_are_not_exchanged_by_another() -> None:
    text = (
        "groups:\n  a: {kind: object, members: [couch|sofa, chair]}\n  b: {kind: object, turns: {couch: [sofa, bed]}}\n"
    )
    targets = [target[0] for sense in parse_lexicon(text, "mine.yaml").senses["couch"] for target in sense.targets]
    assert targets == ["chair", "bed"]
