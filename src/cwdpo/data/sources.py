"""What a data set's name means: a file, a folder of shards, a pattern, what ``datasets`` saved, or one on the hub."""

import glob
import re
from pathlib import Path
from typing import NamedTuple

from cwdpo.contents import ROWS, Kind, kind_of, refusal
from cwdpo.data.image_roots import GivenRoots, ImageRoots, parse_roots
from cwdpo.errors import DataError
from cwdpo.records import HUB

ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
"""Of files that are read; all but parquet may be compressed, with ``.gz`` behind."""

_KNOWN = "a .jsonl, .json, .parquet, .csv or .tsv file (.gz too)"
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")
_OTHERS: tuple[Kind, ...] = ("a run", "an unfinished run", "a model", "a model's adapters", "a diffusion pipeline")
"""Directories whose JSON is not rows."""

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "heldout"),
    "test": ("test",),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubName(NamedTuple):
    """A data set on the hub."""

    repository: str
    configuration: str | None
    split: str | None


def hub_name(path: str | Path) -> HubName | None:
    """The parts of a hub data set's name (``hf:owner/name``, ``hf:owner/name:split`` or, where it has several
    configurations, ``hf:owner/name/configuration:split``), or None for what lies on this machine.

    Example:
        >>> hub_name("hf:openbmb/RLAIF-V-Dataset:train")
        HubName(repository='openbmb/RLAIF-V-Dataset', configuration=None, split='train')
    """
    if not str(path).startswith(HUB):
        return None
    name, _, split = str(path).removeprefix(HUB).partition(":")
    parts = name.split("/")
    if not all(parts) or len(parts) > 3:
        raise DataError(f"{path}: is not the name of a hub data set. Write hf:owner/name or hf:owner/name:split.")
    return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None)


def ending_of(path: Path) -> tuple[str, bool]:
    """A file's ending in small letters, without ``.gz``, and whether it had that.

    Example:
        >>> ending_of(Path("rows.JSONL.gz")), ending_of(Path("rows.txt"))
        (('.jsonl', True), ('.txt', False))
    """
    name = path.name.lower()
    packed = name.endswith(".gz")
    return Path(name.removesuffix(".gz")).suffix, packed


def data_files(path: Path) -> list[Path]:
    """The files or saved data sets that a path or a pattern stands for, in the order of their names."""
    if not path.exists():
        if glob.has_magic(str(path)):
            return _matching(path)
        raise _missing(path)
    if is_saved(path):
        return [path]
    if path.is_dir():
        return _shards(path)
    if not path.is_file():
        raise DataError(f"{path}: not a file. Give {_KNOWN}.")
    if ending_of(path)[0] not in ENDINGS or ending_of(path) == (".parquet", True):
        if kind_of(path) not in ("a file", "a file of rows", "an archive"):
            raise refusal(path, ROWS, DataError)
        raise DataError(
            f"{path}: files ending in {path.suffix!r} are not read. Give {_KNOWN}, or a directory of them or one that "
            "datasets saved with save_to_disk."
        )
    if kind_of(path) in ("a file of a run", "a file of a model"):
        raise refusal(path, ROWS, DataError)
    return [path]


def is_saved(path: Path) -> bool:
    """Whether this is a directory that ``datasets`` wrote with ``save_to_disk``."""
    return path.is_dir() and any((path / name).is_file() for name in _SAVED)


def resolve_root(path: str | Path, image_root: GivenRoots) -> ImageRoots:
    """Where the images of a data set are looked for: the roots that are given, else the data's own directory, which for
    a pattern is the one before its first wildcard. A hub data set has none."""
    if image_root is not None:
        return parse_roots(image_root)
    if hub_name(path) is not None:
        return ImageRoots(None)
    path = Path(path)
    if path.is_dir():
        return ImageRoots(path)
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
        if path.is_dir():
            return ImageRoots(path)
    return ImageRoots(path.parent)


def _matching(pattern: Path) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    files = [path for path in found if not path.is_dir() or is_saved(path)]
    if not files:
        raise DataError(f"{pattern}: matches no file. Correct the pattern.")
    return [file for path in files for file in data_files(path)]


def _shards(folder: Path) -> list[Path]:
    """The data files of a folder, which must be of one kind and of one split."""
    if kind_of(folder) in _OTHERS:
        raise refusal(folder, ROWS, DataError)
    files = sorted(path for path in folder.iterdir() if path.is_file() and ending_of(path)[0] in ENDINGS)
    endings = sorted({ending_of(path)[0] for path in files})
    splits = sorted({found[1] for path in files if (found := _SHARD.match(path.name))})
    named = {word: path for path in files if (word := _split_of(path)) is not None}
    if not files:
        raise refusal(folder, ROWS, DataError)
    if len(endings) > 1:
        patterns = " or ".join(f"{folder}/*{ending}" for ending in endings)
        raise DataError(f"{folder}: holds files of several kinds. Name those that belong together: {patterns}.")
    if len(splits) > 1:
        patterns = " or ".join(f"{folder}/{split}-*" for split in splits)
        raise DataError(f"{folder}: holds several splits. Give one of them: {patterns}.")
    if len(named) > 1:
        one, *others = sorted(named, key=lambda word: word != "train")
        raise DataError(
            f"{folder}: holds several splits. Give one of them: {named[one]} or "
            f"{' or '.join(str(named[other]) for other in others)} (in a recipe data.train and data.eval), or a "
            f"pattern for all: '{folder}/*{endings[0]}'."
        )
    return files


def _split_of(path: Path) -> str | None:
    """The split that a file's name says it is of: ``train`` of ``rows_train.jsonl``.

    Example:
        >>> _split_of(Path("rows_train.jsonl")), _split_of(Path("valid.csv.gz")), _split_of(Path("contest.jsonl"))
        ('train', 'validation', None)
    """
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split, names in _SPLITS.items() if {*names} & {*words}), None)


def _missing(path: Path) -> Exception:
    name = "/".join(path.parts[-2:])
    if ending_of(path)[0] not in ENDINGS and _HUB_NAME.fullmatch(name) and not path.parent.is_dir():
        return DataError(f"{path}: no such file. For the data set {name} of the Hugging Face hub, write hf:{name}.")
    return refusal(path, ROWS, DataError)
