"""A tiny model's measurements against its own full logits, one answer at a time."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from support import disc_data
from support.naive_logprobs import whole_distributions

from cwdpo.batch import Batch, pad_answers
from cwdpo.data.encode import Encoder
from cwdpo.evaluation.measuring import Measured, Scored, measure_model
from cwdpo.evaluation.questions import Question, read_questions
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.probes import StartDistributions

Oracle = Callable[[torch.nn.Module, Question, str], torch.Tensor]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    rows = disc_data.records(3, text_only_every=3)
    rows[0]["negatives"] = ["Something else.", "A disc."]
    rows[1]["options"] = ["A green disc on grey, number 1.", "blue"]
    del rows[2]["gentle"], rows[2]["rejected"]
    return read_questions(disc_data.write(tmp_path_factory.mktemp("data"), rows))


@pytest.fixture(scope="module")
def models(tiny: Callable[[str], Path]) -> tuple[torch.nn.Module, torch.nn.Module]:
    base = load_policy(tiny("llava"), freeze_vision=False)
    generator = torch.Generator().manual_seed(0)
    moved = deepcopy(base)
    with torch.no_grad():
        for weight in moved.get_output_embeddings().parameters():
            weight += torch.randn(weight.shape, generator=generator)
    return base, moved


@pytest.fixture(scope="module")
def processor(tiny: Callable[[str], Path]) -> object:
    return load_processor(tiny("llava"))


@pytest.fixture(scope="module")
def both(models: tuple, processor: object, questions: list[Question]) -> tuple[Measured, Measured, list[str]]:
    start, steps = StartDistributions(len(questions)), []
    base = measure_model(models[0], processor, questions, start=start, max_new_tokens=None)
    model = measure_model(
        models[1],
        processor,
        questions,
        start=start,
        max_new_tokens=5,
        batch_size=2,
        progress=lambda what, done, total: steps.append(f"{what} {done}/{total}"),
    )
    return base, model, steps


def naive(
    model: torch.nn.Module, processor: object, question: Question, answer: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(T, V)`` log-probs at the answer's tokens, and the tokens."""
    encoded = Encoder(processor).encode(question.row, [answer])
    ids, mask = pad_answers(encoded.answers)
    zero = np.zeros(1, dtype=np.int64)
    batch = Batch(
        row_index=zero,
        prompts=[encoded.prompt],
        prompt_index=zero,
        roles=zero,
        lengths=np.array([len(encoded.answers[0])]),
        answer_ids=ids,
        answer_mask=mask,
        keys=[""],
    )
    with torch.no_grad():
        return whole_distributions(model.eval(), batch)[0], ids[0]


def scored(model: torch.nn.Module, processor: object, question: Question, answer: str) -> tuple[float, int]:
    rows, ids = naive(model, processor, question, answer)
    return sum(rows[t, token].item() for t, token in enumerate(ids)), len(ids)


def test_every_answer_has_its_own_log_prob(
    both: tuple, models: tuple, processor: object, questions: list[Question]
) -> None:
    for found, model in zip(both[:2], models, strict=True):
        for i, question in enumerate(questions):
            row = question.row
            expected = [
                scored(model, processor, question, text) for text in (row.chosen, *row.rejected, *question.options)
            ]
            ours = [found.chosen[i], *found.rejected[i], *found.options[i]]
            assert [tuple(one) for one in ours] == [pytest.approx(pair, rel=1e-4) for pair in expected]
        assert tuple(found.gentle[0]) == pytest.approx(
            scored(model, processor, questions[0], questions[0].row.gentle), rel=1e-4
        )
        assert [answer is None for answer in found.gentle] == [False, False, True]
        assert [len(row) for row in found.rejected] == [3, 1, 0]
        assert [len(row) for row in found.options] == [0, 2, 0]


def test_tokens_and_drift(both: tuple, models: tuple, processor: object, questions: list[Question]) -> None:
    base, model, _ = both
    assert base.moved == []
    for i, question in enumerate(questions):
        (q, ids), (p, _) = (naive(one, processor, question, question.row.chosen) for one in models)
        best, place = p.exp().max(dim=-1)
        assert model.confidence[i] == pytest.approx(best.numpy(), rel=1e-4)
        assert model.hit[i].tolist() == (place == ids).double().tolist()
        p, q = p.double().numpy(), q.double().numpy()
        middle = np.logaddexp(p, q) - math.log(2)
        expected = np.stack(
            [
                np.abs(np.exp(p) - np.exp(q)).sum(axis=1) / 2,
                ((np.exp(p) * (p - middle)).sum(axis=1) + (np.exp(q) * (q - middle)).sum(axis=1)) / 2,
                (np.exp(p) * (p - q)).sum(axis=1),
            ],
            axis=1,
        )
        assert model.moved[i] == pytest.approx(expected, rel=1e-3)
        assert expected[:, 2].mean() > 0.1  # the models do differ


def test_own_answers(both: tuple, models: tuple, processor: object, questions: list[Question]) -> None:
    base, model, steps = both
    assert base.answers is None
    assert base.own == []
    assert [answer.ended for answer in model.answers] == [False] * 3
    for question, answer, own in zip(questions, model.answers, model.own, strict=True):
        assert tuple(own) == pytest.approx(scored(models[1], processor, question, answer.text), rel=1e-4)
    for what in ("given answers", "own answers", "how sure of own answers"):
        assert f"{what} 3/3" in steps


def test_an_empty_answer_has_no_probability(
    models: tuple, processor: object, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cwdpo.generation import Generated

    monkeypatch.setattr(
        "cwdpo.evaluation.measuring.generate",
        lambda m, p, rows, **_: [Generated("" if row.images else "a", True) for row in rows],
    )
    found = measure_model(models[0], processor, questions)
    assert [own is None for own in found.own] == [True, True, False]


def test_mean_is_per_token() -> None:
    assert Scored(-6.0, 4).mean == -1.5
