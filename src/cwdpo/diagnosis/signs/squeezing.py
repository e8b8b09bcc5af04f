"""Chosen answers that lose probability: squeezing and likelihood displacement."""

from typing import NamedTuple

from cwdpo.diagnosis.curves import Change, Curve, Drop, MissingReadingsError
from cwdpo.diagnosis.history import (
    Finding,
    Movement,
    StageHistory,
    fall_that_counts,
    hold_negatives_back,
    pairs_of_movements,
)
from cwdpo.records import ProbeMeasure

_GATHERS, _UNSEEN, _SCATTERS = 1, 0, -1


class _Fall(NamedTuple):
    """Chosen answers that fell from their best level, and rejected answers beside them, by one account."""

    chosen: Movement
    drop: Drop
    now: float
    """Chosen answers against the start of the stage."""

    rejected: float
    """How far rejected answers moved meanwhile; negative is down."""

    rejected_in_all: float
    """The same since the stage began."""

    @property
    def margin(self) -> tuple[float, str]:
        """How far the margin grew, and since when: since the stage began, or meanwhile if that is more."""
        in_all, meanwhile = self.now - self.rejected_in_all, -self.drop.amount - self.rejected
        return max((in_all, "Since the stage began"), (meanwhile, "Meanwhile"))

    @property
    def words(self) -> str:
        drop, unit = self.drop, self.chosen.unit
        nll = self.chosen.start_nll
        share = f" ({drop.amount / nll:.1%} of their NLL at the start)" if nll else ""
        return (
            f"chosen answers fell from about here on. At step {self.chosen.curve.steps[-1]} they are {drop.amount:.3g} "
            f"{unit} below their best level{share}, and {abs(self.now):.3g} {'below' if self.now < 0 else 'above'} the "
            f"start of the stage. Meanwhile rejected answers {'fell' if self.rejected < 0 else 'rose'} by "
            f"{abs(self.rejected):.3g} {unit} (in {self.chosen.source})"
        )


def squeezing(stage: StageHistory) -> Finding | None:
    """Chosen answers fall while the margin grows: what negatives lose goes to the argmax (Ren & Sutherland 2025)."""
    for fall in _falls(stage):
        least = stage.limits.margin_rise if not fall.chosen.per_token else stage.limits.margin_rise_token
        concentrates, reading = _concentration(stage, since=fall.drop.since)
        grown, since = fall.margin
        if grown >= least and concentrates != _SCATTERS:
            return stage.finding(
                "squeezing",
                f"{fall.words}. {since} the margin grew by {grown:.3g} {fall.chosen.unit}, though the right answers "
                f"became less likely; {reading}",
                f"{hold_negatives_back(stage)}. Else lower the learning rate (`stage2.trainer.learning_rate`), or "
                "raise `stage2.beta`, and stop earlier: choose a checkpoint from before the fall.",
                step=fall.drop.since,
            )
    return None


def likelihood_displacement(stage: StageHistory) -> Finding | None:
    """Chosen and rejected answers fall together: the mass goes to answers that nobody wrote."""
    fall = next((fall for fall in _falls(stage) if min(fall.rejected, fall.rejected_in_all) < 0), None)
    return stage.finding(
        "likelihood_displacement",
        fall.words if fall else None,
        f"{hold_negatives_back(stage)}. Pairs that say almost the same push each other down: make the difference "
        "clearer, or train longer in stage 1 (`data.stage1_fraction`) so that the chosen answers are learned before "
        "anything is pushed away. A lower `stage2.trainer.learning_rate` helps too.",
        step=fall.drop.since if fall else None,
    )


def _falls(stage: StageHistory) -> list[_Fall]:
    """Every account by which chosen answers are now below the best level that they had in this stage."""
    limits, found = stage.limits, []
    pairs = pairs_of_movements(stage, least=limits.min_fall_readings, least_same=limits.min_fall_same)
    if not pairs:
        raise MissingReadingsError("readings of chosen and rejected answers from the same rows")
    gathers, _ = _concentration(stage)
    for chosen, rejected in pairs:
        least, sigmas = fall_that_counts(stage, chosen, rejected), limits.sigmas
        if gathers == _GATHERS:  # a second witness: each may then be less sure
            least, sigmas = least * limits.fall_witnessed, limits.sigmas_witnessed
        elif gathers == _SCATTERS:
            least /= limits.fall_witnessed
        drop = chosen.curve.drop(least, sigmas, base=chosen.base)
        if drop is not None:
            start = chosen.curve.start if chosen.base is None else chosen.base
            meanwhile = rejected.curve.mean_until(None, drop.width) - rejected.curve.mean_until(drop.since, drop.width)
            in_all = rejected.change(sigmas).amount
            found.append(_Fall(chosen, drop, drop.end - start, meanwhile, in_all))
    return found


def _concentration(stage: StageHistory, *, since: int | None = None) -> tuple[int, str]:
    """Whether probability gathers on the argmax, and the reading that shows it: since a step if that shows anything,
    else since the stage began."""
    if since is not None:
        verdict, reading = _gathering(stage, since)
        if verdict != _UNSEEN:
            return verdict, f"{reading} since then"
    return _gathering(stage, None)


def _gathering(stage: StageHistory, since: int | None) -> tuple[int, str]:
    limits = stage.limits

    def change(curve: Curve) -> Change:
        later = curve if since is None else curve.since(since)
        return (curve.since(curve.steps[-1]) if later.is_short and since is not None else later).change(limits.sigmas)

    masses: tuple[ProbeMeasure, ...] = ("argmax_mass", "top1")
    for name in masses:
        mass = stage.find_probe("chosen", name)
        if mass is not None and (verdict := _moved(change(mass), limits.mass_shift, limits.mass_shift)):
            return verdict, f"`{name}` went from {change(mass).start:.3g} to {mass.end:.3g}"
    entropy = stage.find_probe("chosen", "entropy") or stage.find_metric("entropy")
    if entropy is not None:
        start = change(entropy).start
        if verdict := _moved(change(entropy), limits.entropy_rise * abs(start), limits.entropy_fall * abs(start)):
            return -verdict, f"entropy went from {start:.3g} to {entropy.end:.3g}"
    greedy = stage.find_probe("greedy", "delta") or stage.find_probe("greedy", "mean_logprob")
    if greedy is not None and change(greedy).rose(limits.mass_shift):
        return _GATHERS, f"greedy answers moved {change(greedy).amount:+.3g} nats per token"
    return _UNSEEN, "whether the mass went to the argmax was not seen: probes measure it as `argmax_mass`"


def _moved(change: Change, up: float, down: float) -> int:
    return 1 if change.rose(up) else -1 if change.fell(down) else 0
