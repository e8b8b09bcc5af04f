"""What one probe reading says in words, without a history. Floats only."""

import math
from collections.abc import Mapping, Sequence

from cwdpo.diagnosis.history import calibration_error
from cwdpo.diagnosis.thresholds import Thresholds
from cwdpo.records import ProbeGroup, ProbeLine

_SURE = 2.0  # standard errors that a difference between two groups must have to be taken for one
_P10_TO_P90 = 2.5631  # standard deviations between these quantiles of normal values


def words_of_reading(lines: Sequence[ProbeLine], *, thresholds: Thresholds | None = None) -> list[str]:
    """Sentences on whether the model looks at the image, which wrong answers it falls for, how well it knows how sure
    to be, and, where the reading was compared with a reference, what changed.

    Args:
        lines: of one reading, a line a group.
        thresholds: None takes those of the diagnosis.

    Example:
        >>> same = {"n": 64, "p10": -2.0, "p90": -0.5}
        >>> lines = [{"group": group, "mean_logprob": -1.0, **same} for group in ("chosen", "other_image")]
        >>> words_of_reading(lines)[0][:66]
        'The model does not look at the image: right answers are as likely '
    """
    groups: Mapping[ProbeGroup, ProbeLine] = {line["group"]: line for line in lines}
    limits = thresholds or Thresholds()
    chosen = groups.get("chosen")
    if chosen is None:
        return []
    found = [_image(chosen, groups, limits), _wrong(chosen, groups, limits), _one_mistake(chosen, groups.get("gentle"))]
    found += [_calibration(chosen, limits), _change(chosen, groups.get("rejected"), limits)]
    return [sentence for sentence in found if sentence]


def _image(chosen: ProbeLine, groups: Mapping[ProbeGroup, ProbeLine], limits: Thresholds) -> str | None:
    name: ProbeGroup = "other_image" if "other_image" in groups else "blank"
    if name not in groups:
        return None
    gap, error = _gap(chosen, groups[name])
    under = "under another image" if name == "other_image" else "under a blank image"
    if gap > limits.blind_gap and gap > _SURE * error:
        return f"The model looks at the image: right answers are {gap:.2f} nats per token less likely {under}."
    if abs(gap) <= limits.blind_gap:
        return (
            f"The model does not look at the image: right answers are as likely {under} (difference {gap:+z.3f} nats "
            "per token). Check that the rows have the right images, and that the vision tower or projector was trained."
        )
    if gap < 0:
        return f"The model looks at the wrong things: right answers are {-gap:.2f} nats per token likelier {under}."
    return (
        f"Whether the model looks at the image is not clear: right answers are {gap:.2f} nats per token less likely "
        f"{under}, with a standard error of {error:.2f}. Measure more rows (`--rows`)."
    )


def _wrong(chosen: ProbeLine, groups: Mapping[ProbeGroup, ProbeLine], limits: Thresholds) -> str | None:
    if "rejected" not in groups:
        return None
    gap, error = _gap(chosen, groups["rejected"])
    if gap >= limits.easy_gap:
        return (
            f"The rejected answers are easy: {gap:.1f} nats per token less likely than the right ones. Pushing them "
            "further down teaches little and harms others; cooling (`stage2.cooling`) holds it back."
        )
    if gap <= -limits.likelier and -gap > _SURE * error:
        return (
            f"The model prefers the rejected answers: they are {-gap:.2f} nats per token likelier than the right ones. "
            "Read some pairs: they may be swapped; else there is much to learn."
        )
    if gap > _SURE * error:
        return (
            f"The rejected answers are hard enough to learn from: {gap:.2f} nats per token less likely than right ones."
        )
    return f"The model does not separate rejected answers from right ones ({gap:+z.2f} nats per token)."


def _one_mistake(chosen: ProbeLine, gentle: ProbeLine | None) -> str | None:
    if gentle is None:
        return None
    gap, error = _gap(chosen, gentle)
    if gap > _SURE * error:
        return f"It notices single mistakes: answers with one are {gap:.2f} nats per token less likely than right ones."
    return f"It does not notice single mistakes: answers with one are as likely as right ones ({gap:+z.2f})."


def _calibration(chosen: ProbeLine, limits: Thresholds) -> str | None:
    if not {"argmax_mass", "top1", "ece"} <= chosen.keys() or not math.isfinite(chosen["ece"]):
        return None
    sure, right, ece = chosen["argmax_mass"], chosen["top1"], chosen["ece"]
    error = calibration_error(chosen.get("reliability")) or 0.0
    numbers = f"on average {sure:.0%} sure of the next token, and right in {right:.0%} (ECE {ece:.3f}"
    numbers += f", standard error {error:.3f})" if error else ")"
    if abs(sure - right) < limits.ece_rise or abs(sure - right) <= _SURE * error:
        return f"It is about as sure as it is right: {numbers}."
    return f"It is {'surer' if sure > right else 'less sure'} than it is right: {numbers}."


def _change(chosen: ProbeLine, rejected: ProbeLine | None, limits: Thresholds) -> str | None:
    """Against the reference, where there is one."""
    if "delta" not in chosen:
        return None
    delta, start = chosen["delta"], chosen["mean_logprob"] - chosen["delta"]
    least = max(limits.fall_least, limits.fall_share * -start)
    how = "as likely as" if abs(delta) < least else "likelier than" if delta > 0 else "less likely than"
    said = f"Right answers are {how} under the reference ({delta:+z.3f} nats per token"
    said += f", rejected ones {rejected['delta']:+z.2f})" if rejected is not None and "delta" in rejected else ")"
    if "tv" in chosen:
        said += f"; {chosen['tv']:.1%} of the next-token probability has moved"
        gathers = chosen.get("moved_to_argmax", 0.0) > 0.5
        said += ", most of it to the likeliest token: with falling right answers this is squeezing" if gathers else ""
    return f"{said}."


def _gap(chosen: ProbeLine, other: ProbeLine) -> tuple[float, float]:
    """How much likelier right answers are, and a standard error of that, as if the two groups had nothing in common."""
    return chosen["mean_logprob"] - other["mean_logprob"], math.hypot(_error(chosen), _error(other))


def _error(line: ProbeLine) -> float:
    if not {"p10", "p90", "n"} <= line.keys():
        return 0.0
    return (line["p90"] - line["p10"]) / _P10_TO_P90 / math.sqrt(max(1, line["n"]))
