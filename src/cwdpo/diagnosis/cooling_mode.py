"""Whether a stage cools its negatives, as its readings show it: advice depends on it."""

from typing import Literal, TypeAlias

from cwdpo.diagnosis.history import StageHistory

CoolingMode: TypeAlias = Literal["off", "constant", "on"]


def cooling_mode(stage: StageHistory) -> CoolingMode:
    """``off`` where the weight is 1 or never logged, ``constant`` where it is one number for all negatives."""
    mean, low, high = (stage.metrics.get(f"cooling/{part}") for part in ("mean", "p10", "p90"))
    if mean is None or min(mean.values) > 1 - 1e-6:
        return "off"
    spread = low is not None and high is not None and any(a != b for a, b in zip(low.values, high.values, strict=False))
    varies = max(mean.values) - min(mean.values) > 1e-6
    return "on" if spread or varies else "constant"


def hold_negatives_back(stage: StageHistory) -> str:
    """What to change so that negatives pull less."""
    mode = cooling_mode(stage)
    if mode == "on":
        return (
            "Raise `stage2.cooling.floor` so that easy negatives weigh less, or lower `stage2.cooling.temperature` "
            "so that the switch is sharper"
        )
    if mode == "constant":
        return "Take `stage2.cooling.constant` out: one weight for all negatives only delays it, cooling picks the easy"
    return "Cool the negatives: write `stage2.cooling: {floor: gentle}`, or `floor: mean` without gentle negatives"
