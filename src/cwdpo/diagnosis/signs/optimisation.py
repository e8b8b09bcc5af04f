"""The training itself: numbers that are not finite, gradients that jump, a wrong reference, no progress."""

import math
from statistics import median
from typing import get_args

from cwdpo.diagnosis.curves import Curve, MissingReadingsError
from cwdpo.diagnosis.history import Finding, StageHistory, fall_that_counts, movements, same_answers, tokens
from cwdpo.records import Side

_SIDES: tuple[Side, ...] = get_args(Side)


def non_finite_loss(stage: StageHistory) -> Finding | None:
    """A loss that is not finite, or gradients that are not, again and again."""
    limits, gradients = stage.limits, stage.broken.get("grad_norm", ())
    names = [name for name in stage.broken if name not in ("grad_norm", "entropy") and not name.startswith("eval_")]
    if len(gradients) >= limits.bad_gradients or stage.last_step in gradients:
        names.append("grad_norm")
    if not names and stage.num_metrics < limits.min_metric_readings:
        raise MissingReadingsError(
            f"`loss` and the like, {limits.min_metric_readings} readings or more ({stage.num_metrics} found)"
        )
    if not names:
        return None
    first = min(stage.broken[name][0] for name in names)
    named = ", ".join(f"`{name}` {len(stage.broken[name])} times" for name in names)
    return stage.finding(
        "non_finite_loss",
        f"first of the readings that are not finite: {named}",
        "Go back to a checkpoint from before this step. Train in bfloat16 or float32 (`model.dtype`, "
        "`trainer.bf16: true`) instead of float16, lower `trainer.learning_rate`, add `trainer.warmup_steps`, "
        "and keep `trainer.max_grad_norm: 1.0`.",
        step=first,
    )


def reward_at_start(stage: StageHistory) -> Finding | None:
    """Rewards before the first update, where policy and reference should be one model and rewards 0."""
    if not stage.has_steps:
        raise MissingReadingsError("steps: the lines do not say which is the first")
    limits = stage.limits
    seen = {side: stage.metrics.get(f"rewards/{side}") for side in _SIDES}
    first = {side: curve.values[0] for side, curve in seen.items() if curve is not None and curve.steps[0] <= 1}
    if not first:
        raise MissingReadingsError("`rewards/chosen` at step 0 or 1: write `trainer.logging_first_step: true`")
    off = {}
    for side, reward in first.items():
        if abs(reward) / stage.beta > max(limits.start_reward, limits.start_reward_token * (tokens(stage, side) or 0)):
            off[side] = reward
    if not off:
        return None
    rewards = " and ".join(f"{side} {reward:+.3g} ({reward / stage.beta:+.3g} nats)" for side, reward in off.items())
    return stage.finding(
        "reward_at_start",
        f"the rewards are not 0 before the first update: {rewards}. The reference is not the model that is trained",
        "Take the reference from the model that this stage starts with (leave `ref_model` out), set "
        "`model.lora.dropout` to 0 or expect its noise here, compute both in one precision, and remove a cached "
        "reference of another model.",
        step=seen["chosen"].steps[0] if seen["chosen"] is not None else None,
    )


def gradient_spikes(stage: StageHistory) -> Finding | None:
    """Gradient norms far above their neighbours', more than once."""
    limits, norms = stage.limits, stage.metric("grad_norm")
    spikes = _spikes(norms, limits.spike_ratio, limits.spike_scatter)
    huge = [spike for spike in spikes if spike[2] >= limits.spike_huge]
    if not huge and len(spikes) < max(limits.spike_least, math.ceil(limits.spike_readings * len(norms))):
        return None
    step, value, ratio = max(spikes, key=lambda spike: spike[2])
    part = "stage2" if stage.prefers else "stage1"
    return stage.finding(
        "gradient_spikes",
        f"{len(spikes)} of {len(norms)} gradient norms are more than {limits.spike_ratio:.0f} times their neighbours'; "
        f"the largest is {value:.3g}, {ratio:.0f} times",
        f"Keep `trainer.max_grad_norm: 1.0`, lower `{part}.trainer.learning_rate`, lengthen `trainer.warmup_steps`, or "
        "take larger batches; look at the rows of that step"
        + (", and at `stage2.beta`: large values sharpen the loss." if stage.prefers else "."),
        step=step,
    )


def stalled_learning(stage: StageHistory) -> Finding | None:
    """Preferences at chance after many readings; in a supervised stage, a loss that rises, or the same right answers
    read again that have become less likely."""
    if not stage.prefers:
        return _unlearning(stage)
    limits, loss = stage.limits, stage.metric("loss")
    if len(loss) < limits.stall_readings:
        raise MissingReadingsError(f"`loss`, {limits.stall_readings} readings or more ({len(loss)} found)")
    accuracy, margin = stage.find_metric("rewards/accuracies"), stage.find_metric("rewards/margins")
    at_chance = accuracy is None or accuracy.end <= limits.chance_accuracy
    if not at_chance or abs(loss.end - math.log(2)) > limits.stall_loss * math.log(2):
        return None
    said = f"after {len(loss)} readings the loss is {loss.end:.4f}, as at chance (log 2)"
    if accuracy is not None:
        said += f", {accuracy.end:.0%} of pairs are in the right order"
    moved = [(side, movements(stage, side)[-1]) for side in _SIDES]
    sizes = [
        abs(movement.change(limits.sigmas).amount) * ((tokens(stage, side) or 1) if movement.per_token else 1)
        for side, movement in moved
    ]
    if max(sizes) < limits.stall_move:
        said += f", and no answer moved by more than {max(sizes):.2g} nats"
        advice = "Raise `stage2.trainer.learning_rate`, and check with `cwdpo check --model` that something trains."
    elif margin is None or not margin.change(limits.sigmas).rose(0.0):
        advice = "Pairs may contradict each other or be swapped: read some. Else raise `stage2.trainer.learning_rate`."
    else:
        return None
    return stage.finding("stalled_learning", said, advice)


def _unlearning(stage: StageHistory) -> Finding | None:
    limits, loss = stage.limits, stage.find_metric("loss")
    advice = (
        "Lower `stage1.trainer.learning_rate` or lengthen `trainer.warmup_steps`; if gentle negatives are pushed away "
        "at the cost of the chosen answers, lower `stage1.penalty` or `stage1.ceiling`."
    )
    same = same_answers(stage, "chosen", least=limits.min_fall_same)
    if not same:
        loss = stage.metric("loss")
    for movement in same:
        drop = movement.curve.drop(fall_that_counts(stage, movement), limits.sigmas, base=movement.base)
        if drop is not None:
            return stage.finding(
                "stalled_learning",
                f"right answers lost {drop.amount:.3g} {movement.unit} from their best level, in {movement.source}",
                f"{advice} If they rose before, the stage was too long: choose a checkpoint from before the fall.",
                step=drop.since,
            )
    change = None if loss is None else loss.change(limits.sigmas)
    if change is None or change.start <= 0 or not change.rose(limits.sft_rise * change.start):
        return None
    return stage.finding("stalled_learning", f"the loss rose from {change.start:.3g} to {change.end:.3g}", advice)


def _spikes(norms: Curve, ratio: float, scatters: float) -> list[tuple[int, float, float]]:
    """(step, norm, norm over the median of its neighbourhood) of the readings that stand out."""
    width = max(5, min(51, len(norms) // 5))
    logs = [math.log(value) if value > 0 else None for value in norms.values]
    found = []
    for begin in range(0, len(norms), width):
        near = [log for log in logs[max(0, begin - width) : begin + 2 * width] if log is not None]
        if not near:
            continue
        level = median(near)
        scatter = 1.4826 * median(abs(log - level) for log in near)
        for i in range(begin, min(begin + width, len(norms))):
            log = logs[i]
            if log is not None and log - level > max(math.log(ratio), scatters * scatter):
                found.append((norms.steps[i], norms.values[i], math.exp(log - level)))
    return found
