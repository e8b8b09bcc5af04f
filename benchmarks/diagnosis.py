"""How soon falls are named and how often healthy runs are blamed: ``python -m benchmarks.diagnosis``.

Histories are simulated at the scales and with the noise of real runs, because only there is the true curve known.
``--recorded DIR`` judges recorded ones instead: ``prob_train_metrics.json`` as in the repository
Joshua-Ren/Learning_dynamics_LLM, a line a reading with the summed log-probs of one set of chosen and rejected answers.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from cwdpo.diagnosis import diagnose

Line: TypeAlias = dict[str, Any]
Form: TypeAlias = Literal["metrics", "trainer state", "log-probs", "held-out rows", "probes"]
"""What a history consists of: our metrics, TRL's log, sums of log-probs alone, evaluation rows, or probe readings."""

FORMS: tuple[Form, ...] = get_args(Form)
_WITHOUT_ROWS: tuple[Form, ...] = ("metrics", "trainer state", "held-out rows", "probes")
"""The forms that do not show how long and hard the answers of each batch are."""

NAMES = frozenset({"squeezing", "likelihood_displacement"})
BETA = 0.1
BEGINS = 0.02
"""Share of the chosen answers' NLL at the start: a fall has begun once the true curve is this much below its best."""


@dataclass(frozen=True)
class Kind:
    """What happens in a run; every curve over the share of the run from 0 to 1."""

    name: str
    chosen: Callable[[float], float]
    """Change of chosen answers, in shares of their NLL at the start."""

    rejected: float = -0.6
    """Change of rejected answers at the end, in shares of their NLL at the start."""

    argmax: float = 0.0
    """Change of the probability of the likeliest token at the end."""

    falls: bool = False
    bump: float = 0.0
    """A spike within the first tenth, in shares of the NLL."""

    prefers: bool = True
    turns: float | None = None
    """Share of the run at which chosen answers are at their best, where they fall from there on."""


def _rises(top: float, until: float = 1 / 3) -> Callable[[float], float]:
    return lambda t: top * min(1.0, t / until)


def _after(begin: float, fall: float, before: float = 0.0) -> Callable[[float], float]:
    """Rises to ``before`` at ``begin``, and falls by ``fall`` from there to the end."""
    return lambda t: before * t / begin if t < begin else before - fall * (t - begin) / (1 - begin)


HEALTHY: Sequence[Kind] = (
    Kind("rises and stays", _rises(0.08)),
    Kind("rises and stays, surer", _rises(0.12), argmax=0.08),
    Kind("rises to the end", lambda t: 0.15 * t, argmax=0.05),
    Kind("rises fast, then slowly", lambda t: 0.2 * (1 - math.exp(-6 * t))),
    Kind("stays", lambda t: 0.0, rejected=-0.1),
    Kind("cooled: dips and comes back", lambda t: 0.04 * t - 0.01 * math.sin(math.pi * min(1.0, 2 * t)), -0.15),
    Kind("supervised", lambda t: 0.3 * (1 - math.exp(-3 * t)), rejected=0.1, argmax=0.05, prefers=False),
    Kind("stays while the margin grows", lambda t: 0.0, rejected=-1.0, argmax=0.1),
    Kind("warm restart", lambda t: 0.08 * min(1.0, 1.5 * t) - 0.006 * math.exp(-(((t - 0.5) / 0.03) ** 2))),
    Kind("rises in steps", lambda t: 0.03 * math.floor(3 * t + 1e-9), argmax=0.05),
    Kind("spike in the warm-up", _rises(0.08), bump=0.06),
    Kind("dip in the warm-up", _rises(0.08), bump=-0.06),
)
FALLING: Sequence[Kind] = (
    Kind("rises, then below the start", _after(1 / 3, 0.14, 0.08), -1.2, 0.15, True),
    Kind("rises, then back to the start", _after(1 / 3, 0.08, 0.08), -0.6, 0.12, True),
    Kind("rises, then half back", _after(0.4, 0.04, 0.08), -0.5, 0.1, True),
    Kind("falls at once, and levels out", lambda t: -0.3 * (1 - math.exp(-5 * t)), -1.5, 0.1, True),
    Kind("falls at once", lambda t: -0.4 * t, -1.5, 0.1, True),
    Kind("falls slowly", lambda t: -0.1 * t, -0.8, 0.05, True),
    Kind("collapses late", _after(0.75, 0.4, 0.05), -1.5, 0.2, True),
    Kind("falls in steps", lambda t: 0.04 - 0.05 * math.floor(4 * t) if t < 1 else -0.16, -0.8, 0.1, True),
)


def _turns(name: str, at: float, best: float, end: float, rejected: float) -> Kind:
    return Kind(name, _after(at, best - end, best), rejected, 0.1, falls=True, turns=at)


TURNING: Sequence[Kind] = (
    _turns("turns at a third, falls below the start", 1 / 3, 0.08, -0.06, -1.1),
    _turns("turns at a third, back to the start", 1 / 3, 0.08, 0.0, -0.7),
    _turns("turns at a third, half back", 1 / 3, 0.08, 0.04, -0.5),
    _turns("turns at a quarter, falls below the start", 0.25, 0.05, -0.1, -1.0),
    _turns("turns late, back to the start", 0.55, 0.1, 0.0, -0.8),
)
"""As recorded runs of language models under DPO: chosen answers gain up to a tenth of their NLL, and lose it again."""

SCALES: Sequence[tuple[float, float]] = ((8.0, 20.0), (25.0, 12.0), (60.0, 60.0), (150.0, 90.0), (400.0, 320.0))
"""(nats, tokens) of a chosen answer at the start: from captions of one sentence to long replies."""

NOISES: Mapping[str, float] = {"calm": 0.003, "usual": 0.01, "small batches": 0.03}
"""Standard deviation of a reading of log-ratios, in shares of the chosen answers' NLL."""

LENGTHS = (8, 12, 20, 40, 100, 300)
"""Readings of a history."""

TURNING_LENGTHS = (8, 12, 20, 40, 100)

LOOKS = 12
"""How often a healthy run is looked at while it goes on; a falling one three times as often."""


@dataclass(frozen=True)
class Simulated:
    """One history, and when its fall began."""

    kind: Kind
    form: Form
    lines: Sequence[Line]
    begins: float | None
    """Share of the run; None for a healthy one."""


def simulate(
    kind: Kind, form: Form, *, readings: int, noise: float, scale: tuple[float, float], seed: int
) -> Simulated:
    """A history of so many readings; the same arguments give the same lines."""
    rng = random.Random(f"{kind.name} {form} {readings} {noise} {scale} {seed}")
    lines: list[Line] = []
    correlated, slow = rng.choice((0.0, 0.0, 0.5)), 0.0
    for i in range(readings):
        t = i / (readings - 1)
        slow = correlated * slow + math.sqrt(1 - correlated**2) * rng.gauss(0, 1)
        # log-ratios are 0 at the start, and differ more from batch to batch the further they are from it
        wobble = noise * (slow if form in ("held-out rows", "probes") else slow * math.sqrt(min(1.0, 0.1 + 2 * t)))
        spike = kind.bump if kind.bump and i in _spike(readings) else 0.0
        chosen = kind.chosen(t) + (wobble + spike if i else 0.0)
        rejected = kind.rejected * t**0.8 + (2 * noise * rng.gauss(0, 1) if i else 0.0)
        mass = 0.6 + kind.argmax * t + 0.002 * rng.gauss(0, 1)
        lines += _lines(form, 10 * i, chosen, rejected, mass, scale, rng, prefers=kind.prefers)
    return Simulated(kind, form, lines, _begins(kind) if kind.falls else None)


def _spike(readings: int) -> range:
    first = max(2, readings // 50)
    return range(first, first + max(1, readings // 50))


def _begins(kind: Kind) -> float:
    best = 0.0
    for i in range(1001):
        level = kind.chosen(i / 1000)
        best = max(best, level)
        if level < best - BEGINS:
            return i / 1000
    raise AssertionError(kind.name)


def _lines(form: Form, step: int, chosen: float, rejected: float, mass: float, scale: tuple[float, float],
           rng: random.Random, *, prefers: bool) -> Iterator[Line]:  # fmt: skip
    """The lines of one reading; ``chosen`` and ``rejected`` are changes in shares of an answer's NLL."""
    nll, tokens = scale
    stage = "stage2" if prefers else "stage1"
    moved = {"chosen": chosen * nll, "rejected": rejected * 1.2 * nll}
    start = {"chosen": -nll, "rejected": -1.2 * nll}
    if form == "probes":
        for side, by in moved.items():
            level = {"mean_logprob": (start[side] + by) / tokens, "delta": by / tokens}
            more = {"argmax_mass": mass, "entropy": 3 * (1 - mass)} if side == "chosen" else {}
            yield {"stage": stage, "step": step, "group": side, "n": 64, **level, **more}
        return
    # other rows in every batch, of other lengths: what that adds is in the log-probs and not in the rewards
    rows = 0.0 if form == "held-out rows" else 0.08
    length = {side: tokens * (1 + rows * rng.gauss(0, 1)) for side in moved}
    prefix = "eval_" if form == "held-out rows" else ""
    line: Line = {"step": step} if form == "trainer state" else {"stage": stage, "step": step}
    for side, by in moved.items():
        sums = (start[side] + by) * length[side] / tokens
        line[f"{prefix}logps/{side}"] = sums
        if form == "metrics":
            line[f"logps_mean/{side}"] = sums / length[side]
        if prefers and form != "log-probs":
            line[f"{prefix}rewards/{side}"] = BETA * by
    if prefers and form != "log-probs":
        line[f"{prefix}rewards/margins"] = line[f"{prefix}rewards/chosen"] - line[f"{prefix}rewards/rejected"]
    if form == "metrics":
        line |= {"entropy": 3 * (1 - mass), "grad_norm": math.exp(0.2 * rng.gauss(0, 1)), "loss": 0.6}
    yield line


def first_named(lines: Sequence[Line], *, looks: int) -> float | None:
    """Share of the run at which a fall is first named, looking so many times as it goes on; None if never."""
    steps = sorted({line["step"] for line in lines})
    for step in sorted({steps[math.ceil(len(steps) * k / looks) - 1] for k in range(1, looks + 1)}):
        if is_named([line for line in lines if line["step"] <= step]):
            return step / steps[-1] if steps[-1] else 0.0
    return None


def is_named(lines: Sequence[Line]) -> bool:
    """Whether squeezing or displacement is found."""
    return any(finding.name in NAMES for finding in diagnose(lines, beta=BETA))


def sample(
    kinds: Sequence[Kind],
    seeds: int,
    *,
    lengths: Sequence[int] = LENGTHS,
    noises: Sequence[str] = tuple(NOISES),
    forms: Sequence[Form] = FORMS,
) -> Iterator[tuple[str, Simulated]]:
    """Histories of every kind, form and noise, lengths and scales drawn by the seed; with the name of the noise."""
    for kind in kinds:
        for form in forms:
            for name, noise in ((name, NOISES[name]) for name in noises):
                for seed in range(seeds):
                    rng = random.Random(f"{kind.name} {form} {name} {seed}")
                    readings, scale = rng.choice(lengths), rng.choice(SCALES)
                    yield name, simulate(kind, form, readings=readings, noise=noise, scale=scale, seed=seed)


def healthy_table(seeds: int) -> str:
    """False alarms by form and noise, as Markdown."""
    counts: dict[tuple[str, str], list[int]] = {}
    for noise, one in sample(HEALTHY, seeds):
        count = counts.setdefault((one.form, noise), [0, 0, 0])
        at_end = is_named(one.lines)
        for place, value in enumerate((True, at_end, at_end or first_named(one.lines, looks=LOOKS) is not None)):
            count[place] += value
    rows = [f"| {form} | {noise} | {count[0]} | {count[1]} | {count[2]} |" for (form, noise), count in counts.items()]
    total = [sum(count[place] for count in counts.values()) for place in range(3)]
    return "\n".join(
        [
            f"| healthy histories | noise | number | named at the end | named at any of {LOOKS} looks |",
            "|---|---|---|---|---|",
            *rows,
            f"| all | | {total[0]} | {total[1]} | {total[2]} |",
        ]
    )


def falling_table(seeds: int) -> str:
    """How many falls are named, and how soon, as Markdown."""
    delays: dict[tuple[str, str, str], list[float | None]] = {}
    for noise, one in sample(FALLING, seeds):
        readings = len({line["step"] for line in one.lines})
        length = "40 and more" if readings >= 40 else "8 to 20"
        first = first_named(one.lines, looks=LOOKS * 3)
        delay = None if first is None or one.begins is None else first - one.begins
        source = "log-probs" if one.form == "log-probs" else "the others"
        delays.setdefault((source, length, noise), []).append(delay)
    rows = []
    for (source, length, noise), found in sorted(delays.items()):
        named = sorted(delay for delay in found if delay is not None)
        soon = sum(delay <= 0.1 for delay in named)
        middle = f"{named[len(named) // 2]:.0%}" if named else "-"
        rows.append(f"| {source} | {length} | {noise} | {len(found)} | {len(named)} | {soon} | {middle} |")
    return "\n".join(
        [
            "| falling histories | readings | noise | number | named | within 10 % of the run | median delay |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def turning_table(seeds: int) -> str:
    """How soon a fall is named after chosen answers turned, looking at every reading, as Markdown."""
    delays: dict[tuple[str, int], list[float | None]] = {}
    for noise in NOISES:
        for readings in TURNING_LENGTHS:
            for _, one in sample(TURNING, seeds, lengths=(readings,), noises=(noise,), forms=_WITHOUT_ROWS):
                first = first_named(one.lines, looks=readings)
                turned = one.kind.turns or 0.0
                delays.setdefault((noise, readings), []).append(None if first is None else first - turned)
    rows = []
    for (noise, readings), found in delays.items():
        named = sorted(math.inf if delay is None else delay for delay in found)
        middle = named[len(named) // 2]
        share = f"{middle:.0%} | {middle * (readings - 1):.1f}" if middle < math.inf else "- | -"
        soon = sum(delay <= 0.1 for delay in named) / len(named)
        rows.append(
            f"| {noise} | {readings} | {len(found)} | {sum(d < math.inf for d in named)} | {share} | {soon:.0%} |"
        )
    return "\n".join(
        [
            "| turning, noise | readings | number | named | median delay | in readings | within 10 % of the run |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def recorded_table(directory: Path) -> str:
    """What is found in every recorded run of a directory, as Markdown; steps are numbers of readings."""
    rows, seen = [], set()
    for path in sorted(directory.rglob("*.json")):
        readings = _recorded(path)
        chosen = tuple(line["logps/chosen"] for line in readings)
        if len(chosen) < 10 or chosen in seen:
            continue
        seen.add(chosen)
        best = max(range(len(chosen)), key=chosen.__getitem__)
        share = [(value - chosen[0]) / -chosen[0] for value in (chosen[best], chosen[-1])]
        findings = [finding for finding in diagnose(readings, beta=BETA) if finding.name in NAMES]
        first = next((k for k in range(3, len(chosen) + 1) if is_named(readings[:k])), None)
        said = f"{findings[0].step} | {first}" if findings else "- | -"
        name = path.parent.name if path.stem == "prob_train_metrics" else path.stem
        rows.append(f"| {name} | {len(chosen)} | {share[0]:+.1%} at {best} | {share[1]:+.1%} | {said} |")
    head = "| recorded run | readings | chosen at best | at the end | began after reading | named with reading |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _recorded(path: Path) -> list[Line]:
    """A recorded run as the log of a trainer: log-probs, and rewards made from them. Without rejected answers, as in
    some of the files, these are taken to fall by a nat a reading, which is what the other runs show at least."""
    names = {"chosen": "logps_eval_prob_train/chosen", "rejected": "logps_eval_prob_train/rejected"}
    with path.open(encoding="utf-8") as file:
        objects = [json.loads(line) for line in file if line.startswith("{")]
    objects = [one for one in objects if names["chosen"] in one]
    lines: list[Line] = []
    for i, one in enumerate(objects):
        line: Line = {"step": i}
        for side, name in names.items():
            now, start = one.get(name, -100.0 - i), objects[0].get(name, -100.0)
            line |= {f"logps/{side}": now, f"rewards/{side}": BETA * (now - start)}
        lines.append(line)
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="histories of each kind, form and noise")
    parser.add_argument("--recorded", type=Path, help="directory of recorded runs")
    asked = parser.parse_args()
    if asked.recorded is not None:
        print(recorded_table(asked.recorded))
        return
    print(healthy_table(asked.seeds), end="\n\n")
    print(falling_table(asked.seeds), end="\n\n")
    print(turning_table(asked.seeds))


if __name__ == "__main__":
    main()
