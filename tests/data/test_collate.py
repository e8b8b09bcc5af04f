"""Batches of prompts x answers."""

import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from tiny import NAMES
from torch.utils.data import DataLoader

import cwdpo.data.encode
from cwdpo.batch import Role
from cwdpo.data.collate import AnswerCollator, RowDataset, estimate_lengths, prompt_digest
from cwdpo.data.encode import Encoder
from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSlot, Message, Row, StoredImage
from cwdpo.errors import ConfigError, DataError

IMAGE = Image.new("RGB", (40, 48), "red")
TEXT = (Message("user", ("What?",)),)
SEEN = (Message("user", (ImageSlot(), "What?")),)
ROWS = [
    Row(SEEN, "A cat.", ("A dog.", "A big dog."), "A kitten.", images=(IMAGE,), source="f:1"),
    Row(TEXT, "Yes.", ("No.",), source="f:2"),
    Row(SEEN, "A cat.", images=(IMAGE,), source="f:3"),
]
ITEMS = [(7, ROWS[0]), (2, ROWS[1]), (5, ROWS[2])]


@pytest.mark.parametrize("name", NAMES)
def test_batch_says_what_the_rows_say(
    name: str, encoder_of: Callable[[str], Encoder], processor_of: Callable[[str], Any]
) -> None:
    encoder, tokenizer = encoder_of(name), processor_of(name).tokenizer
    batch = AnswerCollator(encoder)(ITEMS)
    assert next(iter(batch)) == "row_index"
    assert batch["row_index"].tolist() == [7, 2, 5]
    assert batch["prompt_index"].tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert batch["roles"].tolist() == [0, 1, 1, 2, 0, 1, 0]
    texts = ["A cat.", "A dog.", "A big dog.", "A kitten.", "Yes.", "No.", "A cat."]
    for text, ids, mask in zip(texts, batch["answer_ids"], batch["answer_mask"], strict=True):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        decoded = tokenizer.decode(ids[mask])
        assert decoded.strip() == text + tokenizer.convert_ids_to_tokens(int(ids[mask][-1]))
    for row, prompt in zip(ROWS, batch["prompts"], strict=True):
        alone = encoder.encode(row).prompt
        assert all(torch.equal(prompt[key], alone[key]) for key in alone)
        assert prompt["attention_mask"].all()


def test_roles_come_in_the_order_asked_for(encoder_of: Callable[[str], Encoder]) -> None:
    batch = AnswerCollator(encoder_of("llava"), roles=[Role.GENTLE, Role.CHOSEN])(ITEMS)
    assert batch["roles"].tolist() == [2, 0, 0, 0]
    assert batch["prompt_index"].tolist() == [0, 0, 1, 2]


def test_missing_answers_name_the_row(encoder_of: Callable[[str], Encoder]) -> None:
    with pytest.raises(DataError, match=r"f:3: the row has no `rejected`, which this stage trains on"):
        AnswerCollator(encoder_of("llava"), required=[Role.REJECTED])(ITEMS)
    with pytest.raises(DataError, match=r"f:2: the row has no `gentle`"):
        AnswerCollator(encoder_of("llava"), roles=[Role.GENTLE])(ITEMS)


def test_each_image_is_opened_once(encoder_of: Callable[[str], Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def count(image: Any, *, source: str) -> Image.Image:
        opened.append(source)
        return open_image(image, source=source)

    monkeypatch.setattr(cwdpo.data.encode, "open_image", count)
    AnswerCollator(encoder_of("llava"))(ITEMS)
    assert opened == ["f:1", "f:3"]


def test_keys_are_equal_exactly_for_equal_content(encoder_of: Callable[[str], Encoder]) -> None:
    collate = AnswerCollator(encoder_of("qwen2_vl"))
    keys = collate(ITEMS)["keys"]
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert keys[0] == keys[6]
    assert len(set(keys)) == 6
    assert collate(ITEMS[::-1])["keys"][0] == keys[0]
    other = IMAGE.copy()
    other.paste((0, 0, 255), (0, 0, 20, 20))
    changed = Row(SEEN, "A cat.", images=(other,), source="f:9")
    assert collate([(0, changed)])["keys"] != keys[:1]
    turned = Row((Message("user", (ImageSlot(), "What")),), "A cat.", images=(IMAGE,), source="f:9")
    assert collate([(0, turned)])["keys"] != keys[:1]


def test_prompt_digest_reads_names_types_and_shapes() -> None:
    zeros = torch.zeros(2, 2, dtype=torch.float32)
    same = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(4)},
        {"a": zeros.int()},
        {"a": zeros.T + 1},
        {"a": zeros, "b": zeros},
    ]
    assert len({prompt_digest(prompt) for prompt in same}) == len(same)
    two = {"a": torch.tensor(1.5, dtype=torch.bfloat16), "b": torch.arange(6).view(2, 3).T}
    assert prompt_digest(two) == prompt_digest({"b": two["b"].contiguous(), "a": two["a"]})


def test_workers_see_the_same(encoder_of: Callable[[str], Encoder]) -> None:
    collate = AnswerCollator(encoder_of("llava"))
    again = pickle.loads(pickle.dumps(collate))
    assert again(ITEMS)["keys"] == collate(ITEMS)["keys"]
    loader = DataLoader(RowDataset(ROWS), batch_size=2, collate_fn=collate, num_workers=1)
    assert [batch["row_index"].tolist() for batch in loader] == [[0, 1], [2]]


TRL = {
    "prompt": [{"role": "user", "content": "What?"}],
    "chosen": [{"role": "assistant", "content": "A cat."}],
    "rejected": [{"role": "assistant", "content": "A dog."}],
}


def test_a_trl_dataset_is_converted_on_the_fly(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    data = datasets.Dataset.from_list([{**TRL, "images": [str(tmp_path / "a.png")]}] * 2)
    data = data.cast_column("images", datasets.List(datasets.Image()))
    for same in (data, data.with_format("torch"), data.with_format("numpy")):
        assert RowDataset(same)[0][1].images == (tmp_path / "a.png",)
    found = RowDataset(data, image_root=tmp_path)
    assert len(found) == 2
    index, row = found[1]
    assert (index, row.source) == (1, "train_dataset[1]")
    assert (row.prompt, row.chosen, row.rejected) == (SEEN, "A cat.", ("A dog.",))
    assert open_image(row.images[0], source="").getpixel((0, 0)) == (255, 0, 0)
    assert found.__getitem__(0)[0] == 0
    assert [index for index, _ in found] == [0, 1]


def test_a_datasets_own_transform_is_kept() -> None:
    data = datasets.Dataset.from_dict({"question": ["What?"]})
    data.set_transform(lambda batch: {"prompt": batch["question"], "chosen": ["A cat."], "images": [[IMAGE]]})
    assert RowDataset(data)[0][1].images[0].size == (40, 48)


def test_records_and_what_is_wrong_with_them() -> None:
    found = RowDataset([TRL, {**TRL, "chosen": ""}, {**TRL, "image": "a.png"}], name="eval_dataset")
    assert found[0][1].chosen == "A cat."
    with pytest.raises(DataError, match=r"eval_dataset\[1\]: `chosen` is empty"):
        found[1]
    with pytest.raises(DataError, match=r"eval_dataset\[2\]: .* the working directory, "):
        found[2]
    with pytest.raises(IndexError):
        found[3]


def test_streams_and_splits_are_refused() -> None:
    data = datasets.Dataset.from_list([TRL])
    for wrong in (data.to_iterable_dataset(), datasets.DatasetDict({"train": data}), iter([TRL])):
        with pytest.raises(ConfigError, match=r"train_dataset is a .*Give one"):
            RowDataset(wrong)


def test_crops_are_of_the_rows_with_images_and_the_same_at_every_call(encoder_of: Callable[[str], Encoder]) -> None:
    picture = Image.effect_mandelbrot((40, 48), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    rows = [(index, replace(row, images=(picture,) * len(row.images))) for index, row in ITEMS]
    collate = AnswerCollator(encoder_of("llava"), roles=[Role.CHOSEN, Role.REJECTED], crops=True)
    batch, again = collate(rows), collate(rows[2:])
    cropped = batch["cropped"]
    assert cropped["row_index"].tolist() == [7, 5]
    assert cropped["prompt_index"].tolist() == [0, 1]
    assert cropped["roles"].tolist() == [int(Role.CHOSEN)] * 2
    for place, whole in enumerate((0, 2)):
        answer = batch["prompt_index"].tolist().index(whole)
        mask = cropped["answer_mask"][place]
        assert (
            cropped["answer_ids"][place][mask].tolist()
            == batch["answer_ids"][answer][batch["answer_mask"][answer]].tolist()
        )
        small, own = cropped["prompts"][place], batch["prompts"][whole]
        assert torch.equal(small["input_ids"], own["input_ids"])
        assert (small["pixel_values"] - own["pixel_values"]).abs().mean() > 0.05
    assert again["cropped"]["keys"] == cropped["keys"][1:]
    assert not {*cropped["keys"]} & {*batch["keys"]}
    assert "cropped" not in collate(rows[1:2])
    assert "cropped" not in AnswerCollator(encoder_of("llava"))(rows)


def pictured(number: int) -> dict[str, Any]:
    image = Image.effect_noise((40 + number, 48), 90).convert("RGB")
    return {**TRL, "images": [image], "chosen": "A cat." * (1 + number % 5)}


def test_a_table_keeps_its_images_until_they_are_read() -> None:
    data = datasets.Dataset.from_list([pictured(number) for number in range(3)])
    for table, order in ((data, [0, 1, 2]), (data.select([2, 0, 1]), [2, 0, 1])):
        for rows in (RowDataset(table), pickle.loads(pickle.dumps(RowDataset(table)))):
            images = [row.images[0] for _, row in rows]
            assert all(isinstance(image, StoredImage) for image in images)
            assert images == [row.images[0] for _, row in rows]
            assert [open_image(image, source="").width for image in images] == [40 + number for number in order]


def test_lengths_are_estimated_without_holding_the_images() -> None:
    made: list[weakref.ref[Image.Image]] = []
    most = 0

    def decoded(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal most
        images = [[image.convert("RGB") for image in of_row] for of_row in batch["images"]]
        made.extend(weakref.ref(image) for of_row in images for image in of_row)
        most = max(most, sum(each() is not None for each in made))
        return {**batch, "images": images}

    def count(row: Row) -> int:
        return len(row.chosen) + open_image(row.images[0], source="").width

    data = datasets.Dataset.from_list([pictured(number) for number in range(30)])
    stored, transformed = RowDataset(data), RowDataset(data.with_transform(decoded))
    found = estimate_lengths(lambda i: transformed[i][1], 30, count)
    assert len(made) == 30 + 24  # rows, and those of them that are counted
    assert most <= 2
    held = [row for _, row in stored]
    assert found == estimate_lengths(held.__getitem__, 30, count)
    assert found == pytest.approx([count(row) for row in held], abs=1)
