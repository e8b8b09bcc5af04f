"""Keys of messages and parts: each is honoured, or refused by its name."""

import json
from collections import OrderedDict, UserDict, UserList
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cwdpo.data.formats import row_from_record
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.messages import (
    MESSAGE_KEYS,
    PART_KEYS,
    is_empty,
    is_list,
    is_object,
    is_plain,
    metadata_keys,
    parse_messages,
    read_text,
    split_placeholders,
)
from cwdpo.data.rows import ImageSlot, Message, Row, join_reasoning, split_reasoning
from cwdpo.errors import DataError

ROOT = Path(__file__).parent.resolve()
SLOT = ImageSlot()


def read(**record: Any) -> Row:
    record = {"prompt": "What?", "chosen": "red", "rejected": "cat", **record}
    return row_from_record(record, source="rows.jsonl:3", roots=ImageRoots(ROOT))


def refused(**record: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(**record)
    message = str(caught.value)
    assert message.startswith("rows.jsonl:3: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


def user(content: Any = "What?", **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **keys}]


def says(content: Any = "red", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_carried(key: str) -> None:
    turns = [*user(), says("red", **{key: "Warm."}), *user("Sure?")]
    row = read(prompt=turns, chosen=says("Yes.", **{key: "Still warm."}), rejected=says("No."))
    assert row.prompt[1] == Message("assistant", ("red",), "Warm.")
    assert row.chosen == "<think>\nStill warm.\n</think>\n\nYes."
    assert split_reasoning(row.chosen) == ("Still warm.", "Yes.")
    assert row.rejected == ("No.",)
    assert row.has_reasoning
    assert not read(chosen=says("red", **{key: ""})).has_reasoning
    assert "which only assistants have" in refused(prompt=user(**{key: "x"}))
    assert "reasoning twice" in refused(chosen=says("<think>a</think>b", **{key: "x"}))


def test_reasoning_goes_there_and_back() -> None:
    assert split_reasoning(join_reasoning("a\nb", "c\nd")) == ("a\nb", "c\nd")
    assert split_reasoning("no <think>x</think>") == (None, "no <think>x</think>")


@pytest.mark.parametrize("key", ["images", "image"])
def test_images_of_a_message_stand_in_that_message(key: str) -> None:
    turns = [*user("A?"), says("a"), *user("B <image>?", **{key: ["b.png"]})]
    row = read(prompt=turns)
    assert row.prompt[0] == Message("user", ("A?",))
    assert row.prompt[2] == Message("user", ("B ", SLOT, "?"))
    assert row.images == (ROOT / "b.png",)
    assert read(prompt=user(**{key: "a.png"})).prompt == (Message("user", (SLOT, "What?")),)
    assert "lists 1 images, but the message marks 2" in refused(prompt=user("<image><image>", **{key: "a.png"}))


def test_images_of_messages_and_of_the_row_stand_in_their_order() -> None:
    content = [{"type": "image"}, {"type": "image", "image": "b.png"}, {"type": "image"}, {"type": "text", "text": "?"}]
    row = read(prompt=user(content), images=["a.png", "c.png"])
    assert [path.name for path in row.images] == ["a.png", "b.png", "c.png"]
    assert row.prompt == (Message("user", (SLOT, SLOT, SLOT, "?")),)
    content = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "?"}]
    assert "both in its messages and in `images`" in refused(prompt=user(content), images=["b.png"])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png", "url": None},
        {"type": "image", "url": f"file://{ROOT}/a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image", "image": {"bytes": None, "path": "a.png"}},
        {"image": "a.png"},
    ],
)
def test_parts_that_hold_an_image(part: dict[str, Any]) -> None:
    row = read(prompt=user([part, {"text": "What?"}]))
    assert row.prompt == (Message("user", (SLOT, "What?")),)
    assert row.images == (ROOT / "a.png",)


def test_a_picture_in_a_part() -> None:
    picture = Image.new("RGB", (2, 2))
    assert read(prompt=user([{"type": "image", "image": picture}, {"type": "text", "text": "?"}])).images == (picture,)


def test_what_says_whether_a_turn_is_learned() -> None:
    before = [*user(), says("a", loss=False), *user("B?", weight=0)]
    assert read(prompt=before, chosen=says(loss=True, weight=1, train=True)).chosen == "red"
    assert "is not to be learned" in refused(chosen=says(loss=False))
    assert "is not to be learned" in refused(rejected=[says(weight=0)])
    assert "but only the last answer is" in refused(prompt=[*user(), says("a", weight=1.0), *user()])
    assert "weights of single messages are not read" in refused(chosen=says(weight=0.5))


@pytest.mark.parametrize("key", [key for key, meaning in MESSAGE_KEYS.items() if meaning not in ("read", "metadata")])
def test_keys_of_messages_that_are_refused(key: str) -> None:
    assert f"has the key `{key}`, which is not supported: " in refused(chosen=says(**{key: [{"x": 1}]}))
    assert read(chosen=says(**{key: []})).chosen == "red"


@pytest.mark.parametrize("key", [key for key, meaning in PART_KEYS.items() if meaning not in ("read", "metadata")])
def test_keys_of_parts_that_are_refused(key: str) -> None:
    part = {"type": "image", "image": "a.png", key: 7}
    assert f"has the key `{key}`, which is not supported: " in refused(prompt=user([part]))


def test_other_keys_are_refused_by_name_but_metadata() -> None:
    assert "has the key 'mood', which is not known in a message. Take it out." in refused(prompt=user(mood="x"))
    assert "Did you mean `reasoning_content`?" in refused(chosen=says(reasoning_contents="x"))
    assert "has the key 'alt', which is not known in a part" in refused(
        prompt=user([{"type": "text", "text": "x", "alt": "y"}])
    )
    assert read(prompt=user(timestamp=3, id="m1")).chosen == "red"
    assert metadata_keys(user([{"type": "text", "text": "x", "index": 4}], timestamp=3)) == ["timestamp", "index"]


def test_an_image_in_a_text_part_is_refused() -> None:
    message = refused(prompt=user([{"type": "text", "text": "And?", "image": "a.png"}]))
    assert "has the key `image` in a part of type 'text'" in message
    assert "has the key `text` in a part" in refused(prompt=user([{"type": "image", "text": "And?"}]))


def test_template_kwargs() -> None:
    given = {"enable_thinking": False, "other": None}
    assert read(chat_template_kwargs=given).template_kwargs == {"enable_thinking": False}
    assert read(template_kwargs=json.dumps(given)).template_kwargs == {"enable_thinking": False}
    assert "Write an object such as" in refused(chat_template_kwargs="fast")
    assert "both `chat_template_kwargs`" in refused(chat_template_kwargs=given, template_kwargs=given)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_messages_as_text_are_read_as_messages(write: Any) -> None:
    row = read(prompt=write(user("What's it?")), chosen=write([says("red")]), rejected=write(says("cat")))
    assert row.prompt == (Message("user", ("What's it?",)),)
    assert (row.chosen, row.rejected) == ("red", ("cat",))


def test_text_that_only_looks_like_messages() -> None:
    broken = "[{'role': 'assistant', 'content': 'red'}\n {'role': 'user'}]"
    assert "neither JSON nor Python" in refused(chosen=broken)
    for text in ('{"colour": "red"}', "[sic]", '{"role": "user"} is a message'):
        assert read(chosen=text).chosen == text


@pytest.mark.parametrize("text", ["None", "null", "[]", "0", "nan"])
def test_words_that_stand_for_nothing_are_answers_all_the_same(text: str) -> None:
    assert read(chosen=text).chosen == text


def test_what_is_as_good_as_none() -> None:
    for key in ("system", "tools", "videos", "images", "id", "chat_template_kwargs"):
        for empty in ("", "[]", [], None, float("nan")):
            assert read(**{key: empty}) == read()
    assert is_empty({"url": None})
    assert not is_empty(False)
    assert read(id=1.0).id == "1.0"
    assert read(id=7).id == "7"


_PIECES = st.sampled_from(
    ("A", "b", "7", " ", "\n", "<", "<image>", "[", "{", "}", "]", '"role": "user"', "\ud800", "é")
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_PIECES, max_size=6).map("".join))
@example('[{"role": "user", "content": "q"}]')
@example("A <image>")
@example("A\ud800")
def test_in_a_plain_text_the_closer_look_finds_nothing(text: str) -> None:
    if is_plain(text):
        assert read_text(text, "here") == parse_messages(text, "here") == text
        assert split_placeholders(text) == (text,)


def test_most_texts_are_plain() -> None:
    assert is_plain("A cat sits on the mat, and 2 > 1.")
    assert not any(map(is_plain, (b"A cat.", None, 3, ["A cat."])))


def test_what_is_an_object_and_what_a_list() -> None:
    values = ({}, OrderedDict(), UserDict(), [], (), UserList(), "", b"", None, 3)
    assert [is_object(value) for value in values] == [True, True, True] + 7 * [False]
    assert [is_list(value) for value in values] == 3 * [False] + [True, True, True] + 4 * [False]
