"""Negatives that teach nothing, teach the wrong thing, or are not heard."""

from cwdpo.diagnosis.curves import MissingReadingsError
from cwdpo.diagnosis.history import (
    Finding,
    StageHistory,
    cooling_mode,
    hold_negatives_back,
    movements,
    pairs_of_movements,
    tokens,
)
from cwdpo.records import ProbeGroup

_NOBODY_SAYS: tuple[ProbeGroup, ...] = ("shuffled", "other_answer")
_HARD: tuple[ProbeGroup, ...] = ("gentle", "on_policy", "rejected")


def easy_negative_saturation(stage: StageHistory) -> Finding | None:
    """Negatives that were improbable from the start, and are still pushed further down."""
    limits = stage.limits
    advice = (
        f"{hold_negatives_back(stage)}. Better negatives teach more: answers with one mistake (`gentle`), or the "
        "model's own wrong ones."
    )
    for group in _NOBODY_SAYS:
        delta = stage.find_probe(group, "delta")
        if delta is not None and delta.change(limits.sigmas, base=0.0).fell(limits.free_fall):
            fall = f"fell by {-delta.end:.3g} nats per token"
            said = f"answers of probe group `{group}` {fall}, though nobody would say them"
            return stage.finding("easy_negative_saturation", said, advice)
    gap = _easy_gap(stage)
    accuracy = stage.metric("rewards/accuracies")
    rejected = movements(stage, "rejected")[-1]
    change = rejected.change(limits.sigmas)
    falls = rejected.start_nll is not None and change.fell(limits.easy_fall * rejected.start_nll)
    if gap is None or accuracy.end < limits.easy_accuracy or not falls:
        return None
    return stage.finding(
        "easy_negative_saturation",
        f"{gap}, {accuracy.end:.0%} of pairs are in the right order, and rejected answers still moved "
        f"{change.amount:+.3g} {rejected.unit}",
        advice,
    )


def stale_contrast(stage: StageHistory) -> Finding | None:
    """No pair is left that pulls: every negative is cooled away, or every margin is past the sigmoid's bend."""
    limits, accuracy = stage.limits, stage.metric("rewards/accuracies")
    advice = (
        "Stop here, or bring negatives that the model still finds likely: its own wrong answers, sampled again as it "
        "changes, or answers with one mistake (`gentle`)."
    )
    order = f"{accuracy.end:.0%} of pairs are in the right order"
    if cooling_mode(stage) == "on":
        shut = _shut(stage)
        said = f"{shut}, and {order}: no negative is left to learn from" if shut else None
    else:
        margin = stage.metric("rewards/margins").end
        said = f"the reward margin is {margin:.3g} and {order}: the gradient of most pairs is gone"
        said = said if margin >= limits.saturated_margin else None
    return stage.finding("stale_contrast", said if accuracy.end >= limits.easy_accuracy else None, advice)


def over_cooling(stage: StageHistory) -> Finding | None:
    """Nearly every negative is cooled away although hard ones are left."""
    if cooling_mode(stage) != "on":
        if "cooling/mean" not in stage.metrics:
            raise MissingReadingsError("`cooling/mean`, which a run with `stage2.cooling` logs")
        return None
    shut, hard = _shut(stage), _hard_negatives(stage)
    return stage.finding(
        "over_cooling",
        f"{shut}, although {hard}" if shut and hard else None,
        "Lower `stage2.cooling.floor` (`mean`, or a lower `quantile:q`), or raise `stage2.cooling.temperature`, so "
        "that hard negatives count. `cwdpo diagnose` looks at `cooling/p90`: it should stay well above 0.",
    )


def false_negatives(stage: StageHistory) -> Finding | None:
    """Rejected answers gain on chosen ones, or stay likelier: some of them are probably right."""
    return stage.finding(
        "false_negatives",
        _rejected_gains(stage) or _rejected_leads(stage),
        "Read some pairs: chosen and rejected may be swapped, or rejected answers right. Drop negatives that "
        "a checker finds right, above all those sampled from the model; train longer in stage 1, or raise "
        "`stage1.penalty`, if the model prefers small mistakes.",
    )


def _rejected_gains(stage: StageHistory) -> str | None:
    for chosen, rejected in pairs_of_movements(stage):
        rise, change = rejected.change(stage.limits.sigmas), chosen.change(stage.limits.sigmas)
        least = stage.limits.blind_move if rejected.per_token else stage.limits.margin_rise
        margin = stage.find_metric("rewards/margins")
        if rise.rose(least) and rise.amount >= change.amount and (margin is None or margin.end <= 0):
            return (
                f"rejected answers rose by {rise.amount:.3g} {rejected.unit} and chosen ones by {change.amount:+.3g}, "
                f"in {rejected.source}"
            )
    return None


def _rejected_leads(stage: StageHistory) -> str | None:
    limits, accuracy = stage.limits, stage.find_metric("rewards/accuracies")
    if accuracy is not None and accuracy.end > limits.chance_accuracy:
        return None
    for chosen, rejected, where in (
        (stage.find_probe("chosen", "mean_logprob"), stage.find_probe("rejected", "mean_logprob"), "probes"),
        (stage.find_metric("logps_mean/chosen"), stage.find_metric("logps_mean/rejected"), "training rows"),
    ):
        if chosen is None or rejected is None:
            continue
        lead = rejected.minus(chosen)
        if min(lead.start, lead.end) >= limits.likelier and not lead.change(limits.sigmas).fell(limits.likelier):
            right = "" if accuracy is None else f", and {accuracy.end:.0%} of pairs are in the right order"
            return (
                f"rejected answers are still {lead.end:.2g} nats per token likelier than chosen ones "
                f"({lead.start:.2g} at the start, in {where}){right}"
            )
    return None


def _shut(stage: StageHistory) -> str | None:
    """That all weights are near 0, in words; None where they are not."""
    mean, tail = stage.metric("cooling/mean").end, stage.find_metric("cooling/p90")
    if mean > stage.limits.shut_weight or (tail is not None and tail.end > stage.limits.open_tail):
        return None
    return f"`cooling/mean` is {mean:.2g}" + ("" if tail is None else f" and `cooling/p90` {tail.end:.2g}")


def _hard_negatives(stage: StageHistory) -> str | None:
    """That negatives are left which the model finds likely, in words; None where none are seen."""
    limits, accuracy = stage.limits, stage.find_metric("rewards/accuracies")
    if accuracy is not None and accuracy.end < limits.hard_accuracy:
        return f"only {accuracy.end:.0%} of pairs are in the right order"
    logged, probed = stage.find_metric("logps_mean/chosen"), stage.find_probe("chosen", "mean_logprob")
    levels = [("rejected answers", logged, stage.find_metric("logps_mean/rejected"))]
    for group in _HARD:
        levels.append((f"answers of probe group `{group}`", probed, stage.find_probe(group, "mean_logprob")))
    for answers, chosen, level in levels:
        if chosen is not None and level is not None and chosen.end - level.end < limits.hard_gap:
            return f"{answers} are within {chosen.end - level.end:.2g} nats per token of chosen ones"
    return None


def _easy_gap(stage: StageHistory) -> str | None:
    """That rejected answers were far less likely than chosen ones at the start; None where they were not."""
    chosen, rejected = movements(stage, "chosen")[-1].start_nll, movements(stage, "rejected")[-1].start_nll
    if chosen is None or rejected is None:
        return None
    if tokens(stage, "chosen") is not None and tokens(stage, "rejected") is not None:
        if rejected - chosen < stage.limits.easy_gap:
            return None
        return f"rejected answers began {rejected - chosen:.2g} nats per token less likely than chosen ones"
    if rejected >= stage.limits.easy_ratio * chosen:
        return f"rejected answers began at {-rejected:.3g} nats beside {-chosen:.3g} of chosen ones"
    return None
