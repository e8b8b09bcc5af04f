"""Probes that watch a trainer: callbacks that disturb training, and what came of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cwdpo.config.recipe import ProbesConfig
from cwdpo.data.rows import Row
from cwdpo.diagnosis import Finding
from cwdpo.engine import separate_engine
from cwdpo.probes.callback import Probing
from cwdpo.records import RunDirectory, read_jsonl
from cwdpo.trainers.callbacks import MetricsRecorder

Make = Callable[..., Any]
STEPS: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 3}
SAVING = STEPS | {"save_strategy": "steps", "save_steps": 2}


class Crash(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("power cut")


class KeepWeights(TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.at[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


class Ruin(TrainerCallback):
    """Turns every prediction into its opposite, from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(-4)


def watch(
    trainer: Any,
    rows: Sequence[Row],
    root: Path,
    *,
    stage: str = "stage2",
    greedy: bool = True,
    sampled: Any = None,
    **settings: Any,
) -> Probing:
    """Let probes watch a trainer, as a recipe does; ``sampled`` is how the model answers by chance."""
    root.mkdir(exist_ok=True)
    run = RunDirectory(root)

    def write(model: Any, some: Sequence[Row]) -> list[str]:
        return [f"model says {len(row.chosen)}" for row in some]

    probing = Probing(
        trainer,
        rows[:5],
        run,
        stage,  # type: ignore[arg-type]
        ProbesConfig(**{"every": 2, **settings}),
        engine=separate_engine(trainer.engine, trainer.args.engine, budget=trainer.args.max_tokens_per_batch),
        beta=getattr(trainer.args, "beta", None),
        write_greedy=write if greedy else None,
        write_sampled=sampled,
    )
    trainer.add_callback(MetricsRecorder(run, stage))  # type: ignore[arg-type]
    trainer.add_callback(probing)
    return probing


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def lines(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(root / "probes.jsonl").objects]


def found_at(*steps: int) -> Callable[..., list[Finding]]:
    """A diagnosis that finds squeezing at these steps, and something else always."""

    def diagnose(history: Sequence[Any], **options: Any) -> list[Finding]:
        step = max(line["step"] for line in history if "group" in line)
        other = Finding("stale_contrast", "e", "a", "stage2", step)
        return [Finding("squeezing", "It fell.", "Cool it.", "stage2", step), other] if step in steps else [other]

    return diagnose
