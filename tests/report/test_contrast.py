"""Text can be read on every shade, in light and in dark: WCAG's contrast, from the colours in the style sheets."""

import re

import pytest

from cwdpo.report.page import resource


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def colours(scheme: str) -> dict[str, str]:
    light, dark = resource("page.css").split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if scheme == "light" else dark.split("\n}\n")[0]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_shades(scheme: str) -> None:
    known = colours(scheme)
    shades = [name for name in known if re.fullmatch(r"[sfr]\d", name)]
    assert len(shades) == 16
    for name in shades:
        assert contrast(known["ink"], known[name]) >= 4.5, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_grow_step_by_step(scheme: str) -> None:
    known = colours(scheme)
    for letter, most in (("w", 8), ("s", 8), ("f", 4), ("r", 4)):
        away = [contrast(known["card"], known[f"{letter}{i}"]) for i in range(1, most + 1)]
        assert away == sorted(away), letter
