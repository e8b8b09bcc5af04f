"""Margins made of something other than what the picture shows: length, or words alone."""

from cwdpo.diagnosis.curves import Curve, MissingReadingsError
from cwdpo.diagnosis.history import Finding, StageHistory, movements, tokens
from cwdpo.records import ProbeGroup

_OTHER_PICTURES: tuple[ProbeGroup, ...] = ("other_image", "blank")


def length_shortcut(stage: StageHistory) -> Finding | None:
    """Summed margins grow while, token by token, the sides do not come apart."""
    return stage.finding(
        "length_shortcut",
        _paraphrases(stage) or _margins(stage),
        "Balance the lengths: pair answers of similar length, or cut the longer ones. `stage2.cooling` counts per "
        "token and so does not see length. Raise `stage2.beta` to keep the drift of long answers small.",
    )


def image_blindness(stage: StageHistory) -> Finding | None:
    """Answers are as likely under another image, or none: the model reads the words and does not look."""
    chosen = stage.find_probe("chosen", "mean_logprob")
    others = {group: stage.find_probe(group, "mean_logprob") for group in _OTHER_PICTURES}
    if chosen is None or not any(others.values()):
        least = stage.limits.min_probe_readings
        raise MissingReadingsError(f"probe groups `chosen` and `other_image` or `blank`, {least} readings or more")
    blind = (_blind(stage, chosen, other, group) for group, other in others.items() if other is not None)
    return stage.finding(
        "image_blindness",
        next(filter(None, blind), None),
        "Use negatives that only the image rules out (`gentle`: one attribute changed; another image's answer), and "
        "check with `cwdpo check` that the rows' images are the right ones. If the vision tower does not know such "
        "images, try `model.freeze_vision: false`.",
    )


def _blind(stage: StageHistory, chosen: Curve, other: Curve, group: str) -> str | None:
    limits = stage.limits
    start, end = chosen.start - other.start, chosen.end - other.end
    gap = f"chosen answers are {end:.2g} nats per token likelier under their own image than in probe group `{group}`"
    if abs(end) <= limits.blind_gap:
        return gap
    gap_change = chosen.minus(other).change(limits.sigmas)
    if start >= limits.blind_move and gap_change.fell((1 - limits.blind_shrink) * start):
        return f"{gap}, {start:.2g} at the start"
    moved, along = chosen.change(limits.sigmas), other.change(limits.sigmas)
    if stage.prefers and moved.rose(limits.blind_move) and along.amount >= limits.blind_track * moved.amount:
        return (
            f"chosen answers gained {moved.amount:.2g} nats per token, and {along.amount:.2g} in probe group `{group}` "
            "too: what was learned does not come from the image"
        )
    return None


def _paraphrases(stage: StageHistory) -> str | None:
    longer, shorter = stage.find_probe("longer", "delta"), stage.find_probe("shorter", "delta")
    if longer is None or shorter is None:
        return None
    change = longer.minus(shorter).change(stage.limits.sigmas, base=0.0)
    if not (change.rose(stage.limits.length_bias) or change.fell(stage.limits.length_bias)):
        return None
    which = "longer" if change.amount > 0 else "shorter"
    return f"{which} paraphrases of the chosen answers gained {abs(change.amount):.2g} nats per token on the others"


def _margins(stage: StageHistory) -> str | None:
    limits, lengths = stage.limits, (tokens(stage, "chosen"), tokens(stage, "rejected"))
    if lengths[0] is None or lengths[1] is None:
        raise MissingReadingsError("`logps` and `logps_mean` of both sides, or probe groups `longer` and `shorter`")
    mean = (lengths[0] + lengths[1]) / 2
    if abs(lengths[0] - lengths[1]) < limits.length_imbalance * mean:
        return None
    each = stage.metric("logps_mean/chosen").minus(stage.metric("logps_mean/rejected"))
    grown = _summed_margin(stage)
    promised, change = grown / mean, each.change(limits.sigmas)
    of_length = promised - change.amount > change.doubt and change.amount <= limits.length_share * promised
    if grown < limits.margin_rise or not of_length:
        return None
    return (
        f"the summed margin grew by {grown:.3g} nats per answer and the margin per token by {change.amount:+.2g}, "
        f"where {promised:.2g} would belong to it; chosen answers have {lengths[0]:.0f} tokens, rejected ones "
        f"{lengths[1]:.0f}"
    )


def _summed_margin(stage: StageHistory) -> float:
    """Growth of the margin, nats an answer."""
    margin = stage.find_metric("rewards/margins")
    if margin is not None:
        return margin.change(stage.limits.sigmas, base=0.0).amount / stage.beta
    chosen, rejected = movements(stage, "chosen")[-1], movements(stage, "rejected")[-1]
    return chosen.change(stage.limits.sigmas).amount - rejected.change(stage.limits.sigmas).amount
