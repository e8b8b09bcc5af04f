"""Bad input, end to end: ``cwdpo train`` leaves with 2 and one message, and everything that was there is untouched."""

import json
import resource
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import disc_data
from transformers import AutoTokenizer

from cwdpo.cli import app

Train = Callable[..., tuple[int, str]]
Spoil = Callable[[Path], None]


def png_that_claims(width: int, height: int) -> bytes:
    """A picture of a few bytes whose header says that it is large."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def image(content: bytes | None) -> Spoil:
    """Puts something else in the place of the third row's picture; None takes it away."""

    def spoil(data: Path) -> None:
        (data / "2.png").unlink()
        if content is not None:
            (data / "2.png").write_bytes(content)

    return spoil


def cut_short(data: Path) -> None:
    noise = Image.effect_noise((64, 64), 50)
    noise.save(data / "2.png")
    (data / "2.png").write_bytes((data / "2.png").read_bytes()[:600])


def huge(data: Path) -> None:
    with (data / "2.png").open("r+b") as file:
        file.truncate(300 * 2**20)  # a sparse file, which takes no room


def link(data: Path) -> None:
    outside = data.parent / "secret.png"
    (data / "2.png").rename(outside)
    (data / "2.png").symlink_to(outside)


def line(text: str) -> Spoil:
    """Puts something else in the place of the third line."""

    def spoil(data: Path) -> None:
        lines = (data / "train.jsonl").read_text().splitlines()
        lines[2] = text
        (data / "train.jsonl").write_text("\n".join(lines) + "\n")

    return spoil


def row(**changes: Any) -> Spoil:
    """Changes the third row."""
    return line(json.dumps(disc_data.records(3)[2] | changes))


BAD_DATA = {
    "missing image": (image(None), "2.png does not exist"),
    "empty image": (image(b""), "2.png is empty (0 bytes)"),
    "huge image": (huge, "has 314,572,800 bytes, more than the 268,435,456 allowed"),
    "truncated image": (cut_short, "2.png cannot be decoded"),
    "no image": (image(b"<html>not found</html>"), "2.png is not an image that Pillow can read"),
    "bomb": (image(png_that_claims(20_000, 20_000)), "2.png is too large"),
    "long and thin": (image(png_that_claims(40_000, 2)), "more than the 32,768 allowed on a side"),
    "small bomb": (image(png_that_claims(10_000, 10_000)), "2.png is too large"),  # of which Pillow only warns
    "path out": (row(images=["../secret.png"]), "leaves the image root"),
    "link out": (link, "a link that leads out of the image root"),
    "broken JSON": (line('{"prompt": "x", "chosen": '), "the line ends too early, at column 26: } is missing"),
    "wrong type": (row(chosen=3), "chosen"),
    "wrong type of images": (row(images={"a": 1}), "images"),
    "empty answer": (row(rejected="  "), "rejected"),
    "no answer": (line('{"prompt": "x"}'), "chosen"),
    "over-long row": (row(chosen="very " * 5000), "Nothing is truncated: shorten the row"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < 2**20
    }


def assert_message(result: tuple[int, str], *expected: str) -> None:
    code, err = result
    assert code == 2
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in expected:
        assert part in err


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_rows_and_images(name: str, train: Train, tmp_path: Path) -> None:
    spoil, expected = BAD_DATA[name]
    data = tmp_path / "data"
    disc_data.write(data, disc_data.records(8))
    spoil(data)
    before = snapshot(data)
    assert_message(train(stage1=None), f"{data}/train.jsonl:3: ", expected)
    assert snapshot(data) == before


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("name", sorted(BAD_DATA.keys() - {"truncated image", "over-long row"}))
def test_what_the_header_tells_is_told_before_a_model_is_loaded(name: str, train: Train, tmp_path: Path) -> None:
    disc_data.write(tmp_path / "data", disc_data.records(8))
    BAD_DATA[name][0](tmp_path / "data")
    assert_message(train(), "train.jsonl:3: ")


@pytest.mark.usefixtures("loads_nothing")
def test_shapes_that_the_processor_refuses_stop_a_run_before_it_loads_a_model(
    train: Train, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    disc_data.write(tmp_path / "data", disc_data.records(8))
    Image.new("RGB", (4, 900)).save(tmp_path / "data" / "2.png")
    model = {"name_or_path": str(tiny("qwen2_vl"))}
    assert_message(train(model=model), "train.jsonl:3: ", "refuses an image of 4 x 900 pixels: absolute aspect ratio")


@pytest.mark.usefixtures("loads_nothing")
def test_bad_recipes(train: Train, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    assert_message(train(stage2={"coolling": None}), f"{recipe}:", "unknown key 'stage2.coolling'")
    assert_message(train(stage2={"beta": "x"}), f"{recipe}:", "stage2.beta is 'x', but must be a number.")
    assert_message(train(data={"train": "nothing.jsonl"}), f"{tmp_path}/nothing.jsonl: no such file")


@pytest.mark.slow
def test_models_that_are_none(train: Train, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    text_only = tmp_path / "text_only"
    text_only.mkdir()
    (text_only / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert_message(train(model={"name_or_path": str(text_only)}), str(text_only), "a llama model, which does not read")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny("llava").iterdir():
        if path.suffix == ".safetensors" or path.name in ("config.json", "generation_config.json"):
            (bare / path.name).write_bytes(path.read_bytes())
    assert_message(
        train(model={"name_or_path": str(bare)}), str(bare), "preprocessor_config.json", "tokenizer_config.json"
    )
    assert_message(
        train(model={"name_or_path": str(tmp_path / "nowhere")}), f"there is no directory {tmp_path}/nowhere"
    )
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("loads_nothing")
def test_tokens_beyond_the_embedding(
    train: Train,
    tmp_path: Path,
    tiny: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tokenizer that was given a token, and a model that was not: known before the model is loaded."""
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny("llava"), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    size = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    rows = disc_data.records(8)
    rows[2]["rejected"] = "A <extra> disc."
    disc_data.write(data, rows)
    said = (f"an answer has the token '<extra>' with the id {size}", f"embedding has {size} rows", f"{size + 1} tokens")
    assert_message(train(model={"name_or_path": str(model)}), "train.jsonl:3: ", *said)
    monkeypatch.setattr(sys, "argv", ["cwdpo", "check", str(data / "train.jsonl"), "--model", str(model)])
    with pytest.raises(SystemExit, match="1"):
        app.main()
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("1 thing stops", "train.jsonl:3: ", *said))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the operating system refuse to write more into a file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "expected"), [("no", "second/stage1 could not be written"), ("steps", "no room to save a checkpoint")]
)
def test_a_disk_that_is_full_while_saving(strategy: str, expected: str, train: Train, tmp_path: Path) -> None:
    assert train(stage2=None)[0] == 0
    before = snapshot(tmp_path / "run")
    assert (tmp_path / "run" / "stage1" / "model.safetensors").stat().st_size > 100_000
    with files_of_at_most(100_000):
        message = train("--output_dir", tmp_path / "second", "--trainer.save_strategy", f"'{strategy}'", stage2=None)
    assert_message(message, expected)
    assert not (tmp_path / "second" / "stage1").exists()
    assert snapshot(tmp_path / "run") == before


@pytest.mark.slow
def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(
    train: Train, tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model, ran = tmp_path / "with_code", tmp_path / "it_ran"
    model.mkdir()
    for path in tiny("llava").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "code.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor\n"
        "class OwnConfig(LlavaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlavaForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    settings = json.loads((model / "config.json").read_text())
    code = {"AutoConfig": "code.OwnConfig", "AutoModelForImageTextToText": "code.OwnModel"}
    (model / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": code}))
    assert_message(train(model={"name_or_path": str(model)}), str(model), "set `model.trust_remote_code: true`")
    assert not ran.exists()
    train(model={"name_or_path": str(model), "trust_remote_code": True})
    assert ran.exists()  # so the test above would have seen it
