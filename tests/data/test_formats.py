"""Every known format gives the same row; what is wrong is said in one line."""

import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data import formats
from cwdpo.data.formats import Described, format_of, read_record, row_from_record, unread_columns
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import DataError

ROOT = Path(__file__).parent.resolve()
ROOTS = ImageRoots(ROOT)
SLOT = ImageSlot()
PICTURE = Image.new("RGB", (2, 2))


def read(record: Any) -> Row:
    return row_from_record(record, source="rows.jsonl:3", roots=ROOTS)


def refused(record: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(record)
    message = str(caught.value)
    assert message.startswith("rows.jsonl:3: ")
    assert "\n" not in message
    return message


def user(*parts: Any) -> Message:
    return Message("user", parts)


SAME = {
    "trl": {
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}],
    },
    "flat": {"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
    "llamafactory": {
        "conversations": [{"from": "human", "value": "<image>What is it?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["a.png"],
    },
    "ms-swift": {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": "A dog.",
        "images": [{"bytes": None, "path": "a.png"}],
    },
    "rlaif-v": {
        "question": "What is it?",
        "chosen": "A cat.",
        "rejected": "A dog.",
        "image": {"path": "a.png", "bytes": None},
        "image_path": "x",
        "rejected_len": 3,
    },
    "llava": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
        "rejected": None,
    },
}


@pytest.mark.parametrize("name", SAME)
def test_all_formats_mean_the_same(name: str) -> None:
    record = SAME[name]
    assert format_of(record) == name
    rejected = () if name == "llava" else ("A dog.",)
    assert read(record) == Row((user(SLOT, "What is it?"),), "A cat.", rejected, images=(ROOT / "a.png",))
    assert read(record).source == "rows.jsonl:3"
    assert unread_columns(record) == (["image_path", "rejected_len"] if name == "rlaif-v" else [])


def test_openai_style_ranking() -> None:
    record = {"messages": [{"role": "user", "content": "Hi"}], "chosen": {"role": "assistant", "content": "a"}}
    assert format_of(record) == "llamafactory"
    assert read(record).chosen == "a"


def test_optional_keys() -> None:
    row = read(
        {**SAME["trl"], "gentle": "A kitten.", "negatives": ["x", {"role": "assistant", "content": "y"}], "id": 4}
    )
    assert (row.rejected, row.gentle, row.id, row.kind) == (("A dog.", "x", "y"), "A kitten.", "4", None)
    row = read({"prompt": "Hi", "chosen": "a", "negatives": ["x"], "kind": "off-topic", "id": "r1"})
    assert (row.rejected, row.kind, row.id, row.gentle) == (("x",), "off-topic", "r1", None)


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}, {"image": None}])
def test_text_only(images: dict[str, Any]) -> None:
    row = read({"prompt": "Hi", "chosen": "a", "rejected": "b", **images})
    assert row == Row((user("Hi"),), "a", ("b",))


def test_placeholders_stand_where_the_text_marks_them() -> None:
    row = read({"prompt": "Is <image> like <image>?", "chosen": "a", "images": ["a.png", "b.png"]})
    assert row.prompt == (user("Is ", SLOT, " like ", SLOT, "?"),)
    assert row.images == (ROOT / "a.png", ROOT / "b.png")


def test_without_placeholders_images_stand_before_the_first_user_turn() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is it?"},
    ]
    row = read({"prompt": turns, "chosen": "a", "images": ["a.png", "b.png"]})
    assert row.prompt == (
        Message("system", ("Be brief.",)),
        user(SLOT, SLOT, "Hi"),
        Message("assistant", ("Hello",)),
        user("What is it?"),
    )


def test_structured_content_is_kept_in_order() -> None:
    content = [{"type": "text", "text": "Look: ", "image": None}, {"type": "image"}, {"type": "text", "text": "?"}]
    row = read({"prompt": [{"role": "user", "content": content}], "chosen": "a", "images": ["a.png"]})
    assert row.prompt == (user("Look: ", SLOT, "?"),)


def test_earlier_turns_of_a_conversation_are_prompt() -> None:
    turns = [("human", "<image>\nA?"), ("gpt", "a"), ("human", "B?\n<image>"), ("gpt", "b")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns], "image": ["a.png", "b.png"]}
    row = read(record)
    assert row.prompt == (user(SLOT, "A?"), Message("assistant", ("a",)), user("B?", SLOT))
    assert row.chosen == "b"


def test_system_key() -> None:
    record = {**SAME["llamafactory"], "system": "Be brief."}
    assert read(record).prompt[0] == Message("system", ("Be brief.",))
    both = [{"from": "system", "value": "x"}, {"from": "human", "value": "y"}]
    assert "both `system`" in refused({"conversations": both, "chosen": "a", "system": "z"})


def test_images_that_are_already_there() -> None:
    row = read(
        {"prompt": "Hi", "chosen": "a", "images": [PICTURE, {"bytes": b"raw", "path": "/elsewhere/a.png"}, b"x"]}
    )
    assert row.images == (PICTURE, b"raw", b"x")


def test_alpaca() -> None:
    record = {"instruction": "Describe it.", "input": "In one word.", "history": [["A?", "a"], ["B?", "b"]]}
    prompt = (
        user("A?"),
        Message("assistant", ("a",)),
        user("B?"),
        Message("assistant", ("b",)),
        user("Describe it.\nIn one word."),
    )
    assert read({**record, "output": "Cat."}) == Row(prompt, "Cat.")
    assert read({**record, "output": ["Cat.", "Dog."], "system": ""}) == Row(prompt, "Cat.", ("Dog.",))
    assert read({**record, "chosen": "Cat.", "rejected": "Dog."}) == Row(prompt, "Cat.", ("Dog.",))
    assert "`history`[0] is 'A?'" in refused({**record, "output": "Cat.", "history": ["A?"]})


def test_dialogues_as_text() -> None:
    before = "\n\nHuman: A?\n\nAssistant: a\n\nHuman: B?\n\nAssistant:"
    turns = (user("A?"), Message("assistant", ("a",)), user("B?"))
    whole = {"chosen": f"{before} b", "rejected": f"{before} c"}
    assert read(whole) == Row(turns, "b", ("c",))
    assert read({"prompt": before, "chosen": " b", "rejected": " c"}).prompt == turns
    assert read({"prompt": before, **whole}) == Row(turns, "b", ("c",))
    assert "another conversation" in refused({**whole, "rejected": f"{before} c\n\nHuman: C?\n\nAssistant: d"})


def test_prompts_that_stand_twice() -> None:
    """UltraFeedback has the first user's turn in `prompt`, and may have a system turn in the answers alone."""
    system = {"role": "system", "content": "Be brief."}
    record = {"prompt": "Hi", "chosen": [system, TURN, ANSWER], "rejected": [system, TURN, {**ANSWER, "content": "b"}]}
    assert read(record) == Row((Message("system", ("Be brief.",)), user("Hi")), "a", ("b",))
    marked = [{"role": "user", "content": "<image>Hi"}, ANSWER]
    assert read({**record, "chosen": marked, "rejected": marked, "images": ["a.png"]}).prompt == (user(SLOT, "Hi"),)
    assert read({**FLAT, "messages": [TURN, ANSWER]}) == read(FLAT)
    assert "are different conversations" in refused({**FLAT, "messages": [OTHER, ANSWER]})
    both = {"conversations": [TURN, ANSWER], "messages": [TURN, ANSWER]}
    assert "both `conversations` and `messages`" in refused(both)


def test_ranked_answers() -> None:
    rated = [
        {"response": text, "annotations": {"H": {"Rating": rating}}}
        for text, rating in zip("abcd", "2514", strict=True)
    ]
    row = read({"prompt": "Hi", "completions": rated})
    assert (row.chosen, row.rejected) == ("b", ("c", "a", "d"))
    columns = {key: [answer[key] for answer in rated] for key in ("response", "annotations")}
    assert read({"prompt": "Hi", "completions": columns}) == row
    tied = [{**answer, "annotations": {"H": {"Rating": 3}}} for answer in rated]
    assert "none is preferred" in refused({"prompt": "Hi", "completions": tied})
    assert "has no ratings" in refused({"prompt": "Hi", "completions": [{"response": "a", "annotations": None}]})


def test_pairs_by_number() -> None:
    record = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "output_1": {"from": "m", "value": "a"},
        "output_2": "b",
    }
    assert read({**record, "preference": 1}) == Row((user("Hi"),), "a", ("b",))
    assert read({**record, "preference": "2"}) == Row((user("Hi"),), "b", ("a",))
    assert "must be 1 or 2" in refused({**record, "preference": 0})


def test_answers_are_not_passed_over() -> None:
    assert "without a pair" in refused({"prompt": "Hi", "completion": "a", "label": True})
    assert read({"prompt": "Hi", "completion": "a", "rejected": "b"}).rejected == ("b",)
    text = '{"question": "Hi", "chosen": "a", "rejected": "b"}'
    assert "beside `text`, which hold the answers already" in refused({"text": text, "rejected": "c"})
    assert read({"text": text, "negatives": ["c"]}).rejected == ("b", "c")
    assert "Name `accepted` as `chosen`" in refused({"prompt": "Hi", "accepted": "a"})


def test_messages_as_an_object_of_lists() -> None:
    prompt = {"role": ["user", "assistant", "user"], "content": ["A?", "a", "B?"]}
    assert len(read({**FLAT, "prompt": prompt}).prompt) == 3
    assert "not lists of one length" in refused({**FLAT, "prompt": {"role": ["user"], "content": ["a", "b"]}})


FLAT = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
TURN = {"role": "user", "content": "Hi"}
OTHER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["x"], "a row is a list"),
        ({}, "not a known format"),
        ({"promt": "Hi", "chosen": "a"}, "keys are 'promt', 'chosen', which is not a known format"),
        (
            {"prompt": "Hi", "rejected": "a", "reply": "b"},
            "rows.jsonl:3: `chosen` is missing; the row's keys are 'prompt', ",
        ),
        ({"images": [], "chosen": "a"}, "`prompt` is missing; the row's keys are"),
        ({**FLAT, "chosen": 3}, "`chosen` is 3 (int), but must be text"),
        ({**FLAT, "chosen": datetime(2026, 1, 2)}, "took a text for a time"),
        ({**FLAT, "chosen": None}, "`chosen` has no value (null or NaN)"),
        ({**FLAT, "chosen": ""}, "`chosen` is empty"),
        ({**FLAT, "rejected": " \n\t"}, "`rejected` is empty"),
        ({**FLAT, "gentle": ""}, "`gentle` is empty"),
        ({**FLAT, "negatives": "x"}, "`negatives` must be a list"),
        ({**FLAT, "negatives": ["x", ""]}, "`negatives`[1] is empty"),
        ({**FLAT, "rejected": ["x", "y"]}, "list of 2 messages"),
        ({**FLAT, "chosen": [OTHER, {"role": "assistant", "content": "a"}]}, "are not those of the prompt"),
        (
            {"chosen": [TURN, ANSWER], "rejected": [OTHER, ANSWER]},
            "another conversation than the chosen one",
        ),
        ({**FLAT, "chosen": [TURN]}, "`chosen` is a user message"),
        ({**FLAT, "chosen": "see <image>"}, "answers are text"),
        ({**FLAT, "chosen": {"role": "assistant", "content": [{"type": "image"}]}}, "answers are text"),
        ({**FLAT, "chosen": "a\ud800"}, "surrogate pair at character 2"),
        ({**FLAT, "prompt": 5}, "`prompt` is 5 (int)"),
        ({**FLAT, "prompt": ""}, "`prompt` is empty"),
        ({**FLAT, "prompt": []}, "holds no turn"),
        ({**FLAT, "prompt": ["Hi"]}, "`prompt`[0] is 'Hi' (str)"),
        ({**FLAT, "prompt": [{"role": "user"}]}, "has no `content`"),
        ({**FLAT, "prompt": [{"content": "x"}]}, "has no `role`"),
        (
            {**FLAT, "prompt": [{"role": "tool", "content": "x"}]},
            "unknown role 'tool' (str). Write system, user or assistant",
        ),
        ({**FLAT, "prompt": [TURN, {"role": "assistant", "content": "x"}]}, "ends with a turn of role 'assistant'"),
        ({**FLAT, "prompt": [TURN, {"role": "system", "content": "x"}, TURN]}, "Put it first"),
        ({**FLAT, "prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "type 'video'"),
        ({**FLAT, "prompt": [{"role": "user", "content": []}]}, "`prompt`[0] is empty"),
        ({**FLAT, "prompt": "<image> and <image>", "image": "a.png"}, "marks 2 images, but the row has 1"),
        ({**FLAT, "prompt": "<image> what?"}, "marks 1 image, but the row has 0"),
        ({**FLAT, "images": 3}, "`images` is of type int"),
        ({**FLAT, "images": [None]}, "`images`[0] is of type NoneType"),
        ({**FLAT, "images": ["a.png"], "image": "a.png"}, "both `image` and `images`"),
        ({**FLAT, "image": "../a.png"}, "leaves the image root"),
        ({**FLAT, "gentel": "x"}, "unknown key `gentel`. Did you mean `gentle`?"),
        ({**FLAT, "image1": "a.png"}, "Did you mean `image`?"),
        ({**FLAT, "img": "a.png"}, "Did you mean `image`?"),
        ({**FLAT, "videos": ["a.mp4"]}, "`videos`, which is not supported"),
        ({**FLAT, "id": [1]}, "`id` is a list"),
        ({**FLAT, "kind": True}, "`kind` is a bool"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "must end with the assistant's turn"),
        ({"conversations": [{"from": "human", "value": "x"}], "rejected": "b"}, "no `chosen`"),
        ({"messages": [TURN, {"role": "assistant", "content": "<image>"}]}, "answers are text"),
        ({"messages": [], "rejected_response": "x"}, "must end with the assistant's turn"),
    ],
)
def test_what_is_wrong_is_said(record: Any, message: str) -> None:
    assert message in refused(record)


TEXTS = (
    "A cat.",
    "Human: x\n\nAssistant:",
    "Human: x",
    "<image>Why?",
    " x",
    "na\u00efve",
    "",
    "[1]",
    3,
    None,
    [user("x")],
)
VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("prompt", "question"), (*TEXTS, [{"role": "user", "content": "x"}])),
    **dict.fromkeys(("chosen", "rejected", "gentle", "longer"), TEXTS),
    "negatives": (["x"], [], None),
    **dict.fromkeys(("image", "images"), ("a.png", ["a.png", "b.png"], ["../a.png"], [], None, [3])),
    **dict.fromkeys(("id", "idx", "kind"), ("7", 7, 1.5, "", None, True, [1])),
    "system": ("Be brief.", ""),
    **dict.fromkeys(("img", "videos", "messages", "rejeted", "further", "chat_template_kwargs"), ({}, "x", None)),
}


def random_record(rng: random.Random) -> dict[str, Any]:
    """Mostly a usual row, with a few keys and values of all others."""
    plain = {key: "A cat." for key in (rng.choice(("prompt", "question")), "chosen", "rejected")}
    odd = {key: rng.choice(VALUES[key]) for key in rng.sample(sorted(VALUES), rng.randint(0, 3))}
    mixed = [*(plain | odd).items()]
    rng.shuffle(mixed)
    return dict(mixed[: rng.choice((len(mixed), len(mixed), 2))])


def outcome(record: dict[str, Any]) -> Described | str:
    try:
        return read_record(record, source="rows.jsonl:3", roots=ROOTS)
    except DataError as problem:
        return str(problem)


def test_usual_rows_are_read_as_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows take a short way; it gives what the long one gives, or leaves them to it."""
    rng = random.Random(0)
    records = [random_record(rng) for _ in range(4_000)]
    short = [outcome(record) for record in records]
    ways: list[bool] = []
    monkeypatch.setattr(formats, "_usual_form", lambda keys: ways.append(True))
    assert [outcome(record) for record in records] == short
    assert len(ways) > 3_600
    assert sum(not isinstance(found, str) for found in short) > 800
    monkeypatch.undo()
    monkeypatch.setattr(formats, "_read_any", None)
    assert read(SAME["flat"]) == read({**SAME["rlaif-v"], "chosen": "A cat."})
