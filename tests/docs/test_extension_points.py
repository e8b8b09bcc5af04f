"""The examples of docs/architecture.md do what the page says."""

import math
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stage_trainers import make_trainer, sixteen_rows

from cwdpo.batch import Role
from cwdpo.data.rows import Row
from cwdpo.diagnosis.history import MissingReadingsError, stage_histories
from cwdpo.engine import make_engine
from cwdpo.evaluation.judging.judges import load_pair_judge
from cwdpo.evaluation.judging.verdicts import Question
from cwdpo.generation import Generated
from cwdpo.negatives.verify import load_judge

__all__ = ["make_trainer", "sixteen_rows"]

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
Make = Callable[..., Any]


@pytest.fixture(scope="session")
def rows(sixteen_rows: list[Row]) -> list[Row]:
    """What is trained on."""
    return sixteen_rows


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """Everything that the page's Python defines."""
    names: dict[str, Any] = {"math": math, "MissingReadingsError": MissingReadingsError, "Generated": Generated}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.slow
def test_an_engine_of_ones_own_computes_a_stage(example: dict[str, Any], make_trainer: Make) -> None:
    engine = example["CountingEngine"](make_engine("plain"))
    trainer = make_trainer(1, max_steps=1, objective="plain")
    trainer.engine = engine
    trainer.train()
    assert engine.answers == 4  # the chosen answers of a step of four rows


def test_a_reference_of_ones_own_gives_the_rewards(example: dict[str, Any], make_trainer: Make) -> None:
    trainer = make_trainer(2, max_steps=1, beta=0.5)
    vocabulary = trainer.model.get_output_embeddings().weight.shape[0]
    example["measure_against"](trainer, example["UniformReference"](vocabulary), floor=-2.0)
    batch = trainer.collate([trainer.train_dataset[0]])
    with torch.no_grad():
        _, metrics = trainer.batch_loss(trainer.model, batch)
        policy = trainer.engine.logprobs(trainer.model, batch).total[batch["roles"] == Role.CHOSEN].item()
    tokens = batch["answer_mask"][batch["roles"] == Role.CHOSEN].sum().item()
    assert metrics["rewards/chosen"].item() == pytest.approx(0.5 * (policy + tokens * math.log(vocabulary)), rel=1e-5)


def test_a_judge_of_ones_own_is_found_by_its_name(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_judge")
    vars(module)["names_the_colour"] = example["names_the_colour"]
    monkeypatch.setitem(sys.modules, "own_judge", module)
    row = types.SimpleNamespace(chosen="a red disc")
    assert load_judge("own_judge:names_the_colour")([row, row], ["a red ring", "a blue disc"]) == [True, False]  # type: ignore[list-item]


def test_a_judge_of_pairs_is_found_by_its_name(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_pair_judge")
    module.shorter_is_better = example["shorter_is_better"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_pair_judge", module)
    row = Row(prompt=(), chosen="a red disc")
    judge = load_pair_judge("own_pair_judge:shorter_is_better", [row])
    assert list(judge.verdicts([Question(row, "a disc", "a red disc"), Question(row, "b", "a")])) == [(0, 1), (1, 0.5)]


@pytest.mark.parametrize(("last", "found"), [(0.5, False), (2.0, True)])
def test_a_sign_of_ones_own_judges_a_stage(example: dict[str, Any], last: float, found: bool) -> None:
    lines = [{"stage": "stage1", "step": i, "entropy": 1.0 + (last - 1.0) * i / 40} for i in range(41)]
    (stage,), _ = stage_histories(lines)
    finding = example["forgets_to_stop"](stage)
    assert (finding is not None) is found
    if finding is not None:
        assert "entropy rose to" in finding.evidence


def test_a_sign_of_ones_own_says_what_it_lacks(example: dict[str, Any]) -> None:
    (stage,), _ = stage_histories([{"stage": "stage1", "step": 1, "loss": 1.0}])
    with pytest.raises(MissingReadingsError, match="entropy"):
        example["forgets_to_stop"](stage)


@pytest.mark.slow
def test_a_source_of_negatives_of_ones_own_is_trained_on(example: dict[str, Any], make_trainer: Make) -> None:
    trainer = make_trainer(
        2,
        max_steps=2,
        cooling_floor=-2.0,
        on_policy={"k": 2, "on_policy_fraction": 1.0},
        sampler=example["FixedNegatives"]("a purple elephant", "two purple elephants"),
    )
    trainer.train()
    note = trainer.on_policy.note()
    assert note["samples"]["kept"] > 0
