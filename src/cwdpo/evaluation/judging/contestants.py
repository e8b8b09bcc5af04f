"""Who is compared, and what each answers: models or files of answers, and the directory in which the work is kept.

``answers-NAME.jsonl`` and ``verdicts.jsonl`` get their lines as they come, so that a second start continues where the
first one stopped; ``settings.json`` says what they follow from, and a second start must agree with it.
"""

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import xxhash

from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.reading import choose_rows, read_records, read_rows
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.models.naming import find_checkpoint
from cwdpo.negatives.files import row_ids
from cwdpo.negatives.mixing import hashed
from cwdpo.records import append_jsonl, check_place, read_jsonl, write_json

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""


@dataclass(frozen=True)
class Contestant:
    """One side of the comparisons: a model, or a file with its answers."""

    name: str
    """As tables show it."""

    source: str
    """A checkpoint's directory, a hub name, or a file."""

    is_file: bool


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How models answer."""

    temperature: float | None = None
    """None decodes greedily."""

    seed: int = 0
    max_new_tokens: int = 256
    batch_size: int = 32
    """Rows at one time; samples depend on it, as they do on the seed."""


class JudgedRows(NamedTuple):
    """The rows that are compared, and the names that answers and verdicts have for them."""

    rows: list[Row]
    ids: list[str]
    all_rows: list[Row]
    """Of the file: right answers to a prompt may stand in others than those compared."""


def rows_to_judge(data: Path, image_root: GivenRoots, number: int | None, seed: int) -> JudgedRows:
    """Read a file's rows and, if there are more than a number of them, take a seeded sample."""
    rows = read_rows(data, image_root=image_root)
    names = {id(row): name for row, name in zip(rows, row_ids(rows), strict=True)}
    chosen = rows if number is None else choose_rows(rows, number, seed, asked=True)
    return JudgedRows(chosen, [names[id(row)] for row in chosen], rows)


def contestants(names: Sequence[str]) -> list[Contestant]:
    """What each of at least two names stands for: a file of answers, a run, a checkpoint, or a hub name."""
    if len(names) < 2:
        raise UserError("a comparison needs two models at least. Write: cwdpo judge A B --data ROWS.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice. Give every model or file of answers once.")
    found = []
    for name, shown in zip(names, _short_names(names), strict=True):
        is_file = Path(name).suffix.lower() in (".jsonl", ".json", ".parquet")
        # a slip in a path ends it before another model has worked for an hour
        found.append(Contestant(shown, name if is_file else find_checkpoint(name), is_file))
    return found


def read_answers(path: Path, ids: Sequence[str]) -> list[str]:
    """The answers to some rows from lines ``{"id": ..., "answer": ...}``; lines of other rows are left aside."""
    found: dict[str, str] = {}
    for record, source in read_records(path):
        if isinstance(record, DataError):
            raise record
        name, answer = record.get("id"), record.get("answer")
        if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(answer, str):
            raise DataError(f'{source}: not an answer. Write {{"id": "the row\'s id", "answer": "the text"}}.')
        if str(name) in found:
            raise DataError(f"{source}: a second answer for the row {str(name)!r}. Keep one of them.")
        found[str(name)] = answer.strip()
    missing = [name for name in ids if name not in found]
    if missing:
        raise DataError(
            f"{path}: no answer for {len(missing)} of {len(ids)} rows, such as {missing[0]!r}. Add them; rows without "
            "an id are named by their number in the data, from 0."
        )
    return [found[name] for name in ids]


def default_directory(competing: Sequence[Contestant]) -> Path:
    """Where the work is kept unless another place is given.

    Example:
        >>> default_directory([Contestant("dpo", "runs/dpo", False), Contestant("b/x", "b/x", False)]).name
        'judge-dpo-b_x'
    """
    return Path(f"judge-{'-'.join(map(_as_file_name, (one.name for one in competing)))}"[:150])


class Workspace:
    """The directory that keeps answers and verdicts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.verdicts, self.result = directory / "verdicts.jsonl", directory / "judge.json"
        self._settings = directory / "settings.json"

    @classmethod
    def of(cls, competing: Sequence[Contestant], directory: Path | None) -> "Workspace":
        """The directory that the user names, else :func:`default_directory`."""
        return cls(directory or default_directory(competing))

    def answers(self, one: Contestant) -> Path:
        """File of a model's answers."""
        return self.directory / f"answers-{_as_file_name(one.name)}.jsonl"

    def check(self, settings: Mapping[str, object]) -> None:
        """Refuse a directory that holds other work, or other files."""
        check_place(self.directory, is_directory=True, is_new=False)
        if not self.directory.exists():
            return
        if not self._settings.is_file():
            if any(self.directory.iterdir()):
                raise UserError(
                    f"{self.directory} holds other files, and nothing is overwritten. Give another --out, or leave it "
                    "out."
                )
            return
        try:
            kept = json.loads(self._settings.read_bytes())
        except ValueError:
            kept = {}
        other = [name for name, value in settings.items() if kept.get(name) != value]
        if other:
            raise UserError(
                f"{self.directory}: was begun with other settings ({', '.join(other)}). Give another --out, or repeat "
                "the command that began it."
            )

    def open(self, settings: Mapping[str, object]) -> None:
        """Make the directory, or go on in it."""
        self.check(settings)
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._settings.is_file():
            write_json(self._settings, settings)


def settings_of(
    judged: JudgedRows, competing: Sequence[Contestant], answering: Answering, judge: str, data: Mapping[str, str]
) -> dict[str, Any]:
    """What answers and verdicts follow from, as JSON; a model's weights are known by its files' sizes and times."""
    return {
        "judge": judge,
        "models": [
            {"name": one.name, "source": one.source, "files": None if one.is_file else _stamp(Path(one.source))}
            for one in competing
        ],
        "answers": asdict(answering),
        "data": dict(data),
        "rows": xxhash.xxh3_128_hexdigest(json.dumps(judged.ids).encode()),
    }


def kept_answers(one: Contestant, ids: Sequence[str], workspace: Workspace) -> list[str] | None:
    """The answers that are there already, of a file or of a model that has answered; None where any is missing."""
    if one.is_file:
        return read_answers(Path(one.source), ids)
    done = _answers_in(workspace.answers(one))
    return [done[name] for name in ids] if all(name in done for name in ids) else None


def let_answer(
    one: Contestant, judged: JudgedRows, workspace: Workspace, answering: Answering, progress: Progress
) -> tuple[list[str], int]:
    """Have a model answer the rows that it has not answered, and keep every portion at once. Gives the answers, and how
    many were cut at ``max_new_tokens`` now. The model is out of memory again afterwards."""
    import torch  # takes seconds, which files of answers do not need

    from cwdpo.generation import generate
    from cwdpo.models.adapters import load_checkpoint

    path = workspace.answers(one)
    done, cut = _answers_in(path), 0
    policy, processor = load_checkpoint(one.source)
    size = answering.batch_size
    for start in range(0, len(judged.rows), size):
        ids, rows = judged.ids[start : start + size], judged.rows[start : start + size]
        if any(name not in done for name in ids):
            answers = generate(
                policy,
                processor,
                rows,
                batch_size=size,
                max_new_tokens=answering.max_new_tokens,
                temperature=answering.temperature,
                top_p=None,
                seed=hashed(answering.seed, "judge", start) % 2**63,
            )
            cut += sum(not answer.ended for answer in answers)
            texts = {name: answer.text for name, answer in zip(ids, answers, strict=True)}
            append_jsonl(path, [{"id": name, "answer": text} for name, text in texts.items()])
            done |= texts
        progress(f"answers of {one.name}", min(start + size, len(judged.rows)), len(judged.rows))
    del policy, processor
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [done[name] for name in judged.ids], cut


def _answers_in(path: Path) -> dict[str, str]:
    return {
        line["id"]: line["answer"]
        for line in read_jsonl(path).objects
        if isinstance(line.get("id"), str) and isinstance(line.get("answer"), str)
    }


def _short_names(names: Sequence[str]) -> list[str]:
    """As few of the last parts of each path as keep them apart, without the ending of a file."""
    parts = [Path(name).with_suffix("").parts if Path(name).suffix == ".jsonl" else Path(name).parts for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(of_name[-count:]) for of_name in parts]
        if len(set(map(_as_file_name, short))) == len(short):
            return short
    return [f"{number}-{name}" for number, name in enumerate(names, start=1)]


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name).strip("_.") or "_"


def _stamp(directory: Path) -> list[list[Any]] | None:
    """Name, size and time of each file of a checkpoint; None for a hub name."""
    if not directory.is_dir():
        return None
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
