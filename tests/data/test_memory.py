"""The memory estimate against numbers worked out on paper."""

import pytest

from cwdpo.data.check import memory_estimate

SIZES = {"tokens_per_batch": 2000, "hidden_size": 2048, "num_layers": 36, "vocabulary_size": 151_936}


def test_full_finetuning_of_three_billion_in_bfloat16() -> None:
    estimate = memory_estimate(num_parameters=3 * 10**9, trainable_parameters=3 * 10**9, bytes_per_value=2, **SIZES)
    assert estimate["weights"] + estimate["gradients"] + estimate["optimizer"] == 24 * 10**9
    assert estimate["activations"] == 2000 * 2048 * 34 * 36
    assert estimate["logits"] == 3 * 1024 * 151_936 * 4
    assert estimate["total"] == 24 * 10**9 + 5_013_504_000 + 1_866_989_568


def test_adapters_and_checkpointing_take_less() -> None:
    estimate = memory_estimate(
        num_parameters=3 * 10**9, trainable_parameters=10**7, bytes_per_value=4, checkpointing=True, **SIZES
    )
    assert (estimate["weights"], estimate["gradients"], estimate["optimizer"]) == (12 * 10**9, 4 * 10**7, 8 * 10**7)
    assert estimate["activations"] == pytest.approx(2000 * 2048 * (36 * 4 + 68))
