"""Engines under mixed precision: accelerate opens autocast inside the forward pass, where nobody outside sees it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cwdpo.batch import AnswerLogprobs


@pytest.mark.slow
@pytest.mark.parametrize(("bf16", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_log_probs_say_what_they_were_computed_in(
    bf16: bool, precision: torch.dtype, make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(2, bf16=bf16, max_steps=1)
    seen: list[AnswerLogprobs] = []
    ask = trainer.engine.logprobs
    trainer.engine.logprobs = lambda *args, **want: seen.append(ask(*args, **want)) or seen[-1]
    trainer.train()
    assert {said.precision for said in seen} == {precision}
    assert [made["engine"] for made in trainer.engine.report["choices"]] == ["tree"]
