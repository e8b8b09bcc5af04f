"""The lines of ``metrics.jsonl`` and ``probes.jsonl``, under the names that readers of a run rely on."""

from typing import Literal, TypeAlias, TypedDict

Stage: TypeAlias = Literal["stage1", "stage2"]

MetricsLine = TypedDict(
    "MetricsLine",
    {
        "stage": Stage,
        "step": int,
        "loss": float,
        "rewards/chosen": float,
        "rewards/rejected": float,
        "rewards/margins": float,
        "rewards/accuracies": float,
        "logps/chosen": float,
        "logps/rejected": float,
        "logps_mean/chosen": float,
        "logps_mean/rejected": float,
        "cooling/mean": float,
        "cooling/p10": float,
        "cooling/p50": float,
        "cooling/p90": float,
        "cooling/histogram": list[int],
        "grad_norm": float,
        "entropy": float,
        "num_tokens": float,
        "negatives/on_policy": float,
        "negatives/level": float,
        "negatives/lbar": float,
    },
    total=False,
)
"""One logged step. Rewards are beta times log-ratios; ``logps`` sums and ``logps_mean`` means over tokens, in nats.
``cooling/histogram`` counts the w_c since the line before in ten equal bins of [0, 1]; loggers do not get it.
``negatives`` are of on-policy sampling and its curriculum, see docs/curriculum.md."""


PROBE_GROUPS = (
    "chosen",
    "rejected",
    "gentle",
    "longer",
    "shorter",
    "greedy",
    "on_policy",
    "shuffled",
    "other_answer",
    "other_image",
    "blank",
)
"""Groups of answers that probes measure, in the order of a reading's lines."""


class ProbeLine(TypedDict, total=False):
    """One group of answers in one probe reading; from ``entropy`` on they stand on the ``chosen`` group only."""

    stage: Stage
    step: int
    group: str
    """One of :data:`PROBE_GROUPS`."""

    n: int
    mean_logprob: float
    """Mean lbar of the group, nats per token."""

    delta: float
    """Change of ``mean_logprob`` since the stage began, nats per token."""

    p10: float
    p50: float
    p90: float
    """Quantiles of lbar over the group's answers, nats per token."""

    entropy: float
    top1: float
    argmax_mass: float
    ece: float
    reliability: list[tuple[int, float, float]]
    """``ece`` by bin: tokens, their mean confidence, and the share of them that was right."""

    tv: float
    js: float
    moved_to_argmax: float
    """Of the probability that moved since the stage began, the share that went to the then likeliest token."""

    seconds: float
    """What the reading cost."""
