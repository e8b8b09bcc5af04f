"""Rules that leave negatives out while a model trains, and a token budget that counts what came in their place."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy.scripted_sampling import SAMPLING, STEPS, scripted

from cwdpo.batch import Role
from cwdpo.data.collate import AnswerCollator
from cwdpo.negatives.candidates import read_refreshes
from cwdpo.trainers.steps import row_tokens

Make = Callable[..., Any]


@pytest.mark.slow
def test_negatives_that_the_policy_cannot_tell_from_the_right_answer_are_dropped(
    make_trainer: Make, tmp_path: Path
) -> None:
    """CHES by the definition, from hidden states that the model itself returns."""
    trainer = make_trainer(
        2,
        **STEPS | {"max_steps": 2},
        on_policy=SAMPLING | {"on_policy_fraction": 1.0, "drop_ches_above": "quantile:0.5"},
    )
    scripted(trainer, lambda row, n: [f"sample {row.id}"])
    model = copy.deepcopy(trainer.model).eval()
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    samples = [candidate for candidate in refresh.candidates if candidate.source == "on_policy"]
    middle = sorted(candidate.ches for candidate in samples)[7:9]
    assert {candidate.reason for candidate in samples} == {None, "too_similar"}
    for candidate in samples:
        assert (candidate.reason == "too_similar") == (candidate.ches > sum(middle) / 2)
    row = trainer.train_dataset[samples[0].row][1]
    collate = AnswerCollator(trainer.encoder, roles=(Role.CHOSEN, Role.REJECTED))
    batch = collate([(0, replace(row, rejected=(samples[0].text,)))])
    prompt, means = batch["prompts"][0], []
    for ids, mask in zip(batch["answer_ids"], batch["answer_mask"], strict=True):
        answer = ids[mask][None]
        inputs = prompt | {"input_ids": torch.cat([prompt["input_ids"], answer], dim=1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        means.append(hidden[-1 - answer.shape[1] : -1].double().mean(dim=0).tolist())
    right, wrong = means
    by_hand = sum(a * b for a, b in zip(right, wrong, strict=True)) - sum(a * a for a in right)
    assert samples[0].ches == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.slow
def test_a_token_budget_counts_the_samples(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[list[int]] = []
    trainer = make_trainer(
        2,
        **STEPS | {"max_steps": 1},
        max_tokens_per_batch=300,
        on_policy=SAMPLING | {"on_policy_fraction": 1.0},
    )
    scripted(trainer, lambda row, n: [f"sample {row.id} " + "and so on " * 30])
    ask = trainer.batch_loss
    monkeypatch.setattr(trainer, "batch_loss", lambda m, b, **k: passes.append(row_tokens(b)) or ask(m, b, **k))
    trainer.train()
    assert sum(map(len, passes)) == 4
    assert max(map(max, passes)) > 100  # the samples are what makes them long
    for tokens in passes:
        assert len(tokens) == 1 or len(tokens) * max(tokens) <= 300


@pytest.mark.slow
def test_long_samples_are_dropped_by_their_length(make_trainer: Make, tmp_path: Path) -> None:
    rules = {"on_policy_fraction": 1.0, "length_gap": 1.0}
    trainer = make_trainer(2, **STEPS | {"max_steps": 2}, on_policy=SAMPLING | rules)
    scripted(trainer, lambda row, n: [f"sample {row.id}", "far too many words " * 20])
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert [c.reason for c in refresh.candidates] == [None, "other_length"] * 16
    note = trainer.on_policy.note()
    assert (note["refreshes"], note["failed"], note["samples"]) == (1, 0, {"kept": 16, "other_length": 16})
