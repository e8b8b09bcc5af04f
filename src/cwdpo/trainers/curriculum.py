"""The curriculum inside training: the level at a step, from the schedule or from what the probes have read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from cwdpo.config.fractions import Fraction
from cwdpo.config.negatives import NegativesConfig
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.negatives.curriculum import LevelReading, auto_level
from cwdpo.negatives.mixing import fraction_at
from cwdpo.probes.best import margin

Readings: TypeAlias = Callable[[], Sequence[Mapping[str, Any]]]
"""Gives the stage's probe lines so far (``step``, ``group``, ``mean_logprob``), oldest first, alike on every rank."""


class Curriculum:
    """Says how hard the negatives are to be."""

    def __init__(self, rule: Fraction | str) -> None:
        """Set up.

        Args:
            rule: ``auto``, a level, or points ``[progress, level]``.
        """
        self.rule = rule
        self._readings: Readings | None = None
        self._tolerance, self._every = 0.0, 1
        self._known: tuple[int, float] = (0, 0.0)

    def follow(self, readings: Readings, *, tolerance: float = 0.02, every: int = 1) -> None:
        """Let probes drive ``auto``; other rules pass them over.

        Args:
            readings: such as ``lambda: probing.lines`` of a :class:`cwdpo.trainers.probing.Probing`.
            tolerance: nats per token that the chosen answers may lose.
            every: steps between readings that count. One in between, such as an error's stop adds, would be there in a
                resumed run and not in another.
        """
        self._readings, self._tolerance, self._every = readings, tolerance, every

    def begin(self) -> None:
        """Training begins, or goes on.

        Raises:
            ConfigError: there is nothing to follow.
        """
        self._known = (0, 0.0)
        if self.rule == "auto" and self._readings is None:
            raise ConfigError(
                "negatives.curriculum is auto, which probes drive, but this trainer has none. Run a recipe with "
                "`probes: {every: 10}`, call trainer.on_policy.curriculum.follow(lambda: probing.lines), or write "
                "a schedule such as [[0, 0], [1, 1]]."
            )

    def level(self, progress: float) -> float:
        """From 0, the easiest, to 1, the hardest, at this point of the stage."""
        if not isinstance(self.rule, str):
            return fraction_at(self.rule, progress)
        assert self._readings is not None, "begin() comes first"
        lines = self._readings()
        if self._known[0] != len(lines):
            counted = [line for line in lines if line["step"] % self._every == 0]
            self._known = (len(lines), auto_level(level_readings(counted), tolerance=self._tolerance))
        return self._known[1]


def level_readings(lines: Sequence[Mapping[str, Any]]) -> list[LevelReading]:
    """What the curriculum looks at in probe lines, oldest first."""
    found = []
    for _, group in groupby(lines, key=lambda line: line["step"]):
        reading = list(group)
        chosen = next(float(line["mean_logprob"]) for line in reading if line["group"] == "chosen")
        found.append(LevelReading(chosen, margin(reading)))
    return found


def has_choice(rows: Iterable[Row], settings: NegativesConfig, *, samples: bool) -> bool:
    """Whether some prompt has more candidates than places, and so a level anything to choose.

    Args:
        rows: those trained on; not all are read where an early one answers.
        settings: how many places and samples a prompt has.
        samples: whether any are drawn.
    """
    drawn = settings.k if samples else 0
    return any(
        (settings.per_prompt or len(row.rejected)) < len(row.rejected) + drawn and max(len(row.rejected), drawn) > 1
        for row in rows
    )
