"""What the model has become: too sure of itself, or far from where it started."""

import math

from cwdpo.diagnosis.curves import MissingReadingsError
from cwdpo.diagnosis.history import Finding, StageHistory, hold_negatives_back, movements
from cwdpo.records import ProbeMeasure, Side


def overconfidence(stage: StageHistory) -> Finding | None:
    """The model grows surer than it is right."""
    said = _calibration(stage) or _surprise(stage) or _collapse(stage)
    remedy = hold_negatives_back(stage) if stage.prefers else "Train for fewer steps, or on more rows"
    rate = "stage2" if stage.prefers else "stage1"
    smoother = "" if stage.prefers else " `stage1.objective: smoothed` keeps some doubt."
    advice = f"{remedy}. Else lower `{rate}.trainer.learning_rate`, and choose an earlier checkpoint.{smoother}"
    return stage.finding("overconfidence", said, advice)


def reference_drift(stage: StageHistory) -> Finding | None:
    """The policy is no longer near the model that it is held to."""
    return stage.finding(
        "reference_drift",
        _moved_mass(stage) or _moved_answers(stage),
        "Raise `stage2.beta`, which is what holds the policy to the reference, or lower "
        f"`stage2.trainer.learning_rate` or its steps. {hold_negatives_back(stage)}.",
    )


def _calibration(stage: StageHistory) -> str | None:
    limits, ece = stage.limits, stage.find_probe("chosen", "ece")
    if ece is None or len(ece) < limits.min_calibration_readings:
        return None
    change = ece.change(limits.sigmas)
    if not change.rose(limits.ece_rise) or change.end < limits.ece_ratio * change.start:
        return None
    said = f"the calibration error (`ece`) of chosen tokens went from {change.start:.3f} to {change.end:.3f}"
    error = stage.calibration_error
    if error is None:
        return said
    # both are measured on a sample of tokens; that it is the same sample makes the difference a little surer than this
    chance = math.sqrt(2) * error
    if change.held - change.start < limits.ece_sigmas * chance:
        return None
    return f"{said}, a difference with a standard error of {chance:.3f} from so few tokens"


def _surprise(stage: StageHistory) -> str | None:
    """A calibrated model's NLL is its entropy, so the two grow apart where it is surer than right."""
    for where, entropy, level in (
        ("probes", stage.find_probe("chosen", "entropy"), stage.find_probe("chosen", "mean_logprob")),
        ("training rows", stage.find_metric("entropy"), stage.find_metric("logps_mean/chosen")),
    ):
        if entropy is None or level is None:
            continue
        ratio = level.against(entropy, lambda logprob, uncertainty: -logprob / max(uncertainty, 1e-6))
        change, down = ratio.change(stage.limits.sigmas), entropy.change(stage.limits.sigmas)
        if change.start > 0 and change.rose((stage.limits.surprise_ratio - 1) * change.start) and down.fell(0.0):
            return (
                f"the model became surer (entropy of chosen tokens {down.start:.3g} to {down.end:.3g} nats) but not "
                f"better (NLL / entropy {change.start:.3g} to {change.end:.3g}, where 1 is calibrated), in {where}"
            )
    return None


def _collapse(stage: StageHistory) -> str | None:
    """Where NLLs per token are missing, entropy alone; learning itself lowers it in a supervised stage."""
    entropy = stage.find_probe("chosen", "entropy") or stage.find_metric("entropy")
    if entropy is None:
        raise MissingReadingsError(
            f"`entropy` of the metrics, {stage.limits.min_metric_readings} readings or more, or of probe group "
            f"`chosen`, {stage.limits.min_probe_readings} or more"
        )
    if not stage.prefers or "logps_mean/chosen" in stage.metrics:
        return None
    change = entropy.change(stage.limits.sigmas)
    if not change.fell(stage.limits.entropy_collapse * abs(change.start)):
        return None
    return f"the entropy of the answers collapsed from {change.start:.3g} to {change.end:.3g} nats"


def _moved_mass(stage: StageHistory) -> str | None:
    distances: tuple[tuple[ProbeMeasure, float, str], ...] = (
        ("tv", stage.limits.drift_tv, "total variation"),
        ("js", stage.limits.drift_js, "Jensen-Shannon divergence in nats"),
    )
    for name, limit, words in distances:
        curve = stage.find_probe("chosen", name)
        if curve is not None and curve.change(stage.limits.sigmas, base=0.0).rose(limit):
            return f"the distance to the reference on chosen tokens (`{name}`, {words}) is {curve.end:.3g}"
    return None


def _moved_answers(stage: StageHistory) -> str | None:
    """Chosen answers that rise are what training is for: of them only a fall is drift."""
    limits = stage.limits
    most: dict[Side, tuple[float, float]] = {
        "chosen": (limits.drift_chosen, limits.drift_share_chosen),
        "rejected": (limits.drift_rejected, limits.drift_share_rejected),
    }
    for side, (per_token, share) in most.items():
        for movement in movements(stage, side):
            change = movement.change(limits.sigmas)
            least = max(per_token if movement.per_token else limits.drift_answer, share * (movement.start_nll or 0.0))
            if change.fell(least) or (side == "rejected" and change.rose(least)):
                return f"{side} answers moved {change.amount:+.3g} {movement.unit} in {movement.source}"
    return None
