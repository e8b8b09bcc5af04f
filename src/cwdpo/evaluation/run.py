"""Evaluate a model on rows, beside the model that it was tuned from; only one of them is in memory at a time."""

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from cwdpo import __version__
from cwdpo.config.recipe_file import read_recipe
from cwdpo.contents import VOCABULARY, refusal
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.reading import read_rows
from cwdpo.data.repeats import rows_also_in
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.evaluation.answers import Vocabulary
from cwdpo.evaluation.measures import Result, measures
from cwdpo.evaluation.measuring import Measured, Progress, measure_model
from cwdpo.evaluation.questions import Question, read_questions
from cwdpo.models.adapters import load_checkpoint, named_base
from cwdpo.models.loading import load_config, load_processor
from cwdpo.models.naming import find_checkpoint, local_directory
from cwdpo.negatives.files import what_was_read
from cwdpo.probes import StartDistributions
from cwdpo.records import RunDirectory, check_place, write_json

logger = logging.getLogger(__name__)

LEVEL = 0.95
"""Confidence of all intervals."""

NOT_OFFERED = {"METEOR and SPICE": "not offered, as they need Java programs"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is evaluated, and on what."""

    model: str
    """A checkpoint, adapters, a run (its last stage), or a hub name."""

    data: Path
    against: str | None = None
    """The base, named in the same ways; None compares with nothing."""

    image_root: GivenRoots = None
    num_rows: int | None = None
    """Most rows; more are sampled. None takes all."""

    seed: int = 0
    """Of the sample."""

    max_new_tokens: int | None = 256
    """Longest generated answer; None generates none."""

    batch_size: int = 16
    """Prompts in one call of ``generate``, and answers in one pass of the model."""

    vocabulary: Path | None = None
    """Objects, one a line, for hallucination."""

    def question(self) -> dict[str, Any]:
        """What was asked, as far as the numbers depend on it: equal for evaluations that may replace each other.

        A run's own model is named by its stage, so that a run can be moved.
        """
        if self.vocabulary is not None and not self.vocabulary.is_file():
            raise refusal(self.vocabulary, VOCABULARY, DataError)
        directory = Path(self.model)
        is_run = RunDirectory(directory).recipe.is_file()
        return {
            "model": Path(find_checkpoint(self.model)).name if is_run else _resolved(self.model),
            "against": None if self.against is None else _resolved(self.against),
            "data": self.data.name,
            "content": what_was_read(self.data, self.image_root)["data"],
            "num_rows": self.num_rows,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "vocabulary": None if self.vocabulary is None else xxhash.xxh3_128_hexdigest(self.vocabulary.read_bytes()),
        }


class Place(NamedTuple):
    """Where an evaluation is written, and whether an earlier one of the same question lies there."""

    path: Path
    replaces: bool


def started_from(run: Path) -> str | None:
    """The model that a run started from, unless it was a directory that is gone, which a warning says; None where the
    directory is not a run."""
    recipe = RunDirectory(run).recipe
    if not recipe.is_file():
        return None
    name = read_recipe(recipe).model.name_or_path
    try:
        local_directory(name)
    except UserError:
        logger.warning("%s, which %s started from, is gone, so there is no base to compare with", name, run)
        return None
    return name


def place_of(settings: Settings, out: Path | None) -> Place | None:
    """Where an evaluation is written: in the file that the user names, else in the run; None for another model."""
    run = RunDirectory(Path(settings.model))
    if out is None and not run.recipe.is_file():
        return None
    check_place(out or run.evaluation, is_new=False)
    return place_in_run(run, settings.question()) if out is None else place_given(out, settings.question())


def place_in_run(run: RunDirectory, question: Mapping[str, object]) -> Place:
    """Where a run keeps this evaluation: in the file of the same question, else in the next that is free."""
    there = run.evaluations()
    for path in there:
        if question_of(path) == question:
            return Place(path, True)
    last = there[-1] if there else None
    if last is None:
        return Place(run.evaluation, False)
    number = last.stem.rpartition("-")[2]
    return Place(run.root / f"evaluation-{int(number) + 1 if number.isdigit() else 2}.json", False)


def place_given(path: Path, question: Mapping[str, object]) -> Place:
    """A file that the user names, if it is free or holds the same evaluation; else a UserError."""
    if path.exists() and question_of(path) != question:
        raise UserError(
            f"{path} exists already and is not this evaluation, so it is not overwritten. Give another --out."
        )
    return Place(path, path.exists())


def question_of(path: Path) -> object:
    """What an evaluation's file was asked; None where it is another file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found.get("question") if isinstance(found, dict) else None


def evaluate_model(settings: Settings, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
    """Measure a model, and its base first, on the same rows; gives what ``evaluation.json`` holds.

    Raises:
        UserError: rows, models or vocabulary cannot be used; before any weights are loaded where that is possible.
    """
    vocabulary = None if settings.vocabulary is None else Vocabulary.read(settings.vocabulary)
    model = find_checkpoint(settings.model)
    base = None if settings.against is None else find_checkpoint(settings.against)
    question = settings.question()
    questions = read_questions(
        settings.data, image_root=settings.image_root, num_rows=settings.num_rows, seed=settings.seed
    )
    _warn_of_training_rows(settings, [question.row for question in questions])
    if base is not None:
        _check_family(model, base, settings)
    start = None if base is None else StartDistributions(len(questions))
    before = None if base is None else _measure(base, "base", questions, settings, start, progress)
    now = _measure(model, "model", questions, settings, start, progress)
    results = measures(questions, now, before, vocabulary)
    return {
        "cwdpo_version": __version__,
        "model": settings.model,
        "against": settings.against,
        "question": question,
        "rows": len(questions),
        "level": LEVEL,
        "words": in_words(results.found, num_rows=len(questions)),
        "measures": [result.to_json() for result in results.found],
        "reliability": results.reliability,
        "skipped": results.skipped | NOT_OFFERED,
        "answers": _answers(questions, now, before),
    }


def _warn_of_training_rows(settings: Settings, rows: Sequence[Row]) -> None:
    """Log how many rows the run that is evaluated was trained on, where its files are still there."""
    recipe = RunDirectory(Path(settings.model)).recipe
    if not recipe.is_file():
        return
    data = read_recipe(recipe, warn=False).data
    try:
        shared = rows_also_in(
            rows, (row for file in data.train_files for row in read_rows(file, image_root=data.image_root))
        )
    except UserError:
        return
    if shared:
        number, first = f"{len(shared)} of {len(rows)} rows", shared[0].source
        logger.warning("%s were trained on, so they are not held out: the first is %s", number, first)


def write_evaluation(found: Mapping[str, object], path: Path) -> None:
    """Write what :func:`evaluate_model` gave, whole or not at all."""
    write_json(path, found)


def in_words(found: Sequence[Result], *, num_rows: int) -> str:
    """What the differences say, in a sentence or two."""
    judged = [result for result in found if result.verdict is not None]
    if not judged:
        compared = any(result.paired.difference is not None for result in found)
        few = f"With {num_rows} rows no difference can be called more than chance; use at least 10, better hundreds."
        return few if compared else "Nothing to compare with: name a base with --against."
    parts = []
    for verdict, begin in (("better", "Better"), ("worse", "Worse"), ("changed", "Changed")):
        labels = [result.number.label for result in judged if result.verdict == verdict]
        parts += [f"{begin} beyond chance: {', '.join(labels)}."] if labels else []
    rest = sum(result.verdict == "no difference shown" for result in judged)
    if not parts:
        return f"No difference beyond chance in {rest} measures."
    return " ".join([*parts, f"No difference shown: {rest} of {len(judged)} measures."] if rest else parts)


def _resolved(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_family(model: str, base: str, settings: Settings) -> None:
    """Log-probs are compared token by token, so both models must have the same tokens."""
    (kind, tokens), (base_kind, base_tokens) = _family(model), _family(base)
    if kind == base_kind and tokens == base_tokens:
        return
    why = f"is a {base_kind} model and {settings.model} a {kind} model"
    if kind == base_kind:
        why = f"has another tokenizer than {settings.model}"
    raise UserError(
        f"--against {settings.against} {why}, so their predictions cannot be compared token by token. Give the model "
        "that it was tuned from, or evaluate each alone."
    )


def _family(name: str) -> tuple[str, dict[str, int]]:
    """A checkpoint's model type and tokens."""
    adapters = (Path(name) / "adapter_config.json").is_file()
    config = load_config(named_base(Path(name)) if adapters else name)
    tokens: dict[str, int] = load_processor(name).tokenizer.get_vocab()
    return str(config.model_type), tokens


def _measure(
    name: str,
    role: str,
    questions: Sequence[Question],
    settings: Settings,
    start: StartDistributions | None,
    progress: Progress,
) -> Measured:
    """Load a model, measure it, and let it go again."""
    policy, processor = load_checkpoint(name)
    found = measure_model(
        policy,
        processor,
        questions,
        start=start,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        progress=lambda what, done, total: progress(f"{role}: {what}", done, total),
    )
    del policy, processor
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _answers(questions: Sequence[Question], now: Measured, before: Measured | None) -> list[dict[str, Any]]:
    """Every row's generated answers beside the right one."""
    if now.answers is None:
        return []
    rows: list[dict[str, Any]] = []
    for i, question in enumerate(questions):
        row = {"row": question.row.source, "id": question.row.id, "chosen": question.row.chosen}
        base = None if before is None or before.answers is None else before.answers[i].text
        rows.append(row | {"base": base, "model": now.answers[i].text})
    return rows
