"""``cwdpo train --resume``: the same experiment goes on, and anything else is refused or said."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import disc_data
from transformers import TrainerCallback

from cwdpo.cli import app
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.models.checkpoints import last_checkpoint
from cwdpo.recipes import run_recipe
from cwdpo.records import RunDirectory, read_jsonl

Tiny = Callable[[str], Path]
Train = Callable[..., tuple[int, str, str]]
RECIPE = """\
model: {{name_or_path: {model}}}
data: {{train: {data}, stage1_fraction: 0.5}}
stage1: {{penalty: 0.2}}
stage2: {{beta: 0.2}}
probes: null
output_dir: {out}
trainer:
  max_steps: 3
  save_steps: 1
  save_strategy: steps
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  use_cpu: true
"""


class Crash(TrainerCallback):
    """Breaks off at a step of a stage, counted from the start of the run."""

    def __init__(self, at: int) -> None:
        self.left = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


def begin(directory: Path, model: Path, *, crash: int | None, **changes: Any) -> Path:
    """Rows and a recipe in a directory, and a run that crashes at a step."""
    data = disc_data.write(directory, disc_data.records(16))
    recipe = directory / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, data=data, out=directory / "run"))
    if crash is None:
        run_recipe(read_recipe(recipe, changes))
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            run_recipe(read_recipe(recipe, changes), callbacks=[Crash(crash)])
    return directory


@pytest.fixture(scope="module")
def in_stage1(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After step 2 of 3 of stage 1."""
    return begin(tmp_path_factory.mktemp("first"), tiny("llava"), crash=3)


@pytest.fixture(scope="module")
def in_stage2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After step 2 of 3 of stage 2."""
    return begin(tmp_path_factory.mktemp("second"), tiny("llava"), crash=6)


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("finished"), tiny("llava"), crash=None)


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Train:
    """``cwdpo train RECIPE ... --resume``; gives exit code, standard output, and standard error with warnings."""

    def call(directory: Path, *words: object) -> tuple[int, str, str]:
        given = ["cwdpo", "train", directory / "recipe.yaml", "--output_dir", directory / "run", *words, "--resume"]
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        caplog.clear()
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        logged = "".join(f"{record.getMessage()}\n" for record in caplog.records if record.name.startswith("cwdpo"))
        return int(left.value.code or 0), printed.out, logged + printed.err

    return call


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a run, to go on with; its rows stay where they were."""

    def of(directory: Path) -> Path:
        shutil.copytree(directory, tmp_path / "copy")
        return tmp_path / "copy"

    return of


def resolved(directory: Path) -> Recipe:
    return read_recipe(directory / "run" / "recipe.yaml")


def floor(directory: Path) -> float | str:
    stage2 = resolved(directory).stage2
    assert stage2 is not None
    assert stage2.cooling is not None
    return stage2.cooling.floor


@pytest.mark.slow
def test_the_measured_floor_stays(in_stage2: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage2)
    measured, before = floor(here), (here / "run" / "recipe.yaml").read_bytes()
    assert isinstance(measured, float)
    for other in (-1.0, "mean"):
        code, out, err = train(here, "--floor", other)
        assert (code, out) == (2, "")
        assert (
            f"this run began with stage2.cooling.floor = {measured!r} (measured by `chosen - 2 tau`) and keeps it; the "
            f"recipe or the command line now says {other!r}. Resume with the same setting, or give"
        ) in err
    assert (here / "run" / "recipe.yaml").read_bytes() == before
    assert train(here, "--floor", repr(measured))[0] == 0
    assert floor(here) == measured
    code, out, err = train(here)  # by the rule
    assert (code, err) == (0, "")
    assert out.startswith("already finished, nothing to do: ")
    assert floor(here) == measured


@pytest.mark.slow
def test_a_resumed_stage_cools_by_the_floor_that_was_measured(in_stage2: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage2)
    kept = here / "run" / "checkpoints" / "floor.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"measured": -0.5}))  # so that measuring again shows
    code, _, err = train(here, "--floor", -0.5)
    assert code == 2, err  # the recipe still has the first number
    recipe = here / "run" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(
        "\n".join("    floor: -0.5" if line.strip().startswith("floor:") else line for line in text.split("\n"))
    )
    assert train(here)[0] == 0
    assert floor(here) == -0.5


@pytest.mark.slow
def test_a_floor_may_change_before_stage_2_begins(in_stage1: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage1)
    code, _, err = train(here, "--floor", -1.0)
    assert code == 0
    assert "stage2.cooling.floor is -1.0 in stage2, which has not begun, and not in stage1, which has" in err
    assert floor(here) == -1.0


@pytest.mark.slow
def test_other_rows_are_refused(in_stage1: Path, copy: Any, train: Train) -> None:
    here, data = copy(in_stage1), in_stage1 / "train.jsonl"
    before = data.read_text()
    lines = before.splitlines(keepends=True)
    try:
        disc_data.write(in_stage1, disc_data.records(40))
        code, _, err = train(here)
        assert code == 2
        assert err.startswith(f"{data}: its rows are not those that the run in {here / 'run'} began with")
        assert "16 rows then, 40 now" in err
        one, *others = lines
        for changed in ([*others, one], [one.replace("red", "rot"), *others], [one.replace("0.png", "1.png"), *others]):
            data.write_text("".join(changed))
            assert "as many, but others" in train(here)[2]
        data.write_text(before)
        (in_stage1 / "3.png").write_bytes((in_stage1 / "4.png").read_bytes())  # a picture that was replaced
        assert train(here)[0] == 0
    finally:
        disc_data.write(in_stage1, disc_data.records(16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key", "was"),
    [
        (["--trainer.learning_rate", "1e-2"], "learning_rate", "0.001, not 0.01"),
        (["--trainer.max_steps", "6"], "max_steps", "3, not 6"),
        (["--trainer.weight_decay", "0.5"], "weight_decay", "its default, not 0.5"),
        (["--trainer.per_device_train_batch_size", "2"], "per_device_train_batch_size", "4, not 2"),
        (["--trainer.lr_scheduler_type", "cosine"], "lr_scheduler_type", "its default, not 'cosine'"),
    ],
)
def test_what_a_begun_stage_has_fixed_is_refused(
    words: list[str], key: str, was: str, in_stage1: Path, copy: Any, train: Train
) -> None:
    here = copy(in_stage1)
    before = (here / "run" / "recipe.yaml").read_bytes()
    code, out, err = train(here, *words)
    assert (code, out) == (2, "")
    then, now = was.split(", not ")
    assert f"stage1 of this run began with stage1.trainer.{key} = {then} and keeps it; " in err
    assert f" now says {now}. Resume with the same setting" in err
    assert f"For stage2 alone write --stage2.trainer.{key}." in err
    assert (here / "run" / "recipe.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_stage_that_has_not_begun_may_change(in_stage1: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage1)
    code, _, err = train(here, "--stage2.trainer.max_steps", 1, "--beta", 0.4, "--trainer.logging_steps", 3)
    assert code == 0
    assert "stage2.trainer.max_steps is 1 in stage2, which has not begun, and not in stage1, which has; " in err
    for stage in ("stage1", "stage2"):
        assert f"{stage}.trainer.logging_steps is 3 from now on; the run began with 1" in err
    recipe = resolved(here)
    assert recipe.stage1 is not None
    assert recipe.stage2 is not None
    assert (recipe.trainer["max_steps"], recipe.stage2.trainer, recipe.stage2.beta) == (3, {"max_steps": 1}, 0.4)
    lines = read_jsonl(here / "run" / "metrics.jsonl").objects
    # step 3 of stage 1 is logged as the setting of now says; stage 2 logs its first step
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("stage1", 1),
        ("stage1", 2),
        ("stage1", 3),
        ("stage2", 1),
    ]


@pytest.mark.slow
def test_another_interval_holds_for_the_rest_of_a_stage(in_stage1: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage1)
    assert train(here, "--trainer.logging_steps", 2)[0] == 0
    lines = read_jsonl(here / "run" / "metrics.jsonl").objects
    assert [line["step"] for line in lines if line["stage"] == "stage1"] == [1, 2]  # 3 is none of its multiples


@pytest.mark.slow
def test_a_stage_cannot_be_added_or_left_out(in_stage1: Path, copy: Any, train: Train) -> None:
    code, _, err = train(copy(in_stage1), "--stage2", "null")
    assert code == 2
    assert "the run began with stage1 and stage2, not stage1" in err


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(finished: Path, copy: Any, train: Train) -> None:
    here = copy(finished)
    run = here / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = train(here)
    assert (code, err) == (0, "")
    found = f"{run}  (models in stage1/ and stage2/, curves in report.html)\n"
    assert out == f"already finished, nothing to do: {found}"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert json.loads((run / "summary.json").read_text())["wall_seconds"] > 0
    code, out, err = train(here, "--trainer.max_steps", 6)
    assert (code, out) == (2, "")
    assert "began with stage1.trainer.max_steps = 3 and keeps it; the recipe or the command line now says 6" in err
    assert "For stage2 alone" not in err


@pytest.mark.slow
def test_seconds_are_those_of_all_sessions(in_stage2: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage2)
    run = RunDirectory(here / "run")
    assert run.kept("wall_time")["seconds"] > 0
    run.keep("wall_time", {"seconds": 1000.0})
    assert train(here)[0] == 0
    assert 1000 < json.loads(run.summary.read_text())["wall_seconds"] < 1600


@pytest.mark.slow
def test_a_deleted_model_is_made_again(finished: Path, copy: Any, train: Train) -> None:
    here = copy(finished)
    run = RunDirectory(here / "run")
    weights = (run.stage("stage2") / "model.safetensors").read_bytes()
    shutil.rmtree(run.stage("stage2"))
    code, out, err = train(here)
    assert code == 0
    assert f"{run.stage('stage2')} is gone and is made again from {last_checkpoint(run.checkpoints('stage2'))}" in err
    assert "\ndone: " in f"\n{out}"
    assert (run.stage("stage2") / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_model_that_nothing_needs_may_be_gone(finished: Path, copy: Any, train: Train) -> None:
    here = copy(finished)
    shutil.rmtree(here / "run" / "stage1")
    code, out, _ = train(here)
    assert code == 0
    assert out.endswith("(model in stage2/, curves in report.html)\n")
    (here / "run" / "summary.json").unlink()  # as if the run had ended between the two
    code, out, _ = train(here)
    assert code == 0
    assert "\nstage1   finished before\nstage2   finished before\n" in out
    assert "\ndone: " in out
    assert not (here / "run" / "stage1").exists()


@pytest.mark.slow
def test_a_model_that_stage_2_needs_is_missed(in_stage2: Path, copy: Any, train: Train) -> None:
    here = copy(in_stage2)
    run = RunDirectory(here / "run")
    shutil.rmtree(run.stage("stage1"))
    code, _, err = train(here)
    assert code == 2
    assert err.startswith(f"{run.stage('stage1')} is gone, and stage2, which is not finished, starts from it. ")
    assert f"delete {run.root / 'checkpoints' / 'stage1.done'} and resume" in err
    (run.root / "checkpoints" / "stage1.done").unlink()
    assert train(here)[0] == 0
    assert run.stage("stage1").is_dir()
