"""Run a grid: make its worlds, train and measure each run that is not done, on several processes."""

import difflib
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import groupby
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers.utils.logging import disable_progress_bar

from cwdpo import __version__
from cwdpo.compare.grid import START, Cell, Grid, Outcome, cells, fingerprint, recipe_of
from cwdpo.config.functions import load_function
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.encode import EncodedMemory
from cwdpo.errors import ConfigError, UserError
from cwdpo.evaluation.measures import NAMES
from cwdpo.recipes import run_recipe
from cwdpo.records import RunDirectory, write_json

logger = logging.getLogger(__name__)


class Measure(Protocol):
    """Measures a model on held-out rows, beside the one that it started from."""

    def __call__(self, model: Path, *, start: Path, eval_rows: Path, seed: int) -> Outcome: ...


class Progress(NamedTuple):
    """How far a grid is."""

    done: int
    total: int
    minutes_left: float | None
    """At the rate so far; None before the first run is done."""


def run_grid(
    grid: Grid,
    out: Path,
    *,
    jobs: int = 1,
    minutes: float | None = None,
    keep_models: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train and measure every run of a grid that is not done yet, and leave ``measured.json`` in each one's directory.

    Args:
        grid: what to run.
        out: the directory of the grid; another start goes on in it.
        jobs: processes, of one thread each.
        minutes: begin no run after this time; the next start goes on. None takes all the time that it needs.
        keep_models: keep trained weights, which are removed once they are measured otherwise.
        on_progress: gets the progress every few seconds.

    Raises:
        UserError: a run failed, or was done with other settings; what was measured before stays.
    """
    plan = list(cells(grid))
    for cell in plan:
        if cell.method != START:
            recipe_of(grid, cell, {}, out)  # a wrong setting is found before anything runs
    _check_names(grid)
    _load_measure(grid)
    for world in grid.worlds:
        _load_maker(grid, world)
    groups = [list(group) for _, group in groupby(plan, key=lambda cell: (cell.seed, cell.world))]
    todo = [group for group in groups if not all((cell.directory(out) / "measured.json").is_file() for cell in group)]
    began, before = time.monotonic(), _done(plan, out)
    deadline = None if minutes is None else time.time() + 60 * minutes

    def progress() -> Progress:
        done = _done(plan, out)
        spent = (time.monotonic() - began) / 60
        left = spent / (done - before) * (len(plan) - done) if done > before else None
        return Progress(done, len(plan), left)

    # worlds may share a start model, so the first of each makes it before others ask for it
    first = {group[0].world: group for group in reversed(todo)}
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    with ProcessPoolExecutor(jobs, spawn, initializer=_prepare_worker, initargs=(stop,)) as pool:
        try:
            for group in reversed(first.values()):
                on_progress(progress())
                pool.submit(_world, grid, out, group[0]).result()
            pending: set[Future[None]] = {
                pool.submit(run_cells, grid, out, group, deadline=deadline, keep_models=keep_models) for group in todo
            }
            while pending:
                finished, pending = wait(pending, timeout=5, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                on_progress(progress())
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return progress()


def run_cells(
    grid: Grid, out: Path, group: Sequence[Cell], *, deadline: float | None = None, keep_models: bool = False
) -> None:
    """Do the runs of one world and seed, one after another, in this process."""
    made = _world(grid, out, group[0])
    measure = _load_measure(grid)
    encoded: dict[object, EncodedMemory] = {}
    for cell in group:
        if deadline is not None and time.time() > deadline:
            return
        directory = cell.directory(out)
        directory.mkdir(parents=True, exist_ok=True)
        recipe = recipe_of(grid, cell, made, directory / "run") if cell.method != START else _start_recipe(grid, made)
        mark = fingerprint(grid, cell)
        if (directory / "measured.json").is_file():
            _check_same(directory / "measured.json", mark)
            continue
        began = time.process_time()
        start = Path(recipe.model.name_or_path)
        model = (
            start if cell.method == START else _train(recipe, world_directory(out, group[0]), _shared(encoded, recipe))
        )
        trained = time.process_time()
        if recipe.data.eval is None:
            raise ConfigError("nothing to measure on: name held-out rows in the recipe's data.eval.")
        found = measure(model, start=start, eval_rows=Path(recipe.data.eval), seed=cell.seed)
        # the start is measured before anything is trained; a function of one's own may measure less of it
        if cell.method != START or grid.measure == Grid.measure:
            _refuse_unmeasured("target", grid.target, {**found.rows, **found.numbers})
        write_json(
            directory / "measured.json",
            {
                "fingerprint": mark,
                "cwdpo_version": __version__,
                "train_cpu_seconds": round(trained - began, 1),
                "measure_cpu_seconds": round(time.process_time() - trained, 1),
                "numbers": dict(found.numbers),
                "rows": {name: [round(value, 6) for value in values] for name, values in found.rows.items()},
            },
        )
        if not keep_models and cell.method != START:
            for stage in ("stage1", "stage2", "checkpoints"):
                shutil.rmtree(directory / "run" / stage, ignore_errors=True)


def _check_names(grid: Grid) -> None:
    """Refuse names that ``cwdpo evaluate`` has not, before anything runs; what a function measures is not known yet."""
    if grid.measure == Grid.measure:
        for setting, name in [("target", grid.target), *(("measures", name) for name in grid.measures)]:
            _refuse_unmeasured(setting, name, NAMES)


def _refuse_unmeasured(setting: str, name: str, measured: Collection[str]) -> None:
    if name not in measured:
        near = difflib.get_close_matches(name, measured, n=1)
        advice = f"Did you mean {near[0]}? All of them" if near else "Write one of"
        listed = ", ".join(measured)
        what = "not defined on these rows" if name in NAMES else "not measured"
        raise ConfigError(f"{setting} is {name!r}, which is {what}. {advice}: {listed}.", setting=setting)


def _load_measure(grid: Grid) -> Measure:
    called = "model, start=, eval_rows=, seed="
    found: Measure = load_function(grid.measure, setting="measure", advice="Write module:function.", called=called)
    return found


def _load_maker(grid: Grid, world: str) -> Any:
    """The function that makes the data of a world; None where the grid names none."""
    if grid.make is None:
        return None
    called = ", ".join(("directory", "seed=", "starts=", *(f"{name}=" for name in grid.worlds[world])))
    return load_function(grid.make, setting="make", advice="Write module:function.", called=called)


def world_directory(out: Path, cell: Cell) -> Path:
    """Where the data of a cell's world and seed are kept."""
    return out / "worlds" / cell.world.replace("/", "_") / f"seed-{cell.seed}"


def _prepare_worker(stop: Event) -> None:
    """Prepare a process: on small models threads wait for each other longer than they compute, and runs are silent.

    It ends when ``stop`` is set or its parent is gone, in the middle of a run too, which the next start goes on with.
    """
    threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()
    torch.set_num_threads(1)
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers(\.|$)")
    for library in ("transformers", "cwdpo"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _end_with_parent(stop: Event) -> None:
    parent = multiprocessing.parent_process()
    while not stop.wait(1.0) and parent is not None and parent.is_alive():
        pass
    os._exit(1)


def _world(grid: Grid, out: Path, cell: Cell) -> dict[str, Any]:
    """The recipe settings that a world decides, made here if they are not there yet."""
    given = grid.worlds[cell.world]
    maker = _load_maker(grid, cell.world)
    if maker is None:
        return dict(given)
    directory = world_directory(out, cell)
    known = directory / "made.json"
    if not known.is_file():
        made = maker(directory, seed=cell.seed, starts=out / "worlds" / "starts", **given)
        write_json(known, made)
    settings: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
    return settings


def _start_recipe(grid: Grid, made: Mapping[str, Any]) -> Recipe:
    return read_recipe(grid.recipe, made)


def _train(recipe: Recipe, world: Path, encoded: EncodedMemory) -> Path:
    begun = RunDirectory(Path(recipe.output_dir)).has_begun
    # a first stage gives each method a reference of its own
    reference = world / "reference" if recipe.stage1 is None else None
    run = run_recipe(recipe, resume=begun, reference=reference, encoded=encoded)
    return run.stage("stage2" if recipe.stage2 is not None else "stage1")


def _shared(encoded: dict[object, EncodedMemory], recipe: Recipe) -> EncodedMemory:
    """What was encoded by the same processor with the same limits."""
    data = recipe.data
    return encoded.setdefault((recipe.model.name_or_path, data.min_pixels, data.max_pixels), EncodedMemory())


def _check_same(file: Path, mark: str) -> None:
    known = json.loads(file.read_text(encoding="utf-8")).get("fingerprint")
    if known != mark:
        raise UserError(
            f"{file.parent} was measured with other settings than the grid has now. "
            "Remove that directory to run it again, or give another --out."
        )


def _done(plan: Iterable[Cell], out: Path) -> int:
    return sum((cell.directory(out) / "measured.json").is_file() for cell in plan)
