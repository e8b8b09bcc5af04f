"""Readings without the image: each view against log-probs computed one by one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import disc_data

from cwdpo.data.images import open_image
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import ImageSlot, Row
from cwdpo.evaluation.audit.blind import BlindReading, _points, _seen, measure_blind, warnings_of
from cwdpo.evaluation.intervals import wilson


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return read_rows(disc_data.write(tmp_path, disc_data.records(4, text_only_every=3)))  # the third has no image


def test_what_is_shown(rows: list[Row]) -> None:
    assert _seen(rows, 0, "its image") is rows[0]
    without = _seen(rows, 0, "no image")
    assert without is not None
    assert without.images == ()
    assert not any(isinstance(part, ImageSlot) for message in without.prompt for part in message.parts)
    assert without.prompt[0].parts == tuple(part for part in rows[0].prompt[0].parts if isinstance(part, str))
    grey = _seen(rows, 0, "a grey image")
    assert grey is not None
    assert (np.asarray(open_image(grey.images[0], source="")) == 128).all()
    assert open_image(grey.images[0], source="").size == (32, 32)
    other = _seen(rows, 1, "another row's image")
    assert other is not None
    assert other == replace(rows[1], images=rows[3].images)  # the next one with an image
    assert _seen(rows, 2, "a grey image") is _seen(rows, 2, "another row's image") is None
    assert _seen(rows[:1], 0, "another row's image") is None


def test_points_of_each_pair() -> None:
    totals, means = [-3.0, -5.0, -2.0, -4.0, -4.0], [-1.0, -0.5, -1.0, -2.0, -3.0]
    found = list(_points(np.array([totals, means]), np.array([0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1])))
    assert [one.tolist() for one in found] == [[[1, 0], [0, 0.5]], [[0.5], [1]]]


def reading(view: str, share: float) -> BlindReading:
    return BlindReading(view, wilson(share * 200, 200), wilson(0, 200))  # type: ignore[arg-type]


def test_a_model_that_wins_without_looking_is_warned_of() -> None:
    assert warnings_of([reading("its image", 0.9), reading("no image", 0.6)]) == []
    assert warnings_of([reading("its image", 0.9), reading("no image", 0.7)]) == []  # within its interval
    (found,) = warnings_of([reading("its image", 0.9), reading("no image", 0.85), reading("another row's image", 0.4)])
    assert found.name == "with no image"
    assert "85 % [79, 89] of pairs (with its own image in 90 %" in found.evidence


@pytest.mark.slow
def test_every_view_is_measured_with_a_model(rows: list[Row], tiny: Callable[[str], Path]) -> None:
    import torch

    from cwdpo.batch import Role
    from cwdpo.data.collate import AnswerCollator
    from cwdpo.data.encode import Encoder
    from cwdpo.engine import make_engine
    from cwdpo.models.adapters import load_checkpoint

    model = str(tiny("llava"))
    calls: list[tuple[int, int]] = []
    readings, count = measure_blind(model, rows, batch_size=3, progress=lambda *done: calls.append(done))
    assert [one.view for one in readings] == ["its image", "no image", "a grey image", "another row's image"]
    assert [one.by_total.n for one in readings] == [4, 4, 3, 3]
    assert calls[-1] == (16, 16)
    assert [one[0] for one in calls] == sorted(one[0] for one in calls)
    assert count("a b") > 0
    policy, processor = load_checkpoint(model)
    collate = AnswerCollator(Encoder(processor), roles=(Role.CHOSEN, Role.REJECTED))
    for view in readings:
        wins = []
        for place in range(4):
            seen = _seen(rows, place, view.view)
            if seen is not None:
                with torch.no_grad():
                    scored = make_engine("plain").logprobs(policy.eval(), collate([(0, seen)]))
                wins.append([float(values[0] > values[1]) for values in (scored.total, scored.mean)])
        by_hand = np.mean(wins, axis=0)
        assert (view.by_total.value, view.by_mean.value) == pytest.approx(tuple(by_hand))
