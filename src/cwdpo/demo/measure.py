"""What the demo says of a model: its captions judged by the exact checker, and its likelihoods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cwdpo.data.rows import Row
from cwdpo.demo.checker import Verdict, check_caption, win_rate
from cwdpo.demo.scenes import Scene
from cwdpo.engine import Engine
from cwdpo.evaluation.held_out import evaluate_rows
from cwdpo.generation import generate_answers
from cwdpo.models.loading import load_policy
from cwdpo.models.processors import load_processor
from cwdpo.reference import FrozenCopy

_LONGEST = 40  # tokens; the longest caption of the grammar has 24


@dataclass(frozen=True)
class HeldOut:
    """Rows that no method was trained on, and what is really in their pictures."""

    rows: Sequence[Row]
    scenes: Sequence[Scene]


@dataclass(frozen=True)
class Captions:
    """A model's captions of the held-out pictures."""

    greedy: Sequence[str]
    sampled: Sequence[str]
    """At temperature 1."""


def write_captions(checkpoint: Path, held_out: HeldOut, *, seed: int) -> Captions:
    """Let the model of a checkpoint caption every held-out picture, greedily and sampled."""
    model, processor = load_policy(checkpoint, dtype="float32"), load_processor(checkpoint)

    def captions(temperature: float | None) -> list[str]:
        return generate_answers(
            model,
            processor,
            held_out.rows,
            batch_size=128,
            max_new_tokens=_LONGEST,
            temperature=temperature,
            seed=seed,
        )

    return Captions(greedy=captions(None), sampled=captions(1.0))


def judge_captions(captions: Captions, rival: Captions, held_out: HeldOut) -> dict[str, float]:
    """Exactness and hallucination against the ground truth, and how often the captions beat a rival's.

    Returns:
        ``exact``, ``exact_sampled``, ``hallucination`` (greedy), ``win`` and ``win_sampled``, all from 0 to 1.
    """
    greedy, sampled = (_verdicts(texts, held_out.scenes) for texts in (captions.greedy, captions.sampled))
    return {
        "exact": fmean(verdict.exact for verdict in greedy),
        "exact_sampled": fmean(verdict.exact for verdict in sampled),
        "hallucination": fmean(verdict.hallucinated for verdict in greedy),
        "win": win_rate(captions.greedy, rival.greedy, held_out.scenes),
        "win_sampled": win_rate(captions.sampled, rival.sampled, held_out.scenes),
    }


def compare_likelihoods(checkpoint: Path, start: Path, held_out: HeldOut, engine: Engine) -> Mapping[str, float]:
    """Likelihoods of the held-out answers beside those of the model that the last phase started from.

    Returns:
        As :func:`cwdpo.evaluation.held_out.evaluate_answers`.
    """
    model, reference = (load_policy(path, dtype="float32") for path in (checkpoint, start))
    return evaluate_rows(model, FrozenCopy(reference, engine), load_processor(checkpoint), held_out.rows, engine)


def _verdicts(captions: Sequence[str], scenes: Sequence[Scene]) -> list[Verdict]:
    return [check_caption(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
