"""A data set means one thing: read from JSON lines, in memory, from parquet and from what ``datasets`` saved."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cwdpo.data.collate import RowDataset
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import DataError

MIXED = {
    "images": ["a.png"],
    "prompt": [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    ],
    "chosen": [{"role": "assistant", "content": "red"}],
    "rejected": [{"role": "assistant", "content": "cat"}],
}
READ = Row(
    (Message("system", ("You help.",)), Message("user", (ImageSlot(), "What?"))),
    "red",
    ("cat",),
    images=(Path("a.png"),),
)


def every_way(dataset: datasets.Dataset, folder: Path) -> list[list[Row]]:
    """The rows in memory, from parquet and from ``save_to_disk``."""
    dataset.to_parquet(str(folder / "rows.parquet"))
    dataset.save_to_disk(str(folder / "saved"))
    held = RowDataset(dataset, image_root=folder)
    return [
        [held[index][1] for index in range(len(held))],
        read_rows(folder / "rows.parquet", image_root=folder),
        read_rows(folder / "saved", image_root=folder),
    ]


def expected(folder: Path) -> Row:
    return Row(READ.prompt, READ.chosen, READ.rejected, images=(folder.resolve() / "a.png",))


def test_mixed_content_is_the_same_however_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text((json.dumps(MIXED) + "\n") * 3)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert "Json" in str(loaded.features), "datasets keeps such columns as JSON text"
    for rows in [read_rows(tmp_path / "rows.jsonl"), *every_way(loaded, tmp_path)]:
        assert rows == [expected(tmp_path)] * 3


@pytest.mark.parametrize("wrap", [datasets.Json(), datasets.List(datasets.Json())], ids=["json", "list_of_json"])
def test_json_columns(wrap: Any, tmp_path: Path) -> None:
    features = datasets.Features(
        {"images": datasets.List(datasets.Value("string")), **dict.fromkeys(("prompt", "chosen", "rejected"), wrap)}
    )
    dataset = datasets.Dataset.from_list([MIXED] * 2, features=features)
    for rows in every_way(dataset, tmp_path):
        assert rows == [expected(tmp_path)] * 2


def test_arrows_own_json_type_is_decoded(tmp_path: Path) -> None:
    """Parquet of other programs has no metadata of datasets."""
    columns = {key: pa.array([json.dumps(MIXED[key])], pa.json_()) for key in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table({**columns, "images": [["a.png"]]}), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [expected(tmp_path)]


def test_images_stay_encoded_beside_json(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            **dict.fromkeys(("prompt", "chosen", "rejected"), datasets.Json()),
        }
    )
    dataset = datasets.Dataset.from_list([{**MIXED, "images": [Image.new("RGB", (3, 5))]}], features=features)
    for rows in every_way(dataset, tmp_path):
        assert isinstance(rows[0].images[0], bytes)
        assert rows[0].prompt == READ.prompt


def test_a_hub_data_set_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"prompt": "What?", "chosen": "red", "rejected": "cat"}
    splits = {name: datasets.Dataset.from_list([{**record, "chosen": name}] * 2) for name in ("test", "train")}

    def load(name: str, configuration: str | None, split: str | None) -> Any:
        assert (name, configuration) in (("owner/name", None), ("owner/name", "small"))
        return datasets.DatasetDict(splits) if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.chosen for row in read_rows("hf:owner/name")] == ["train"] * 2
    row = read_rows(Path("hf:owner/name/small:test"))[1]
    assert (row.chosen, row.source) == ("test", "hf:owner/name/small:test:2")
    del splits["train"]
    assert read_rows("hf:owner/name")[0].chosen == "test"
    splits["validation"] = splits["test"]
    with pytest.raises(DataError, match=r"has no split `train`\. Give one of: hf:owner/name:test, hf:owner/name:val"):
        read_rows("hf:owner/name")
    with pytest.raises(DataError, match="is not the name of a hub data set"):
        read_rows("hf:a/b/c/d")


def test_a_hub_data_set_may_not_name_files_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    record = {"prompt": "What?", "chosen": "red", "image": str(tmp_path / "a.png")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([record]))
    with pytest.raises(DataError, match="no directory may be read"):
        read_rows("hf:owner/name:train")
    assert read_rows("hf:owner/name:train", image_root=tmp_path)[0].images == (tmp_path.resolve() / "a.png",)


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        read_rows("hf:cwdpo-tests/no-such-data")
    message = str(caught.value)
    assert message.startswith("hf:cwdpo-tests/no-such-data: the data set cannot be loaded (")
    assert "hf download cwdpo-tests/no-such-data --repo-type dataset" in message
    assert "\n" not in message
