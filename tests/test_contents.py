"""What a path holds, and the message where something else is wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from cwdpo.contents import (
    GRID,
    IMAGES,
    MODEL,
    READINGS,
    RECIPE,
    ROWS,
    RUN,
    RUN_OR_MODEL,
    Kind,
    Wanted,
    checkpoint_directory,
    kind_of,
    refusal,
)
from cwdpo.errors import DataError, UserError

RECIPE_TEXT = "model:\n  name_or_path: m\ndata: {}\noutput_dir: runs/done  # of this recipe\n"
FILES: dict[str, tuple[Kind, dict[str, str]]] = {
    "runs/done": ("a run", {"recipe.yaml": "data:\n  train: ../../t.jsonl\n", "metrics.jsonl": "",
                            "stage1/config.json": "{}"}),
    "runs/lora": ("a run", {"recipe.yaml": "", "summary.json": "{}", "stage2/adapter_config.json": "{}"}),
    "half": ("an unfinished run", {"recipe.yaml": "", "engine.json": "{}"}),
    "begun": ("a folder with a recipe", {"recipe.yaml": RECIPE_TEXT}),
    "m": ("a model", {"config.json": "{}", "model.safetensors": "x"}),
    "a": ("a model's adapters", {"adapter_config.json": "{}", "adapter_model.safetensors": "x"}),
    "bare": ("a model without its config.json", {"model.safetensors": "x"}),
    "hub/snapshots/1": ("a model", {"config.json": "{}"}),
    "sd": ("a diffusion pipeline", {"model_index.json": "{}"}),
    "gguf": ("a folder of GGUF files", {"m.gguf": "x"}),
    "saved": ("a data set that `datasets` saved", {"state.json": "{}", "data-00000-of-00001.arrow": "x"}),
    "rows": ("a folder of rows", {"0.jsonl": "{}", "a.png": "x"}),
    "pictures": ("a folder of images", {"b.JPG": "x", "notes.txt": "x"}),
    "empty": ("an empty directory", {}),
    "other": ("a directory", {"notes.txt": "x"}),
    ".": ("a folder of runs", {"r.yaml": RECIPE_TEXT, "g.yml": "recipe: r.yaml\nmethods:\n  x: {}\n", "t.jsonl": "{}",
                                 "y.yaml": "- 1\n", "i.png": "x", "p.html": "x", "s.py": "x", "z.zip": "x", "n": "x",
                                 "packed.jsonl.gz": "x"}),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one of everything, which is the working directory."""
    for name, (_, files) in FILES.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(name: str, wanted: Wanted) -> str:
    return str(refusal(Path(name), wanted))


def test_what_is_there(here: Path) -> None:
    found = {name: kind_of(Path(name)) for name in FILES}
    assert found == {name: kind for name, (kind, _) in FILES.items()}
    assert kind_of(Path("hub")) == "a folder of models"
    of_files: dict[str, Kind] = {
        "r.yaml": "a recipe", "g.yml": "a grid", "y.yaml": "a YAML file", "t.jsonl": "a file of rows",
        "packed.jsonl.gz": "a file of rows", "i.png": "an image", "p.html": "a web page", "s.py": "a script",
        "z.zip": "an archive", "n": "a file", "gguf/m.gguf": "a GGUF file", "m/config.json": "a file of a model",
        "m/model.safetensors": "a file of a model", "runs/done/metrics.jsonl": "a file of a run",
    }  # fmt: skip
    assert {name: kind_of(Path(name)) for name in of_files} == of_files
    assert {*found.values(), *of_files.values(), "a folder of models"} == {*get_args(Kind)}


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("r.yaml", RUN_OR_MODEL,
         "r.yaml is a recipe, and a run or a model is needed. Its run is "
         "runs/done: write that."),
        ("begun", MODEL,
         "is a folder with a recipe, and a model is needed. Train it first: "
         "`cwdpo train begun/recipe.yaml`."),
        ("t.jsonl", RUN,
         "t.jsonl is a file of rows, and a run is needed. Write a run's "
         "directory, the output_dir of its recipe."),
        ("half", RUN_OR_MODEL,
         "No stage of it is finished. Go on with it: `cwdpo train "
         "half/recipe.yaml --output_dir half --resume`."),
        ("runs", RUN_OR_MODEL, "Did you mean runs/done or runs/lora?"),
        (".", RUN_OR_MODEL, ". is a folder of runs, and a run or a model is needed. Did you mean half?"),
        ("runs", READINGS, "Did you mean runs/done or runs/lora?"),
        ("hub", RUN_OR_MODEL,
         "hub is a folder of models, and a run or a model is needed. Did you "
         "mean hub/snapshots/1?"),
        ("runs/done", MODEL, "Write the model of its last stage: runs/done/stage1."),
        ("runs/lora", MODEL, "It holds adapters: run `cwdpo merge runs/lora --out DIR`, and write DIR."),
        ("a", MODEL, "Run `cwdpo merge a --out DIR`, and write DIR; or write the base model."),
        ("bare", RUN_OR_MODEL, "Copy config.json of the original model into it"),
        ("m/model.safetensors", RUN_OR_MODEL,
         "is a file of a model, and a run or a model is needed. Write its "
         "directory: m."),
        ("runs/done/metrics.jsonl", RUN_OR_MODEL, "Write its directory: runs/done."),
        ("runs/done/stage1", RUN, "It belongs to the run runs/done: write that."),
        ("runs/done/stage1/config.json", READINGS, "It belongs to the run runs/done: write that."),
        ("gguf", MODEL, "GGUF is not trained on: write the original model's directory or hub name."),
        ("sd", RUN_OR_MODEL, "It makes images. Write a vision-language model."),
        ("runs/done", ROWS, "runs/done is a run, and rows are needed. It trains on t.jsonl: write that."),
        ("r.yaml", ROWS, "r.yaml is a recipe, and rows are needed. Write a .jsonl"),
        ("pictures", ROWS, 'Write a file of rows that name the images, {"images": ["a.png"], ...}'),
        ("pictures", IMAGES, "Write one of its files, such as pictures/b.JPG."),
        ("n", IMAGES, "n is a file, and an image is needed. Write an image file, such as a.png."),
        ("r.yaml", GRID, "A grid is a YAML file with `recipe: r.yaml`, and what it compares, such as `methods: {DPO:"),
        ("m", GRID, "m is a model, and a grid is needed. Write a YAML file"),
        ("runs/done", GRID, "runs/done is a run, and a grid is needed. Runs that are there are compared by"),
        ("i.png", RECIPE, "i.png is an image, and a recipe is needed. `cwdpo init DATA --model MODEL` makes one."),
        ("runs/dune", RUN_OR_MODEL, "there is no directory runs/dune. Did you mean runs/done?"),
        ("t.json", ROWS, "t.json: no such file. Did you mean t.jsonl?"),
        ("nowhere", RUN, "there is no directory nowhere. Write a run's directory, the output_dir of its recipe."),
    ],
)  # fmt: skip
def test_what_to_write_instead(here: Path, name: str, wanted: Wanted, expected: str) -> None:
    assert expected in said(name, wanted)
    assert "\n" not in said(name, wanted)


def test_a_folder_whose_runs_have_a_model_names_these(here: Path) -> None:
    (here / "half").rename(here / "runs" / "half")
    assert said("runs", RUN_OR_MODEL).endswith("Did you mean runs/done or runs/lora?")
    assert said("runs", RUN).endswith("Did you mean runs/done or runs/half or runs/lora?")
    (here / "other" / "notes.txt").rename(here / "other" / ".notes")
    assert kind_of(here / "other") == "a directory"  # a hidden file is there


def test_every_kind_gets_one_sentence_for_everything_wanted(here: Path) -> None:
    for name in [*FILES, "runs", "r.yaml", "m/config.json", "runs/done/metrics.jsonl", "i.png", "n"]:
        for wanted in (MODEL, RUN_OR_MODEL, RUN, READINGS, ROWS, GRID, RECIPE, IMAGES):
            message = said(name, wanted)
            assert message.startswith(f"{name} is {kind_of(Path(name))}, and {wanted.needed}. ")
            assert message.endswith((".", "?"))


def test_the_checkpoint_that_is_meant(here: Path) -> None:
    (here / "runs/done/stage2").mkdir()
    assert checkpoint_directory(Path("runs/done")) == Path("runs/done/stage1")  # stage 2 is not finished
    (here / "runs/done/stage2/config.json").touch()
    assert checkpoint_directory(Path("runs/done")) == Path("runs/done/stage2")
    assert checkpoint_directory(Path("m")) == Path("m")
    with pytest.raises(UserError, match="half is an unfinished run"):
        checkpoint_directory(Path("half"))


def test_the_error_is_of_the_callers_type(here: Path) -> None:
    make: Callable[[], UserError] = lambda: refusal(Path("m"), ROWS, DataError)  # noqa: E731
    assert type(make()) is DataError


def test_a_recipe_whose_run_is_not_there_is_to_be_trained(here: Path) -> None:
    (here / "new.yaml").write_text(RECIPE_TEXT.replace("runs/done", "runs/new"))
    assert said("new.yaml", RUN).endswith("Train it first: `cwdpo train new.yaml`.")
