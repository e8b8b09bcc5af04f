"""The checker on captions judged by eye."""

import pytest

from cwdpo.demo.world import Thing, check_caption, win_rate

RED = Thing("red", "disc", "small", "top left")
BLUE = Thing("blue", "cross", "large", "bottom right")
RED_TEXT, BLUE_TEXT = "a tiny red circle at the upper left", "at the lower right there is a huge blue plus"


@pytest.mark.parametrize(
    ("caption", "scene", "exact", "attributes", "hallucinated"),
    [
        (RED_TEXT, (RED,), True, 1.0, False),
        (f"{BLUE_TEXT} and {RED_TEXT}", (RED, BLUE), True, 1.0, False),
        ("a tiny orange circle at the upper left", (RED,), False, 0.75, True),
        ("a tiny red circle at the upper right", (RED,), False, 0.75, False),
        (RED_TEXT, (RED, BLUE), False, 0.5, False),  # one thing is missing
        (f"{RED_TEXT} and {BLUE_TEXT}", (RED,), False, 0.5, True),  # one thing too many
        (f"{RED_TEXT} and {RED_TEXT}", (RED,), False, 0.5, False),  # named twice
        # colours swapped: size, shape and position are right under the best matching, 6 of 8
        ("a tiny blue circle at the upper left and a huge red plus at the lower right", (RED, BLUE), False, 0.75, True),
        ("circle red tiny", (RED,), False, 0.0, True),
    ],
)
def test_verdict(caption: str, scene: tuple[Thing, ...], exact: bool, attributes: float, hallucinated: bool) -> None:
    verdict = check_caption(caption, scene)
    assert (verdict.exact, verdict.attributes, verdict.hallucinated) == (exact, attributes, hallucinated)


def test_an_endless_list_is_judged_at_once() -> None:
    assert check_caption(" and ".join([RED_TEXT] * 30), (RED,)).attributes == 0.0


def test_win_rate_counts_ties_half() -> None:
    wrong = "a big green box at the lower right"
    assert win_rate([RED_TEXT, wrong, wrong, "no"], [wrong, RED_TEXT, wrong, "nonsense"], [(RED,)] * 4) == 0.5
    assert win_rate([RED_TEXT, wrong], [wrong, wrong], [(RED,)] * 2) == 0.75
    assert win_rate(["a big red disc at the top left"], [wrong], [(RED,)]) == 1.0


def test_win_rate_needs_pairs() -> None:
    with pytest.raises(ValueError, match="one caption, rival and scene"):
        win_rate(["a"], [], [])
