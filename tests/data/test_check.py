"""The preflight goes through a whole file and separates what stops training from what does not; memory, by hand."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data.check import check_rows, memory_estimate
from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.errors import DataError

FLAT = {"image": "a.png", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}
WriteRows = Callable[..., Path]


def test_a_good_file(write_rows: WriteRows, encoder_of: Callable[[str], Encoder]) -> None:
    path = write_rows({**FLAT, "gentle": "A kitten.", "negatives": ["x"]}, {"prompt": "Hi", "chosen": "Yo"})
    seen: list[int] = []
    report = check_rows(path, encoder=encoder_of("qwen3_vl"), on_row=seen.append)
    assert report.ok
    assert [(note.name, note.source) for note in report.notes] == [("no_rejected", f"{path}:2")]
    assert seen == [1, 2]
    encoded = encoder_of("qwen3_vl").encode(read_rows(path)[0], ["A cat.", "A dog.", "x", "A kitten."])
    counts = [len(ids) for ids in encoded.answers]
    row = report.rows[0]
    assert (row.source, row.format, row.num_images, row.num_rejected) == (f"{path}:1", "flat", 1, 2)
    assert (row.image_tokens, row.chosen_tokens, row.gentle_tokens) == (6, counts[0], counts[3])
    assert row.rejected_tokens == (counts[1], counts[2])
    assert row.text_tokens == encoded.prompt_tokens - 6
    assert row.longest == encoded.prompt_tokens + max(counts)
    summary = report.summary()
    assert summary["formats"] == {"flat": 1, "trl": 1}
    assert (summary["images"], summary["with_images"], summary["with_rejected"], summary["with_gentle"]) == (1, 1, 1, 1)
    assert summary["tokens"]["max"] == row.longest


def test_the_check_goes_on_after_bad_rows(write_rows: WriteRows, tmp_path: Path) -> None:
    path = write_rows(
        FLAT,
        {**FLAT, "chosen": ""},
        {**FLAT, "image": "none.png"},
        {**FLAT, "image": "../a.png"},
        {**FLAT, "image": "text.png"},
        {"instruction": "x"},
        {**FLAT, "prompt": "Who?"},
    )
    (tmp_path / "text.png").write_text("not an image")
    with path.open("a") as file:
        file.write("{broken\n" + json.dumps({**FLAT, "prompt": "Where?"}))
    report = check_rows(path)
    assert not report.ok
    assert (report.num_records, len(report.rows)) == (9, 3)
    lines = {int(finding.source.rsplit(":", 1)[1]): finding.message for finding in report.findings}
    assert sorted(lines) == [2, 3, 4, 5, 6, 8]
    for line, message in {
        2: "is empty",
        3: "does not exist",
        4: "leaves",
        5: "not an image",
        6: "format",
        8: "JSON",
    }.items():
        assert lines[line].startswith(f"{path}:{line}: ")
        assert message in lines[line]
    assert report.summary()["findings"] == {"unusable_row": 6}


def test_answers_that_may_be_missing_values_are_noted(write_rows: WriteRows) -> None:
    path = write_rows(
        {**FLAT, "chosen": "nan"},
        {**FLAT, "rejected": " None\n"},
        {**FLAT, "prompt": "Who?", "negatives": ["N/A"], "gentle": "null"},
        {**FLAT, "prompt": "How many?", "chosen": "none of them"},
    )
    report = check_rows(path)
    assert report.ok
    assert [note.message.removeprefix(f"{path}:") for note in report.notes if note.name == "missing_value"] == [
        f"{line}: an answer of `{key}` is {text!r}; is it a missing value? Then take the row out."
        for line, key, text in (
            (1, "chosen", "nan"),
            (2, "rejected", "None"),
            (3, "rejected", "N/A"),
            (3, "gentle", "null"),
        )
    ]


def test_long_rows_are_findings_with_their_counts(write_rows: WriteRows, processor_of: Callable[[str], Any]) -> None:
    path = write_rows(FLAT, {**FLAT, "chosen": "A cat. " * 30, "rejected": "x"})
    report = check_rows(path, encoder=Encoder(processor_of("llava"), max_length=80))
    assert [(finding.source, finding.name) for finding in report.findings] == [(f"{path}:2", "too_long")]
    assert report.rows[1].longest > 80
    assert f"has {report.rows[1].longest} tokens" in report.findings[0].message


def test_what_is_not_read_is_noted_once(write_rows: WriteRows) -> None:
    own = {"gentle_edit": {"kind": "colour"}, "negative_sources": ["x"], "lbar": [-1.0], "ches": [0.0], "w_c": [0.5]}
    turn = {"role": "user", "content": [{"type": "text", "text": "What?", "index": 0}], "timestamp": 3}
    path = write_rows({**FLAT, **own, "score": 3}, {**FLAT, "prompt": [turn], "score": 4}, {**FLAT, "prompt": [turn]})
    found = [(note.name, note.message.removeprefix(f"{path}:")) for note in check_rows(path).notes]
    assert found[:3] == [
        ("unread_column", "1: column `score` is not read, here and in other rows."),
        ("unread_key", "2: the key `timestamp` of messages is not read, here and in other rows."),
        ("unread_key", "2: the key `index` of messages is not read, here and in other rows."),
    ]
    assert [name for name, _ in found[3:]] == ["duplicate"] * 2


@pytest.mark.parametrize(
    "tag",
    ["<img>", "</img>", "<image 1>", "<image_1>", "<|image_1|>", "<video>", "<|audio|>", "[IMG]", "<ImageHere>"],
)
def test_marks_of_other_programs_are_noted(tag: str, write_rows: WriteRows) -> None:
    path = write_rows({**FLAT, "prompt": f"Look {tag} here"}, {**FLAT, "chosen": f"{tag} shows it"})
    assert [(note.name, note.source) for note in check_rows(path).notes] == [("media_tag", f"{path}:1")]
    assert tag in check_rows(path).notes[0].message


def test_rows_that_differ_in_what_the_template_gets_are_no_duplicates(write_rows: WriteRows) -> None:
    thinking = {**FLAT, "chat_template_kwargs": {"enable_thinking": True}}
    assert check_rows(write_rows(FLAT, thinking)).notes == []
    assert [note.name for note in check_rows(write_rows(thinking, thinking)).notes] == ["duplicate"]


def test_rows_whose_texts_are_cut_elsewhere_are_no_duplicates(write_rows: WriteRows) -> None:
    rows = [
        {"prompt": "What?", "chosen": "A cat", "rejected": "s."},
        {"prompt": "What?", "chosen": "A", "rejected": " cats."},
        {"prompt": "What?", "chosen": "A cat", "negatives": ["s.", "No."]},
        {"prompt": "What?", "chosen": "A cat", "rejected": "s.", "gentle": "No."},
        {"prompt": "What?", "chosen": "A cat", "rejected": "No.", "gentle": "s."},
    ]
    assert check_rows(write_rows(*rows)).notes == []
    found = check_rows(write_rows(*rows, rows[3])).notes
    assert [(note.name, note.source[-2:]) for note in found] == [("duplicate", ":6")]


def test_json_text_is_noted(write_rows: WriteRows) -> None:
    said = json.dumps([{"role": "assistant", "content": "A cat."}])
    path = write_rows({**FLAT, "chosen": said}, {**FLAT, "chosen": '{"animal": "cat"}'}, {**FLAT, "chosen": "[sic]"})
    found = check_rows(path).notes
    assert [(note.name, note.source) for note in found] == [("json_text", f"{path}:1"), ("json_text", f"{path}:2")]
    assert "`chosen` is text that holds messages" in found[0].message
    assert "as it stands" in found[1].message


def test_a_check_without_a_model_loads_no_torch(write_rows: WriteRows) -> None:
    path = write_rows(FLAT)
    script = f"""
import sys
from cwdpo.cli.app import main
sys.argv = ["cwdpo", "check", {str(path)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = ("torch", "transformers", "datasets", "pyarrow", "yaml", "cwdpo.config.recipe")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("[]")


def notes(path: Path, **options: Any) -> list[tuple[int, str]]:
    report = check_rows(path, **options)
    assert report.ok
    assert all(note.message.startswith(f"{note.source}: ") for note in report.notes)
    return [(int(note.source.rsplit(":", 1)[1]), note.name) for note in report.notes]


def test_notes(write_rows: WriteRows, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    path = write_rows(
        FLAT,
        {**FLAT, "image": "b.png"},
        FLAT,
        {**FLAT, "prompt": "Same?", "rejected": "A cat. "},
        {**FLAT, "prompt": "Gentle?", "gentle": "A cat."},
        {**FLAT, "chosen": "A dog.", "rejected": "A cat."},
        {**FLAT, "prompt": "Column?", "score": 3},
        {**FLAT, "prompt": "Again?", "score": 4},
    )
    assert notes(path) == [
        (3, "duplicate"),
        (4, "identical_answers"),
        (5, "gentle_is_chosen"),
        (6, "contradiction"),
        (7, "unread_column"),
    ]
    assert f"the same as {path}:1" in check_rows(path).notes[0].message


def test_exchanged_answers_show_in_gentle_ones(write_rows: WriteRows) -> None:
    right = {"prompt": "What?", "chosen": "a red disc on a table", "rejected": "rain", "gentle": "a red disc on a mat"}
    wrong = right | {"chosen": "rain", "rejected": "a red disc on a table"}
    many = [wrong | {"prompt": f"Which, {i}?"} for i in range(14)]
    (note,) = check_rows(write_rows(*many, right, right | {"prompt": "Who?"})).notes
    assert note.name == "exchanged"
    assert "`gentle` is nearer to `rejected` than to `chosen` in 14 of the 16 rows" in note.message
    assert notes(write_rows(wrong, *[row | {"rejected": "fog on a red mat"} for row in many[:3]])) == []  # chance
    assert notes(write_rows(*[right | {"prompt": str(i)} for i in range(20)])) == []
    assert notes(write_rows(*[row | {"gentle": "fog"} for row in many])) == []  # as near to both


def test_an_id_of_two_rows(write_rows: WriteRows) -> None:
    path = write_rows({**FLAT, "id": "a"}, FLAT | {"prompt": "No id"}, {**FLAT, "id": "a", "rejected": "A cow."})
    assert notes(path) == [(3, "shared_id")]
    assert check_rows(path).notes[0].message.startswith(f"{path}:3: the id 'a' is also on line 1, with other content")
    # a copy is one thing, and is said once
    assert notes(write_rows({**FLAT, "id": "a"}, {**FLAT, "id": "a"})) == [(2, "duplicate")]


def test_a_file_without_two_different_answers_teaches_nothing(write_rows: WriteRows) -> None:
    same = {**FLAT, "rejected": " A cat."}
    found = check_rows(write_rows(same, {**same, "prompt": "Who?"})).findings
    assert [finding.name for finding in found] == ["nothing_to_learn"]
    assert "no row has two different answers, so nothing can be learned" in found[0].message
    assert check_rows(write_rows(same, {**FLAT, "prompt": "Who?"})).ok
    assert check_rows(write_rows({**same, "negatives": ["A dog."]})).ok


def test_notes_on_tokens(write_rows: WriteRows, processor_of: Callable[[str], Any]) -> None:
    processor = copy.copy(processor_of("llava"))
    processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = write_rows({"prompt": "a s", "chosen": "quare", "rejected": " circle"})
    assert notes(path, encoder=Encoder(processor)) == [(1, "split_tokens")]


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    report = check_rows(tmp_path / "none.jsonl")
    assert [finding.name for finding in report.findings] == ["unreadable_file"]
    with pytest.raises(DataError, match="is not a directory"):
        check_rows(tmp_path / "none.jsonl", image_root=tmp_path / "none")


def test_the_report_is_json(write_rows: WriteRows, encoder_of: Callable[[str], Encoder]) -> None:
    path = write_rows({**FLAT, "gentle": "A kitten."}, {**FLAT, "chosen": ""}, FLAT, FLAT)
    found = json.loads(json.dumps(check_rows(path, encoder=encoder_of("llava")).to_json()))
    assert found["ok"] is False
    assert found["path"] == str(path)
    assert [row["source"] for row in found["rows"]] == [f"{path}:{line}" for line in (1, 3, 4)]
    assert found["findings"][0]["message"].startswith(f"{path}:2: `chosen` is empty")
    assert found["notes"][0]["name"] == "duplicate"
    assert found["summary"]["rows"] == 3


SIZES = {"tokens_per_batch": 2000, "hidden_size": 2048, "num_layers": 36, "vocabulary_size": 151_936}


def test_full_finetuning_of_three_billion_in_bfloat16() -> None:
    estimate = memory_estimate(num_parameters=3 * 10**9, trainable_parameters=3 * 10**9, bytes_per_value=2, **SIZES)
    assert estimate["weights"] + estimate["gradients"] + estimate["optimizer"] == 24 * 10**9
    assert estimate["activations"] == 2000 * 2048 * 34 * 36
    assert estimate["logits"] == 3 * 1024 * 151_936 * 4
    assert estimate["total"] == 24 * 10**9 + 5_013_504_000 + 1_866_989_568


def test_adapters_and_checkpointing_take_less() -> None:
    estimate = memory_estimate(
        num_parameters=3 * 10**9, trainable_parameters=10**7, bytes_per_value=4, checkpointing=True, **SIZES
    )
    assert (estimate["weights"], estimate["gradients"], estimate["optimizer"]) == (12 * 10**9, 4 * 10**7, 8 * 10**7)
    assert estimate["activations"] == pytest.approx(2000 * 2048 * (36 * 4 + 68))
