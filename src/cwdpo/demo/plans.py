"""The methods that the demo compares, as recipes a user could have written."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cwdpo.config.recipe import CoolingConfig, DataConfig, ModelConfig, Recipe, Stage1Config, Stage2Config

Method: TypeAlias = Literal["SFT", "DPO", "CW-DPO"]

OPTIMISER: dict[str, Any] = {
    "adam_beta2": 0.98,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "logging_steps": 5,
    "save_strategy": "no",
    "eval_strategy": "no",  # the held-out rows are for the probes, and for the comparison at the end
    "dataloader_num_workers": 0,
}


def base_checkpoint() -> Path:
    """The shipped base model's directory (by ``tools/make_demo_base.py``): a bfloat16 checkpoint and its processor."""
    path = Path(str(files("cwdpo.demo"))) / "base"
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"the demo's base model is not at {path}; make it with `python tools/make_demo_base.py {path}`"
        )
    return path


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How large the demo is. Every method gets the same rows, steps and learning rates."""

    train_rows: int = 8000
    eval_rows: int = 600
    stage1_fraction: float = 0.75
    batch_size: int = 32
    stage1_steps: int = 188
    """Of stage 1: one pass over its share of the rows."""

    stage2_steps: int = 120
    stage1_learning_rate: float = 5e-4
    stage2_learning_rate: float = 3e-4
    beta: float = Stage2Config.beta

    @classmethod
    def small(cls) -> "DemoSettings":
        """A few steps on a few rows: it shows that all works, not what it gives."""
        return cls(train_rows=320, eval_rows=40, batch_size=16, stage1_steps=6, stage2_steps=6)


@dataclass(frozen=True)
class Plan:
    """One method's run, and where its comparison starts."""

    method: Method
    recipe: Recipe
    start: Path
    """The model before the second phase: what Delta and drift are measured against."""

    result: Path
    """The model that the run leaves."""


def make_plans(
    out: Path, *, base: Path, train: Path, held_out: Path, stage2_rows: Path, settings: DemoSettings, seed: int
) -> Sequence[Plan]:
    """Recipes of the three methods, in the order in which they must run, each with a run directory in ``out``.

    DPO starts with plain SFT on stage 1's rows. SFT continues from there, on stage 2's rows (``stage2_rows``). CW-DPO
    has its own stages. ``train`` holds the rows of both stages, and probes ask about the rows held out.
    """

    def recipe(name: str, model: Path, data: Path, stage1: Stage1Config | None, stage2: Stage2Config | None) -> Recipe:
        return Recipe(
            model=ModelConfig(name_or_path=str(model), dtype="float32", freeze_vision=False),
            data=DataConfig(train=str(data), eval=str(held_out), stage1_fraction=settings.stage1_fraction),
            stage1=stage1,
            stage2=stage2,
            trainer={"per_device_train_batch_size": settings.batch_size, "use_cpu": True, **OPTIMISER},
            seed=seed,
            output_dir=str(out / name),
        )

    first = _phase(settings.stage1_steps, settings.stage1_learning_rate)
    second = _phase(settings.stage2_steps, settings.stage2_learning_rate)
    plain, smooth = Stage1Config(objective="plain", trainer=first), Stage1Config(trainer=first)
    more_sft = Stage1Config(objective="plain", trainer=second)
    dpo = Stage2Config(beta=settings.beta, cooling=None, trainer=second)
    # the floor of every table and picture in docs/ that is made from this world
    cooled = Stage2Config(beta=settings.beta, cooling=CoolingConfig(floor="gentle"), trainer=second)
    after_sft, cw_dpo = out / "dpo" / "stage1", out / "cw_dpo"
    return (
        Plan("DPO", recipe("dpo", base, train, plain, dpo), after_sft, out / "dpo" / "stage2"),
        Plan("SFT", recipe("sft", after_sft, stage2_rows, more_sft, None), after_sft, out / "sft" / "stage1"),
        Plan("CW-DPO", recipe("cw_dpo", base, train, smooth, cooled), cw_dpo / "stage1", cw_dpo / "stage2"),
    )


def _phase(steps: int, learning_rate: float) -> dict[str, Any]:
    return {"max_steps": steps, "learning_rate": learning_rate, "warmup_steps": min(10, steps // 2)}
