"""One probe reading in words."""

from typing import Any

import pytest

from cwdpo.diagnosis import words_of_reading
from cwdpo.records import ProbeLine


def reading(n: int = 64, **means: float) -> list[ProbeLine]:
    """Groups whose answers spread by 1 nat per token, so that the error of a mean is 1 / sqrt(n)."""
    spread = 1.28155
    return [
        {"group": group, "n": n, "mean_logprob": mean, "p10": mean - spread, "p90": mean + spread}  # type: ignore[typeddict-item]
        for group, mean in means.items()
    ]


def said(lines: list[ProbeLine], of_chosen: dict[str, Any] | None = None) -> str:
    lines[0].update(of_chosen or {})  # type: ignore[typeddict-item]
    return " ".join(words_of_reading(lines))


@pytest.mark.parametrize(
    ("other", "n", "words"),
    [
        (-1.0, 64, "does not look at the image: right answers are as likely under another image (difference +0.000"),
        (-1.04, 64, "does not look at the image"),
        (-3.0, 64, "looks at the image: right answers are 2.00 nats per token less likely under another image"),
        (-1.3, 64, "is not clear: right answers are 0.30 nats per token less likely under another image, with a "
         "standard error of 0.18"),
        (-1.3, 1600, "looks at the image: right answers are 0.30"),
        (-0.7, 64, "looks at the wrong things: right answers are 0.30"),
    ],
)  # fmt: skip
def test_the_image(other: float, n: int, words: str) -> None:
    assert words in said(reading(n, chosen=-1.0, other_image=other))


def test_a_blank_image_will_do() -> None:
    assert "as likely under a blank image" in said(reading(chosen=-1.0, blank=-1.0))


@pytest.mark.parametrize(
    ("rejected", "words"),
    [
        (-4.0, "are easy: 3.0 nats per token less likely"),
        (-1.5, "hard enough to learn from: 0.50"),
        (-1.1, "does not separate rejected answers from right ones (+0.10"),
        (-0.5, "prefers the rejected answers: they are 0.50"),
    ],
)
def test_rejected_answers(rejected: float, words: str) -> None:
    assert words in said(reading(chosen=-1.0, rejected=rejected))


def test_single_mistakes() -> None:
    assert "It notices single mistakes" in said(reading(chosen=-1.0, gentle=-1.5))
    assert "It does not notice single mistakes" in said(reading(chosen=-1.0, gentle=-1.2))


@pytest.mark.parametrize(
    ("sure", "tokens", "words"),
    [(0.83, 2000, "surer than it is right"), (0.67, 2000, "less sure than"), (0.76, 2000, "about as sure"),
     (0.83, 50, "about as sure")],
)  # fmt: skip
def test_how_sure(sure: float, tokens: int, words: str) -> None:
    of_chosen = {"argmax_mass": sure, "top1": 0.75, "ece": 0.08, "reliability": [[tokens, sure, 0.75]]}
    assert words in said(reading(chosen=-1.0), of_chosen)


def test_what_changed_since_the_reference() -> None:
    fell = {"delta": -0.1, "tv": 0.05, "moved_to_argmax": 0.8}
    words = said(reading(chosen=-1.0, rejected=-3.0), fell)
    assert "less likely than under the reference (-0.100" in words
    assert "5.0% of the next-token probability has moved, most of it to the likeliest token" in words
    assert "as likely as under the reference" in said(reading(chosen=-1.0), {"delta": -0.019})
    assert "likelier than under" in said(reading(chosen=-1.0), {"delta": 0.03})
    assert "reference" not in said(reading(chosen=-1.0))


def test_nothing_to_say_without_right_answers() -> None:
    assert words_of_reading(reading(rejected=-1.0)) == []
