"""A frozen vision tower gives the same features in training as in evaluation, and takes pixels in its own type.

The tower of the tiny FastVLM has batch norm, which in training mode normalises by the batch and moves its statistics.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.prompts import load_model, make_batch, make_prompt
from transformers import AutoModelForImageTextToText

from cwdpo.engine import FeatureCache, make_engine
from cwdpo.generation import generate_answers
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy
from cwdpo.models.parts import vision_parameters

pytestmark = pytest.mark.slow  # each trains a model

Make = Callable[..., Any]
Tiny = Callable[[str], Path]


def buffers(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "batches" in name}


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("lora", [False, True])
def test_training_sees_the_features_of_evaluation(make_trainer: Make, tiny: Tiny, stage: int, lora: bool) -> None:
    model: Any = load_policy(tiny("fast_vlm"), dtype="float32")
    model = add_lora(model, r=4, alpha=8) if lora else model
    settings = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16, "max_steps": 2}
    trainer = make_trainer(stage, "fast_vlm", model=model, **settings)
    before, expected = buffers(model), trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, abs=1e-5)
    assert losses(trainer)[1] < expected - 1e-4
    after = buffers(model)
    assert len(before) > 10
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_the_user_loaded_is_treated_alike(make_trainer: Make, tiny: Tiny) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(tiny("fast_vlm"), dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    trainer = make_trainer(2, "fast_vlm", model=model, max_steps=1)
    before = buffers(model)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert all(torch.equal(value, buffers(model)[name]) for name, value in before.items())


def test_a_tower_that_trains_is_in_training_mode(make_trainer: Make, tiny: Tiny) -> None:
    model: Any = load_policy(tiny("fast_vlm"), dtype="float32", freeze_vision=False)
    before = buffers(model)
    make_trainer(1, "fast_vlm", model=model, max_steps=1).train()
    assert not all(torch.equal(value, buffers(model)[name]) for name, value in before.items())


def test_kept_features_are_those_of_evaluation(tiny: Tiny) -> None:
    """Features met first in training are what evaluation would have computed."""
    model = add_lora(load_model(tiny("fast_vlm")), r=4, alpha=8)
    batch = make_batch([make_prompt(tiny("fast_vlm"), 1, seed=seed) for seed in range(4)], [[3, 4]] * 4)
    keeping = make_engine("tree", features=FeatureCache())
    with torch.no_grad():
        model.train()
        in_training = keeping.logprobs(model, batch).token
        model.eval()
        found, computed = keeping.logprobs(model, batch).token, make_engine("plain").logprobs(model, batch).token
    assert keeping.report["features"]["found"] > 0
    assert torch.equal(in_training, found)
    torch.testing.assert_close(found, computed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_model_in_bfloat16_trains_and_answers_without_mixed_precision(
    make_trainer: Make, tiny: Tiny, stage: int
) -> None:
    model = load_policy(tiny("fast_vlm"), dtype="bfloat16")
    assert {weight.dtype for weight in vision_parameters(model).values()} == {torch.bfloat16}
    trainer = make_trainer(stage, "fast_vlm", model=model, max_steps=2)
    trainer.train()
    assert all(loss == loss for loss in losses(trainer))
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
    rows = [trainer.train_dataset[i][1] for i in range(2)]
    assert len(generate_answers(model, trainer.processing_class, rows, max_new_tokens=2, warn_of_cut=False)) == 2
