"""Memory of a step, against arithmetic done by hand; and what is drafted for a device."""

from typing import Any

import pytest

from cwdpo.memory import human_bytes
from cwdpo.recipes.memory import Device, ModelFacts, StepPlan, fits, step_memory

FACTS: ModelFacts = {
    "name_or_path": "owner/model",
    "class": "Model",
    "dtype": "bfloat16",
    "max_length": 4096,
    "parts": {
        "vision tower": {"total": 1_000, "trainable": 0},
        "language model": {"total": 10_000, "trainable": 10_000},
    },
    "lora": {"r": 16, "targets": ["q"], "weights": 100},
    "shape": {"hidden_size": 8, "num_layers": 2, "vocabulary_size": 50},
}


def weights(**plan: Any) -> int:
    return step_memory(FACTS, StepPlan(**plan), longest=10)["weights"]


def test_weights_follow_dtype_adapters_and_bits() -> None:
    assert weights() == 2 * (11_000 + 100)  # the checkpoint's own bfloat16
    assert weights(dtype="float32") == 4 * (11_000 + 100)
    assert weights(lora=False) == 2 * 11_000
    assert weights(bits=4) == 11_000 // 2 + 2 * 100
    assert weights(bits=8) == 11_000 + 2 * 100


def test_gradients_and_moments_are_of_what_trains() -> None:
    for plan, trained in ((StepPlan(), 100), (StepPlan(lora=False), 10_000)):
        found = step_memory(FACTS, plan, longest=10)
        assert found["gradients"] == 2 * trained
        assert found["optimizer"] == 2 * 2 * trained


def test_activations_follow_rows_and_budget() -> None:
    one = step_memory(FACTS, StepPlan(), longest=10)["activations"]
    assert step_memory(FACTS, StepPlan(rows=4), longest=10)["activations"] == 4 * one
    assert step_memory(FACTS, StepPlan(rows=4, max_tokens=20), longest=10)["activations"] == one  # 2 answers of 10
    assert step_memory(FACTS, StepPlan(checkpointing=False), longest=10)["activations"] > one


def test_the_total_is_the_sum() -> None:
    for bits in (None, 4):
        found = step_memory(FACTS, StepPlan(bits=bits), longest=10)  # type: ignore[arg-type]
        assert found.pop("total") == sum(found.values())


def test_what_fits_has_room_for_the_estimates_error() -> None:
    assert fits({"total": 100}, Device("GPU", 150, True, True))
    assert not fits({"total": 100}, Device("GPU", 149, True, True))


@pytest.mark.parametrize(("number", "text"), [(999, "999 B"), (7_730_000, "7.73 MB"), (24e9, "24 GB"), (2e12, "2 TB")])
def test_sizes_for_people(number: float, text: str) -> None:
    assert human_bytes(number) == text
