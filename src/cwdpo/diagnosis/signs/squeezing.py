"""Chosen answers that lose probability: squeezing and likelihood displacement."""

from typing import NamedTuple

from cwdpo.diagnosis.history import (
    Change,
    Finding,
    MissingReadingsError,
    Movement,
    StageHistory,
    hold_negatives_back,
    pairs_of_movements,
)
from cwdpo.records import ProbeMeasure


class _Fall(NamedTuple):
    """Chosen answers that fell, and rejected answers beside them, by one account."""

    chosen: Movement
    change: Change
    lowest: tuple[float, int]
    rejected: Change

    @property
    def words(self) -> str:
        amount, (lowest, step) = self.change.amount, self.lowest
        share = f", its NLL {-amount / self.chosen.start_nll:+.0%}" if self.chosen.start_nll else ""
        return (
            f"chosen answers moved {amount:+.3g} {self.chosen.unit} since the stage began{share} "
            f"({lowest - self.change.start:+.3g} near step {step}), rejected {self.rejected.amount:+.3g}, "
            f"in {self.chosen.source}"
        )


def squeezing(stage: StageHistory) -> Finding | None:
    """Chosen answers fall while the margin grows: what negatives lose goes to the argmax (Ren & Sutherland 2025)."""
    concentrates, reading = _concentration(stage)
    for fall in _falls(stage):
        least = stage.limits.margin_rise if not fall.chosen.per_token else stage.limits.fall_most
        margin = fall.change.amount - fall.rejected.amount
        if margin >= least and concentrates is not False:
            return stage.finding(
                "squeezing",
                f"{fall.words}, so the margin grew by {margin:.3g} and the right answers became less likely; {reading}",
                f"{hold_negatives_back(stage)}. Else lower the learning rate (`stage2.trainer.learning_rate`), or "
                "raise `stage2.beta`, and stop earlier: choose a checkpoint from before the fall.",
            )
    return None


def likelihood_displacement(stage: StageHistory) -> Finding | None:
    """Chosen and rejected answers fall together: the mass goes to answers that nobody wrote."""
    return stage.finding(
        "likelihood_displacement",
        next((fall.words for fall in _falls(stage) if fall.rejected.amount < 0), None),
        f"{hold_negatives_back(stage)}. Pairs that say almost the same push each other down: make the difference "
        "clearer, or train longer in stage 1 (`data.stage1_fraction`) so that the chosen answers are learned before "
        "anything is pushed away. A lower `stage2.trainer.learning_rate` helps too.",
    )


def _falls(stage: StageHistory) -> list[_Fall]:
    """Every account by which chosen answers fell and stayed down."""
    pairs, found = pairs_of_movements(stage), []
    if not pairs:
        raise MissingReadingsError("readings of chosen and rejected answers from the same rows")
    for chosen, rejected in pairs:
        change, lowest = chosen.change(stage.limits.sigmas), chosen.curve.lowest
        tolerance = _tolerance(stage, chosen)
        if lowest[0] - change.start <= -tolerance and change.fell(tolerance * stage.limits.recovered):
            found.append(_Fall(chosen, change, lowest, rejected.change(stage.limits.sigmas)))
    return found


def _tolerance(stage: StageHistory, chosen: Movement) -> float:
    """A fall that counts, in the unit of the movement."""
    limits = stage.limits
    if not chosen.per_token:
        return limits.fall_answer if chosen.start_nll is None else limits.fall_share * chosen.start_nll
    if chosen.start_nll is None:
        return limits.fall_most
    return max(limits.fall_least, min(limits.fall_most, limits.fall_share * chosen.start_nll))


def _concentration(stage: StageHistory) -> tuple[bool | None, str]:
    """Whether mass moved to the argmax: yes, no, or None where no reading shows it; and the reading."""
    limits = stage.limits
    masses: tuple[ProbeMeasure, ...] = ("argmax_mass", "top1")
    for name in masses:
        mass = stage.find_probe("chosen", name)
        if mass is not None and (verdict := _moved(mass.change(limits.sigmas), limits.mass_shift, limits.mass_shift)):
            return verdict > 0, f"`{name}` went from {mass.start:.3g} to {mass.end:.3g}"
    entropy = stage.find_probe("chosen", "entropy") or stage.find_metric("entropy")
    if entropy is not None:
        up, down = (share * abs(entropy.start) for share in (limits.entropy_rise, limits.entropy_fall))
        if verdict := _moved(entropy.change(limits.sigmas), up, down):
            return verdict < 0, f"entropy went from {entropy.start:.3g} to {entropy.end:.3g}"
    greedy = stage.find_probe("greedy", "delta")
    if greedy is not None and greedy.end > 0:
        return True, f"greedy answers moved {greedy.end:+.3g} nats/token"
    return None, "whether the mass went to the argmax was not seen: probes measure it as `argmax_mass`"


def _moved(change: Change, up: float, down: float) -> int:
    return 1 if change.rose(up) else -1 if change.fell(down) else 0
