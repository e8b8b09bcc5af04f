"""Make ``docs/results.md`` and its pictures from what ``cwdpo compare`` left: ``python docs/make_results.py``.

The numbers lie in ``docs/results/*.json``: the ``comparison.json`` of each grid, and the answers that
examples/pretrained/answers.py keeps. To make them again, run the grid and copy that file. No number on the page is
written by hand; its first paragraph is computed too.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from cwdpo.compare.grid import START, Cell
from cwdpo.compare.table import Results, Score, Setting, markdown
from cwdpo.report.charts import Curve, Figure, draw_figure

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GRIDS = {
    "headline": "examples/regimes/headline.yaml",
    "regimes": "examples/regimes/regimes.yaml",
    "steps": "examples/regimes/steps.yaml",
    "ablations": "examples/regimes/ablations.yaml",
    "ablation_rates": "examples/regimes/ablation_rates.yaml",
    "variants": "examples/regimes/variants.yaml",
    "floors": "examples/regimes/floors.yaml",
    "sensitivity": "examples/regimes/sensitivity.yaml",
}
"""In the order of the page; the first paragraph speaks of the first four."""
PRETRAINED = {"pretrained": "examples/pretrained/grid.yaml", "own_pairs": "examples/pretrained/own_pairs.yaml"}
"""The grids on the pretrained model; the first paragraph speaks of the first."""
EMOJI = {"emoji": "examples/emoji/regimes.yaml"}
"""The grid on emoji, which has a section with claims of its own."""
SFT, DPO, OURS = "SFT on chosen", "DPO", "CW-DPO"
SHOWN = (SFT, DPO, "DPO, beta .5", OURS)
"""The methods in the pictures; the tables have all."""


class Claim(NamedTuple):
    """A goal, whether the runs reach it, and by which numbers."""

    goal: str
    holds: bool
    evidence: str


def claims(headline: Results, regimes: Results) -> Iterator[Claim]:
    """The headline goals, each with the numbers that decide it. A difference counts from two standard errors on."""
    habit, clean = "habit", "clean"

    def at_best(results: Results, world: str, method: str) -> tuple[str, Setting]:
        return method, results.choice(world, method).setting

    def gap(results: Results, world: str, method: str, other: str, measure: str) -> Score:
        both = at_best(results, world, method), at_best(results, world, other)
        return results.difference(world, *both, measure)

    gaps = {name: gap(headline, habit, OURS, SFT, name) for name in ("exact", "hallucination", "win")}
    yield Claim(
        "With a habit to unlearn, CW-DPO beats SFT on the chosen answers in exactness, hallucination and win rate",
        all(beyond(one) for one in gaps.values()),
        listed(gaps),
    )
    worst, middle = headline.worst(habit, OURS, "win"), headline.middle(habit, DPO, "win")
    yield Claim(
        "With the habit, its worst learning rate beats DPO's middle one in win rate",
        worst.mean > middle.mean,
        f"{worst} against {middle}",
    )
    for measure, answers, wanted in (("win", "greedy", "not behind"), ("win_sampled", "sampled", "ahead of")):
        own, rival = (tuned(headline, habit, family, measure) for family in (OURS, DPO))
        found = headline.difference(habit, own, rival, measure)
        yield Claim(
            f"With the habit, it is {wanted} tuned DPO in the win rate of {answers} answers, each tuned for it",
            beyond(found) if wanted == "ahead of" else not beyond(negative(found)),
            f"{own[0]} less {rival[0]}, each the best of its betas and rates: {found:+}",
        )
    sure = {f"than {method} by": gap(headline, habit, OURS, method, "ece") for method in (SFT, DPO)}
    yield Claim(
        "With the habit, it is better calibrated than SFT and DPO, each at its best",
        all(beyond(one) for one in sure.values()),
        f"calibration error lower {listed(sure)}",
    )
    highest = headline.settings(habit, OURS)[-1]
    sure = {f"{w} by": headline.difference(w, (OURS, highest), (DPO, highest), "ece") for w in (habit, clean)}
    yield Claim(
        "At the highest learning rate it is better calibrated than DPO",
        all(beyond(one) for one in sure.values()),
        f"calibration error lower: {listed(sure)}",
    )
    even = gap(headline, clean, OURS, SFT, "win")
    lost = [headline.difference(clean, (method, highest), (SFT, highest), "win") for method in (OURS, DPO)]
    yield Claim(
        "On right answers with easy negatives it stays within noise of SFT, where DPO loses at the highest rate",
        not beyond(negative(even)) and beyond(negative(lost[1])),
        f"CW-DPO less SFT {even:+} at their best; at the highest rate CW-DPO {lost[0]:+}, DPO {lost[1]:+}",
    )
    everywhere = [m for m in regimes.grid.methods if all(m in regimes.methods(w) for w in regimes.grid.worlds)]
    for measure in ("exact", "win", "exact_sampled", "win_sampled"):
        regrets = {method: regimes.worst_regret(method, measure) for method in everywhere}
        ours, least = regrets[OURS], min(regrets, key=lambda method: regrets[method])
        others = min((name for name in regrets if not name.startswith(OURS)), key=lambda name: regrets[name])
        yield Claim(
            f"It has the smallest largest regret of all methods and constant weights in `{measure}`",
            ours <= regrets[others],
            f"{ours:.3f}; the least of the others is {others} with {regrets[others]:.3f}"
            + ("" if least in (OURS, others) else f"; {least} has {regrets[least]:.3f}"),
        )
        if measure == "exact":
            yield Claim("Its largest regret in `exact` is at most 0.03", ours <= 0.03, f"{ours:.3f}")


def tuned(results: Results, world: str, family: str, measure: str) -> tuple[str, Setting]:
    """The best of a method's variants, whose names begin alike, with its best setting."""
    found = {m: results.choice(world, m, measure) for m in results.methods(world) if m.startswith(family)}
    best = max(found, key=lambda method: found[method].value)
    return best, found[best].setting


def step_claims(results: Results) -> Iterator[Claim]:
    """In how few steps each of two rivals is reached, in the target at the end of their longest runs."""
    world, target = next(iter(results.grid.worlds)), results.grid.target
    lengths = results.settings(world, OURS)
    rivals = {SFT: [SFT], "tuned DPO": [m for m in results.methods(world) if m.startswith(DPO)]}
    for name, family in rivals.items():
        rival = max(family, key=lambda m: results.score(world, m, lengths[-1], target).mean)
        gaps = {
            dict(length)["trainer.max_steps"]: results.difference(world, (OURS, length), (rival, lengths[-1]), target)
            for length in lengths
        }
        longest = max(gaps)
        shorter = {steps: gap for steps, gap in gaps.items() if steps < longest}
        yield Claim(
            f"In fewer steps it reaches what {name} reaches in {longest}, each at its learning rate",
            any(beyond(gap) for gap in shorter.values()),
            f"{target}, less {rival} with {longest}: "
            + ", ".join(f"with {steps} steps {gap:+}" for steps, gap in gaps.items()),
        )


PARTS = {
    "without stage 1": "Stage 1",
    "plain stage 1": "Stage 1's use of gentle negatives",
    "without cooling": "Cooling",
    "without sampled negatives": "Mixing in sampled negatives",
    "without the filter": "Dropping the easiest sampled negatives",
}
"""Runs of the ablations with a part of the method taken out, and the part."""

JUDGED = "with a judge"
"""The run whose sampled negatives are those that a judge found worse than the chosen answer."""


def ablation_claims(results: Results, *, when: str = "") -> Iterator[Claim]:
    """Which parts help, by the whole method less the run without the part: somewhere more, and nowhere less.

    ``when`` says in which of the grids of ablations.
    """
    whole, target = results.grid.baseline or "", results.grid.target

    def gap(world: str, method: str, other: str) -> Score:
        both = [(name, results.settings(world, name)[0]) for name in (method, other)]
        return results.difference(world, *both, target)

    for method, part in PARTS.items():
        gaps = {world: gap(world, whole, method) for world in results.grid.worlds if method in results.methods(world)}
        if gaps:
            yield Claim(
                f"{part} helps in the whole method{when}, in `{target}`",
                any(map(beyond, gaps.values())) and not any(beyond(negative(gap)) for gap in gaps.values()),
                listed(gaps),
            )
    world = next(iter(results.grid.worlds))
    for method, other, goal in (
        (JUDGED, whole, "A judge that leaves out samples as good as the chosen answer helps"),
        (JUDGED, "without sampled negatives", "Sampled negatives help where such a judge looks at them"),
        (JUDGED, f"{JUDGED}, without cooling", "Cooling helps where such a judge looks at samples"),
    ):
        found = gap(world, method, other)
        yield Claim(f"{goal}{when}, in `{target}`", beyond(found), f"{world} {found:+}")


def pretrained_claim(results: Results, answers: Mapping[str, Any]) -> Claim:
    """The goal on the pretrained model; ``answers`` is what examples/pretrained/answers.py wrote."""
    world = next(iter(results.grid.worlds))
    lost = {}
    for setting in results.settings(world, DPO):
        names = {method: ", ".join((method, Cell(world, 0, method, setting).label)) for method in (DPO, OURS)}
        if all(name in answers["runs"] for name in names.values()):
            lost[setting] = {method: answers["runs"][name]["changes"] for method, name in names.items()}
    ruined = [gaps for gaps in lost.values() if gaps[DPO]["who"]["mean"] <= -0.1]

    def listed(gaps: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {change(gaps[name])}" for name in ("who", "tone") if name in gaps)

    untested = "" if ruined else "DPO loses less at every rate that was tried, so this is not tested yet; "
    return Claim(
        "On a pretrained model, at a learning rate where DPO loses 10 points or more of `who`, CW-DPO loses at most 3",
        bool(ruined) and all(gaps[OURS]["who"]["mean"] >= -0.03 for gaps in ruined),
        untested
        + "; ".join(
            f"at {Cell(world, 0, '', setting).label} DPO {listed(gaps[DPO])}; CW-DPO {listed(gaps[OURS])}, in points"
            for setting, gaps in lost.items()
        ),
    )


def emoji_claims(results: Results) -> Iterator[Claim]:
    """What the grid on emoji says of the goals that are set on drawn scenes."""
    target = results.grid.target
    first, *others = results.grid.worlds
    habits = [first, *(world for world in others if world.startswith(first))]

    def at_best(world: str, other: str, measure: str) -> Score:
        both = [(method, results.choice(world, method).setting) for method in (OURS, other)]
        return results.difference(world, *both, measure)

    rivals = [method for method in results.grid.methods if method != OURS]
    for world, measure in product(habits, (target, "exact", "hallucination", "ece")):
        gaps = {f"than {other} by": at_best(world, other, measure) for other in rivals}
        goal = f"In *{world}*, CW-DPO is better than each of the others in `{measure}`, each at its best rate"
        yield Claim(goal, all(map(beyond, gaps.values())), listed(gaps))
    for world in results.grid.worlds:
        highest = results.settings(world, OURS)[-1]
        lost = {m: results.difference(world, (m, highest), (START, ()), target) for m in (SFT, DPO, OURS)}
        yield Claim(
            f"In *{world}*, DPO falls behind the start model at the highest rate and CW-DPO does not",
            beyond(negative(lost[DPO])) and not beyond(negative(lost[OURS])),
            f"`{target}` less the start's: {listed(lost)}",
        )
        worst = {
            m: min(results.settings(world, m), key=lambda setting, m=m: results.score(world, m, setting, target).mean)
            for m in (OURS, DPO)
        }
        gap = results.difference(world, (OURS, worst[OURS]), (DPO, worst[DPO]), target)
        yield Claim(f"In *{world}*, CW-DPO's worst rate is better than DPO's worst", beyond(gap), f"`{target}` {gap:+}")
    for world in (each for each in results.grid.worlds if each not in habits):
        gap = at_best(world, SFT, target)
        yield Claim(
            f"In *{world}*, CW-DPO stays within noise of SFT on chosen, each at its best rate",
            not beyond(negative(gap)),
            f"`{target}` {gap:+}",
        )
        gains = {
            m: results.difference(world, (m, results.choice(world, m).setting), (START, ()), target)
            for m in results.grid.methods
        }
        yield Claim(
            f"In *{world}*, a method gains over the start model, at its best rate",
            any(map(beyond, gains.values())),
            f"`{target}` {listed(gains)}",
        )


def emoji_regret(results: Results) -> Claim:
    """On real pictures, how much not knowing one's regime and rate may cost."""
    target = results.grid.target
    measures = (target, "exact", f"{target}_sampled", "exact_sampled")
    regrets = {m: [results.worst_regret(m, measure) for measure in measures] for m in results.grid.methods}
    names = ", ".join(f"`{measure}`" for measure in measures)
    return Claim(
        f"On real pictures (emoji), it has the smallest largest regret over all worlds and rates, in each of {names}",
        all(min(of_measure) == ours for ours, *of_measure in zip(regrets[OURS], *regrets.values(), strict=True)),
        "; ".join(f"{m} {', '.join(f'{regret:.3f}' for regret in found)}" for m, found in regrets.items()),
    )


def change(found: Mapping[str, float]) -> str:
    """A difference in points with its standard error."""
    return f"{100 * found['mean']:+.1f} ± {100 * found['error']:.1f}"


def pretrained(results: Results, answers: Mapping[str, Any]) -> str:
    """The tables of the pretrained model: every method at every setting, and what each says of the same pictures."""
    world = next(iter(results.grid.worlds))
    measures = results.measures
    changed = list(next(iter(answers["runs"].values()))["changes"])
    lines = [["method", "setting", *measures, *(f"change of {name}, points" for name in changed)]]
    lines.append(["---"] * len(lines[0]))
    for method in results.methods(world):
        for setting in results.settings(world, method):
            label = Cell(world, 0, method, setting).label
            scores = [f"{results.score(world, method, setting, measure)}" for measure in measures]
            found = answers["runs"].get(f"{method}, {label}")
            lines.append([method, label, *scores, *(change(found["changes"][m]) if found else "" for m in changed)])
    last = Cell(world, 0, "", results.settings(world, DPO)[-1]).label
    columns = [START, *(f"{method}, {last}" for method in (SFT, DPO, OURS))]
    said = {name: answers["said"][name] for name in columns if name in answers["said"]}
    beside = [["the picture's name", *said], ["---"] * (len(said) + 1)]
    beside += [[name, *texts] for name, *texts in zip(answers["names"], *said.values(), strict=True)]
    pictures = max(run["pictures"] for run in answers["runs"].values())
    return "\n\n".join(
        [
            table(lines),
            f"*exact*, *tone*, *who*: shares of {pictures} held-out pictures in {seeds_in_words(results)}; *chosen*, "
            "*gentle*, *easy*: mean log-probs of right names, of names that differ in one attribute, and of texts that "
            "are wrong at first sight, nats per token. Changes are from the start, picture by picture, with the "
            "standard error over pictures; how much runs differ from each other it does not say. Each method was "
            "trained once a seed.",
            f"What they say of the first {len(answers['names'])} held-out pictures:",
            table(beside),
        ]
    )


def seeds_in_words(results: Results) -> str:
    """``1 seed`` or ``2 seeds``: those that are done."""
    world = next(iter(results.grid.worlds))
    done = max(results.score(world, START, setting, "who").seeds for setting in results.settings(world, START))
    return f"{done} seed{'s' if done > 1 else ''}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a line break or a bar in a cell would end it."""
    cells = [[re.sub(r"\s*\n\s*", " / ", text).replace("|", "\\|") for text in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


MARK = "<!-- docs/make_results.py -->"
"""Around the parts of the README that are made here."""

TRIED = """\
**What was tried for the rest**, each in the tables below. Dropping pairs whose weight is under .05 helps where half
of them are easy, and harms on clean answers, which have something to teach in these pairs too. Scaling whole pairs,
and WPO, fall apart as DPO does. The weight with its gradient changes nothing beyond noise. A larger beta loses more
in sampled answers than it gains; a smaller one, .03, changes nothing beyond noise. The mean of the negatives as floor
is better in one regime and worse in the others, and so is each constant weight. So the default stays. Its largest
regret in sampled answers is of one place: half of the pairs easy, at the highest rate. There a cooled pair goes on to
imitate a chosen answer that is itself mediocre, while under DPO it has soon nothing left to teach.

In the ablations, where the chosen captions are right, cooling and sampled negatives each help a little, and nothing
harms; no run is better there than its start, as these are few steps for a model that already knows the world. With
the habit, sampled negatives harm, and so hide what the other parts do: they take the place of half of the rejected
answers, but the chosen captions are the model's own there, so that a sample is often no worse. A judge that leaves
such samples out brings the loss back, and no more than that. Where chosen answers are not right, sample with a judge.
After a first stage, at this learning rate, DPO does not fall apart in 80 steps with the habit either, and is ahead of
cooling. At three times the rate this is turned round: with the habit cooling then helps, and no variant has a larger
regret than the one without it. Where chosen is right every variant ends below its start there, those without cooling
furthest. What cooling is for is a rate that is too high, here as in the first tables."""

LIMITS = """\
**How far this goes.** One small model (half a million weights) on drawn scenes, in regimes that were searched for. The
model on emoji has a million weights and one habit, and its seeds share most of their held-out pictures. A constant
weight near the one that cooling starts with does about as well where all negatives are hard; what the adaptive weight
is for is the table of regrets over regimes. The pretrained model is small too, and its task narrow; on its own answers,
with one seed, no method gains in 16 steps, while DPO ruins its English at the higher rate. Nothing was measured on a
GPU."""


def beyond(gap: Score) -> bool:
    """Whether a difference is above 0 by two standard errors."""
    return gap.error is not None and gap.mean > 2 * gap.error


def negative(gap: Score) -> Score:
    """The difference the other way round."""
    return gap._replace(mean=-gap.mean)


def listed(gaps: dict[str, Score]) -> str:
    """Differences with their names; positive is better."""
    return ", ".join(f"{name} {gap:+}" for name, gap in gaps.items())


def verdicts(headline: Results, regimes: Results, more: Iterable[Claim] = ()) -> str:
    """The page's first paragraph."""
    seeds, of_all = len(headline.grid.seeds), len(regimes.grid.seeds)
    opening = (
        f"On drawn scenes, with a *habit* to unlearn and on *clean* answers over {seeds} seeds, learning rates chosen "
        f"on one more; all else over {of_all} seeds:"
    )
    return f"{opening}\n{held_and_missed([*claims(headline, regimes), *more])}"


def held_and_missed(found: Sequence[Claim]) -> str:
    """Two lists: the claims that hold, and those that do not."""
    parts = []
    for title, wanted in (("holds", True), ("does not hold", False)):
        some = [claim for claim in found if claim.holds is wanted]
        parts += [f"\n**What {title}**\n"] if some else []
        parts += [f"- {claim.goal} ({claim.evidence})." for claim in some]
    return "\n".join(parts)


def has_picture(results: Results) -> bool:
    """Whether the grid has the methods that are shown, at three values of one setting or more."""
    return {*SHOWN} <= {*results.grid.methods} and any(len(values) > 2 for values in results.grid.settings.values())


def pictures(results: Results, name: str, folder: Path) -> Iterator[str]:
    """Draw a grid's worlds into a folder, where its settings have a picture, and give the lines that show them."""
    for world in results.grid.worlds if has_picture(results) else ():
        picture = folder / f"{name}-{re.sub('[^a-z]+', '-', world)}.svg"
        robustness(results, world, picture)
        yield f"![{world}](results/{picture.name})"


def robustness(results: Results, world: str, path: Path) -> None:
    """Draw the target over the grid's setting, learning rates or steps, for the methods that are shown; all worlds on
    one scale."""
    target, (axis, values) = results.grid.target, next(iter(results.grid.settings.items()))
    label = axis.rpartition(".")[2].replace("_", " ")
    curves = {
        place: [
            (math.log10(dict(setting)[axis]), results.score(*place, setting, target).mean)
            for setting in results.settings(*place)
        ]
        for place in ((w, m) for w in results.grid.worlds for m in SHOWN if m in results.methods(w))
    }
    heights = [y for points in curves.values() for _, y in points]
    shown = [Curve(method, points, colour=SHOWN.index(method)) for (w, method), points in curves.items() if w == world]
    places = [math.log10(value) for value in values]
    figure = Figure(
        title=f"{world}: {target} over {label}",
        x_label=label,
        x_ticks=[(x, f"{value:.0e}" if value < 1 else f"{value}") for x, value in zip(places, values, strict=True)],
        y_label=f"{target} rate over the start model",
        x=(min(places), max(places)),
        y=(min(heights) - 0.03, max(heights) + 0.03),
        curves=shown,
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(draw_figure(figure), encoding="utf-8")


def headline(results: Results) -> str:
    """The README's table: the target of the methods that are shown, at every learning rate of the first world."""
    world = next(iter(results.grid.worlds))
    settings = results.settings(world, OURS)
    rates = [next(iter(dict(setting).values())) for setting in settings]
    lines = [["", *(f"{rate:.0e}" for rate in rates)], ["---"] * (len(settings) + 1)]
    for method in SHOWN:
        lines.append([method, *(f"{results.score(world, method, s, results.grid.target)}" for s in settings)])
    return table(lines)


def rivals(results: Results, steps: Results) -> str:
    """The README's sentences on DPO tuned as well, and on how many steps it takes."""
    world, measures = next(iter(results.grid.worlds)), {"greedy": "win", "sampled": "win_sampled"}
    found = {
        answers: results.difference(world, *(tuned(results, world, family, measure) for family in (OURS, DPO)), measure)
        for answers, measure in measures.items()
    }
    least, most = (steps.settings(world, OURS)[i] for i in (0, -1))
    few, many = (dict(setting)["trainer.max_steps"] for setting in (least, most))
    gaps = " and ".join(
        f"{gap._replace(mean=abs(gap.mean))} {'below' if gap.mean < 0 else 'above'} DPO's in {answers} answers"
        for answers, gap in found.items()
    )
    return (
        f"Where rate and beta of both are tuned, the win rate of CW-DPO is {gaps}.\nAfter {few} steps CW-DPO has "
        f"{steps.score(world, OURS, least, 'win')}, and SFT after {many} steps {steps.score(world, SFT, most, 'win')} "
        "([results](docs/results.md#how-many-steps-does-it-take))."
    )


def emoji_losses(results: Results) -> str:
    """The README's table: how far each method is behind the best one at worst, in the target."""
    losses = [[method, f"{results.worst_regret(method, results.grid.target):.3f}"] for method in results.grid.methods]
    return table([["", "behind the best method, at worst"], ["---"] * 2, *losses])


def with_numbers(readme: str) -> str:
    """The README with the parts between marks made again, in their order."""
    found = {name: Results.load(DOCS / "results" / f"{name}.json") for name in ("headline", "steps", next(iter(EMOJI)))}
    made = iter([headline(found["headline"]), rivals(found["headline"], found["steps"]), emoji_losses(found["emoji"])])
    return re.sub(f"(?s)({MARK}\n).*?(\n{MARK})", lambda part: f"{part[1]}{next(made)}{part[2]}", readme)


def about(grid: str) -> list[str]:
    """A section's title and its text, from the comment at the top of a grid file."""
    text = (ROOT / grid).read_text(encoding="utf-8")
    title, *rest = (line[2:] for line in text.splitlines() if line[:2] == "# ")
    return [f"## {title}", " ".join(rest)]


def page(folder: Path) -> str:
    """The text of the page; pictures are drawn into ``folder``."""
    parts = ["# Results", "<!-- made by docs/make_results.py; change that, not this -->"]
    found = {name: Results.load(DOCS / "results" / f"{name}.json") for name in GRIDS}
    small = {name: Results.load(DOCS / "results" / f"{name}.json") for name in PRETRAINED}
    answers = {
        name: json.loads((DOCS / "results" / f"{name}_answers.json").read_text(encoding="utf-8")) for name in PRETRAINED
    }
    first = next(iter(PRETRAINED))
    more = [
        *step_claims(found["steps"]),
        *ablation_claims(found["ablations"]),
        *ablation_claims(found["ablation_rates"], when=" at three times the rate"),
        pretrained_claim(small[first], answers[first]),
        *(emoji_regret(Results.load(DOCS / "results" / f"{name}.json")) for name in EMOJI),
    ]
    parts.append(verdicts(found["headline"], found["regimes"], more))
    parts.append(TRIED)
    for name, results in found.items():
        parts += about(GRIDS[name])
        parts.append(f"```\ncwdpo compare {GRIDS[name]} --out runs/{name} --jobs 2\n```")
        parts += [*pictures(results, name, folder), markdown(results)]
    for name, grid in PRETRAINED.items():
        parts += about(grid)
        parts.append(
            f"```\npython -m examples.pretrained.build\ncwdpo compare {grid} --out runs/{name}\n"
            f"python -m examples.pretrained.answers runs/{name} --grid {grid}\n```"
        )
        parts.append(pretrained(small[name], answers[name]))
    for name, grid in EMOJI.items():
        results = Results.load(DOCS / "results" / f"{name}.json")
        parts += about(grid)
        parts.append(
            f"```\nmake emoji\npython examples/emoji/base.py\ncwdpo compare {grid} --out runs/{name} --jobs 2\n```"
        )
        parts += [held_and_missed([*emoji_claims(results)]), *pictures(results, name, folder), markdown(results)]
    parts.append(LIMITS)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def main() -> None:
    """Write the page, and the README's parts."""
    readme = ROOT / "README.md"
    readme.write_text(with_numbers(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "results.md").write_text(page(DOCS / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
