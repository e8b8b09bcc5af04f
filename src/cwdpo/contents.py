"""What a path holds, and one message where something else is wanted there: what it is, what is needed, what to write.

Nothing is loaded: names and a few first lines say enough. Every command that takes a run, a model, rows or the like
refuses other things through :func:`refusal`.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from cwdpo.errors import UserError, path_advice
from cwdpo.records import STAGES, RunDirectory

Kind: TypeAlias = Literal[
    "a run", "an unfinished run", "a folder of runs", "a model", "a model's adapters",
    "a model without its config.json", "a folder of models", "a diffusion pipeline", "a folder of GGUF files",
    "a data set that `datasets` saved", "a folder of rows", "a folder of images", "a folder with a recipe",
    "an empty directory", "a directory", "a recipe", "a grid", "a YAML file", "a file of rows", "a file of a run",
    "a file of a model", "a GGUF file", "an image", "a web page", "a script", "an archive", "a file",
]  # fmt: skip
"""What a path may hold, in the words of the message."""


class Wanted(NamedTuple):
    """What a command takes at some place."""

    needed: str
    """As in ``and a run is needed``."""

    write: str
    """What to write, where nothing at the path says it better."""

    is_file: bool | None = False
    """Whether it is a file; None where it may be a directory, too."""


MODEL = Wanted("a model is needed", "Write a model's directory (with config.json), or a hub name: owner/model.")
RUN_OR_MODEL = Wanted(
    "a run or a model is needed", "Write a run's directory, a model's (with config.json), or a hub name: owner/model."
)
RUN = Wanted("a run is needed", "Write a run's directory, the output_dir of its recipe.")
READINGS = Wanted("a run is needed", "Write a run's directory, a trainer_state.json, or a JSONL file of logs.", None)
ROWS = Wanted("rows are needed", "Write a .jsonl, .json, .parquet, .csv or .tsv file, or a folder of such.", True)
GRID = Wanted("a grid is needed", "Write a YAML file with `recipe:` and `methods:`.", True)
RECIPE = Wanted("a recipe is needed", "`cwdpo init DATA --model MODEL` makes one.", True)
VOCABULARY = Wanted("a list of objects is needed", "Write a text file with one object a line.", True)
LEXICON = Wanted("a lexicon is needed", "Write a YAML file, or leave out --lexicon.", True)
IMAGES = Wanted("an image is needed", "Write an image file, such as a.png.", True)

_IMAGE = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_ROWS = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")
CONFIGS = ("config.json", "adapter_config.json")
"""Files by which a model, or adapters, are known."""

_OF_FILES: dict[Kind, tuple[str, ...]] = {
    "an image": _IMAGE,
    "a file of rows": _ROWS,
    "a file of a model": _WEIGHTS,
    "a GGUF file": (".gguf",),
    "a web page": (".html", ".htm"),
    "a script": (".py", ".sh", ".ipynb"),
    "an archive": (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"),
}
_MOST_BELOW = 60  # directories in one that are looked into
_MOST_NAMES = 2000  # of a directory that are looked at: a folder may hold a million pictures
_MOST_BYTES = 100_000  # of a YAML file


COMPARE_RUNS = "Runs that are there are compared by `cwdpo judge A B --data ROWS` and `cwdpo report A B`."

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Fetch that: `git lfs pull`"),
    (b"\x1f\x8b", "packed by gzip. Name it NAME.gz"),
    (b"PAR1", "a parquet file. Name it .parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook. Unpack it, or save it as CSV"),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it"),
    (b"BZh", "packed by bzip2. Unpack it, or pack it by gzip"),
    (b"\xfd7zXZ", "packed by xz. Unpack it, or pack it by gzip"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd. Unpack it, or pack it by gzip"),
    (b"SQLite format 3", "an SQLite database. Save its table as JSON lines"),
    (b"<!DOCTYPE", "a web page. Download the file itself"),
    (b"<!doctype", "a web page. Download the file itself"),
    (b"<html", "a web page. Download the file itself"),
)
"""How files of other kinds begin, what they are, and what to do."""


def other_kind(start: bytes, path: Path) -> str | None:
    """What a file is by its first bytes where it is neither text nor weights, and what to do with it; else None.

    Example:
        >>> other_kind(b"\\x1f\\x8b", Path("rows.jsonl"))
        'rows.jsonl is packed by gzip. Name it rows.jsonl.gz.'
    """
    found = next((what for mark, what in _STARTS if start.startswith(mark)), None)
    return None if found is None else f"{path} is {found.replace('NAME', path.name)}."


def kind_of(path: Path) -> Kind:
    """What is at a path that exists."""
    return _kind_of_directory(path) if path.is_dir() else _kind_of_file(path)


def refusal(path: Path, wanted: Wanted, kind_of_error: type[UserError] = UserError) -> UserError:
    """The error for a path at which something is missing or other than wanted.

    Example:
        >>> print(refusal(Path("nowhere/a.png"), IMAGES))
        nowhere/a.png: no such file. There is no directory nowhere.
    """
    if not path.exists():
        either = f"{path}: no such file{'' if wanted.is_file else ' or directory'}."
        found = f"there is no directory {path}." if wanted.is_file is False else either
        return kind_of_error(f"{found} {path_advice(path, otherwise=wanted.write)}")
    kind = kind_of(path)
    return kind_of_error(f"{path} is {kind}, and {wanted.needed}. {_instead(path, kind, wanted) or wanted.write}")


def checkpoint_directory(path: Path, wanted: Wanted = RUN_OR_MODEL) -> Path:
    """The checkpoint that a path stands for: itself, or the last finished stage of a run; else a UserError."""
    if _is_checkpoint(path):
        return path
    found = _last_model(path)
    if found is None:
        raise refusal(path, wanted)
    return found


def _is_checkpoint(path: Path) -> bool:
    return any((path / name).is_file() for name in CONFIGS)


def _last_model(run: Path) -> Path | None:
    """The model of a run's last finished stage."""
    return next((found for stage in reversed(STAGES) if _is_checkpoint(found := RunDirectory(run).stage(stage))), None)


def _is_run(path: Path) -> bool:
    """Whether a run got further here than to write down what it would do."""
    run = RunDirectory(path)
    begun = (run.metrics, run.probes, run.summary, run.engine)
    return run.recipe.is_file() and (any(one.exists() for one in begun) or _last_model(path) is not None)


def _kind_of_file(path: Path) -> Kind:
    ending = Path(path.name.lower().removesuffix(".gz")).suffix or path.suffix.lower()
    if ending in (".yaml", ".yml"):
        keys = {key for key, _ in _settings(path)}
        is_recipe = bool(keys & {"model", "data", "stage1", "stage2"})
        return "a grid" if "methods" in keys else "a recipe" if is_recipe else "a YAML file"
    if ending in (".jsonl", ".json") and _is_run(path.parent):
        return "a file of a run"
    if ending == ".json" and _is_checkpoint(path.parent):
        return "a file of a model"
    return next((kind for kind, endings in _OF_FILES.items() if ending in endings), "a file")


def _kind_of_directory(path: Path) -> Kind:
    if _is_run(path):
        return "an unfinished run" if _last_model(path) is None else "a run"
    names = _names(path)
    endings = {Path(name.lower().removesuffix(".gz")).suffix for name in names}
    tests: Iterable[tuple[Kind, Callable[[], bool]]] = (
        ("a model's adapters", lambda: "adapter_config.json" in names),
        ("a model", lambda: "config.json" in names),
        ("a diffusion pipeline", lambda: "model_index.json" in names),
        ("a data set that `datasets` saved", lambda: any(name in names for name in _SAVED)),
        ("a folder of GGUF files", lambda: ".gguf" in endings),
        ("a model without its config.json", lambda: bool({".safetensors", ".pt", ".pth"} & endings)),
        ("a folder with a recipe", lambda: "recipe.yaml" in names),
        ("a folder of runs", lambda: bool(_runs_in(path))),
        ("a folder of models", lambda: bool(_models_below(path))),
        ("a folder of rows", lambda: bool({*_ROWS} & endings)),
        ("a folder of images", lambda: bool({*_IMAGE} & endings)),
        ("an empty directory", lambda: not any(path.iterdir())),
    )
    return next((kind for kind, holds in tests if holds()), "a directory")


def _instead(path: Path, kind: Kind, wanted: Wanted) -> str | None:
    """What to write in place of this path, as far as that can be seen."""
    of_model = wanted in (MODEL, RUN_OR_MODEL, RUN, READINGS)
    run = next((above for above in path.absolute().parents[:3] if _is_run(above)), None)
    if kind == "a recipe" and of_model:
        made = _setting(path, "output_dir")
        if made is not None and _is_run(Path(made).expanduser()):
            return f"Its run is {made}: write that."
        return f"Train it first: `cwdpo train {path}`."
    if kind == "a folder with a recipe" and of_model:
        return f"Train it first: `cwdpo train {path / 'recipe.yaml'}`."
    if kind in ("a file of a run", "a file of a model") and of_model and (kind == "a file of a run" or run is None):
        return f"Write its directory: {path.parent}."
    if kind == "an unfinished run" and wanted in (MODEL, RUN_OR_MODEL):
        return (
            "No stage of it is finished. Go on with it: "
            f"`cwdpo train {RunDirectory(path).recipe} --output_dir {path} --resume`."
        )
    if kind == "a run" and wanted == MODEL:
        model = _last_model(path)
        assert model is not None
        if (model / "adapter_config.json").is_file():
            return f"It holds adapters: run `cwdpo merge {path} --out DIR`, and write DIR."
        return f"Write the model of its last stage: {model}."
    if kind == "a model's adapters" and wanted == MODEL:
        return f"Run `cwdpo merge {path} --out DIR`, and write DIR; or write the base model."
    is_other = wanted == RUN_OR_MODEL and kind in ("a directory", "an empty directory", "a folder of models", "a file")
    if run is not None and (wanted in (RUN, READINGS) or is_other):
        return f"It belongs to the run {_as_given(run, path)}: write that."
    if kind == "a folder of runs" and of_model:
        runs = _runs_in(path)
        with_model = [run for run in runs if _last_model(run) is not None]
        return _did_you_mean(runs if wanted in (RUN, READINGS) else with_model or runs)
    if wanted == READINGS and (logged := [one for one in _below(path) if _has_logs(one)]):
        return _did_you_mean(logged)
    if kind == "a folder of models" and of_model:
        return _did_you_mean(_models_below(path))
    if kind == "a model without its config.json" and of_model:
        return "Copy config.json of the original model into it, or download it again."
    if kind in ("a GGUF file", "a folder of GGUF files") and of_model:
        return "GGUF is not trained on: write the original model's directory or hub name."
    if kind == "a diffusion pipeline" and of_model:
        return "It makes images. Write a vision-language model."
    if wanted == ROWS:
        return _rows_instead(path, kind)
    if wanted == GRID and kind in ("a run", "an unfinished run"):
        return COMPARE_RUNS
    if wanted == GRID and kind == "a recipe":
        return (
            f"A grid is a YAML file with `recipe: {path.name}`, and what it compares, such as "
            "`methods: {DPO: {stage2.cooling: null}, CW-DPO: {}}`."
        )
    if wanted == IMAGES and kind == "a folder of images":
        first = next(name for name in _names(path) if name.lower().endswith(_IMAGE))
        return f"Write one of its files, such as {path / first}."
    return None


def _rows_instead(path: Path, kind: Kind) -> str | None:
    recipe = {"a recipe": path, "a run": RunDirectory(path).recipe, "an unfinished run": RunDirectory(path).recipe}
    if kind in recipe:
        rows = _setting(recipe[kind], "train")
        if rows is not None:
            found = Path(os.path.normpath(recipe[kind].parent / rows))
            return f"It trains on {found}: write that." if found.exists() else None
    if kind == "a folder of images":
        return 'Write a file of rows that name the images, {"images": ["a.png"], ...}: see docs/data.md.'
    return None


def _as_given(above: Path, path: Path) -> Path:
    """A directory above a path, relative where the path is."""
    return above if path.is_absolute() else Path(os.path.relpath(above))


def _did_you_mean(paths: Iterable[Path]) -> str:
    first, *others = list(paths)[:3]
    return f"Did you mean {' or '.join(map(str, [first, *others]))}?"


def _names(directory: Path) -> list[str]:
    """The first names in a directory, in order, without hidden ones."""
    try:
        with os.scandir(directory) as found:
            there = [item.name for item, _ in zip(found, range(_MOST_NAMES), strict=False)]
    except OSError:
        return []
    return sorted(name for name in there if not name.startswith("."))


def _below(directory: Path) -> list[Path]:
    """What is in a directory, as far as it is looked into."""
    return [directory / name for name in _names(directory)[:_MOST_BELOW]]


def _runs_in(directory: Path) -> list[Path]:
    """The runs among the first directories of a directory."""
    return [path for path in _below(directory) if _is_run(path)]


def _has_logs(directory: Path) -> bool:
    """Whether a directory holds what a diagnosis reads, be it a run of ours or not."""
    return RunDirectory(directory).metrics.is_file() or (directory / "trainer_state.json").is_file()


def _models_below(directory: Path) -> list[Path]:
    """Models in a directory's directories, as in the snapshots of the hub's cache, or in theirs."""
    children = _below(directory)
    below = [each for path in children if path.is_dir() for each in _below(path)]
    return [path for path in [*children, *below] if _is_checkpoint(path)]


def _settings(path: Path) -> list[tuple[str, str | None]]:
    """The keys of a YAML file with what stands on their lines, all sections alike. It is not parsed, which would take
    its time to import, and it may be any file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return re.findall(r"^ *([a-z]\w*):[ \t]*([^#\n]*?)[ \t]*(?:#.*)?$", text, flags=re.MULTILINE)


def _setting(path: Path, key: str) -> str | None:
    return next((value.strip("'\"") for name, value in _settings(path) if name == key and value), None)
