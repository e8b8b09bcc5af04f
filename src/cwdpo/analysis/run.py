"""``cwdpo analyse``: load a model, choose rows, predict and measure influences, and show or write what was found."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cwdpo.analysis.influence import (
    AnswerLogits,
    Influence,
    InfluenceReport,
    LossName,
    MeanKernel,
    Objective,
    correlation,
    differentiable_attention,
    measure_influence,
    projected_kernel,
    slope,
)
from cwdpo.analysis.theory import loser_push, push_down_repeatedly
from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.cooling import cooling_weight, measure_floor
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, make_engine
from cwdpo.errors import ConfigError, DataError
from cwdpo.models.adapters import add_lora, load_adapter, named_base
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.naming import find_checkpoint
from cwdpo.records import write_json, write_text
from cwdpo.reference import FrozenCopy
from cwdpo.report.charts import Curve, Dots, Figure, draw_figure

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``cwdpo analyse``; the command's help explains each."""

    model: str
    data: Path
    image_root: GivenRoots
    loss: LossName
    pairs: int
    etas: tuple[float, ...]
    reference: str | None
    beta: float
    floor: str
    temperature: float
    lora: int | None
    directions: int


class Pushed(NamedTuple):
    """The rejected token that the model finds least likely: its softmax shows the squeezing effect.

    Its row's name, its position in the answer from 0, its id, and the ``(V,)`` log-probs there.
    """

    row: str
    token: int
    target: int
    logprobs: Tensor


@dataclass(frozen=True)
class Analysis:
    """Everything that was found."""

    settings: Settings
    names: list[str]
    """Of the rows, by the position that influences use."""

    report: InfluenceReport
    kernel: MeanKernel | None
    """Between the chosen answers of the rows."""

    floor: float | None
    rejected_length: int | None
    """l_floor, nats per token, and median tokens of the rejected answers; None where no row has a negative."""

    num_parameters: int
    pushed: Pushed | None

    def of_eta(self, eta: float) -> list[Influence]:
        return [one for one in self.report.influences if one.eta == eta]


def analyse_model(settings: Settings, on_progress: Progress) -> Analysis:
    """Do what the settings ask; a UserError where the model, the rows or a setting cannot be used."""
    for name in (settings.model, settings.reference):
        if name is not None:
            find_checkpoint(name)  # a slip ends it before the rows are read
    rows, trained, observed = _rows(settings)
    model, processor = _load(settings.model, settings.lora)
    engine = make_engine()
    required = (Role.CHOSEN,) if settings.loss == "sft" else (Role.CHOSEN, Role.REJECTED)
    batches = _batches(model, processor, rows, AnswerCollator(Encoder(processor), required=required))
    floor = _floor(settings, model, engine, batches)
    objective = Objective(loss=settings.loss, beta=settings.beta, floor=floor or 0.0, temperature=settings.temperature)
    reference = settings.reference
    start = None if reference is None else FrozenCopy(_load(reference, None)[0], engine).totals
    report = measure_influence(
        model,
        engine,
        objective,
        batches[:trained],
        batches[:observed],
        start=start,
        etas=settings.etas,
        on_row=lambda done: on_progress("steps", done, trained),
    )
    kernel = None
    if count := settings.directions:
        chosen = _batches(model, processor, rows, AnswerCollator(Encoder(processor), roles=(Role.CHOSEN,)))
        with eval_mode(model), differentiable_attention():
            kernel = projected_kernel(
                AnswerLogits(model),
                chosen,
                num_directions=count,
                on_direction=lambda done: on_progress("kernel", done, count),
            )
    lengths = np.concatenate([batch["lengths"][batch["roles"] == Role.REJECTED] for batch in batches])
    names = [row.id or str(position) for position, row in enumerate(rows)]
    return Analysis(
        settings=settings,
        names=names,
        report=report,
        kernel=kernel,
        floor=floor,
        rejected_length=int(torch.from_numpy(lengths).median()) if len(lengths) else None,
        num_parameters=sum(value.numel() for value in AnswerLogits(model).trainable().values()),
        pushed=_least_likely(model, batches, names),
    )


_SHOWN = 20


def show_analysis(analysis: Analysis, console: Console) -> None:
    """Print the largest influences and how well they were predicted."""
    first = analysis.of_eta(analysis.settings.etas[0])
    table = Table(title=f"Change of lbar after one SGD step, {analysis.settings.loss}, nats per token")
    for name in ("trained", "observed", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("predicted", "measured", "argmax", "kernel"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted(first, key=lambda one: -abs(one.measured))[:_SHOWN]:
        numbers = [f"{value:+.2e}" for value in (one.predicted, one.measured, one.measured_top)]
        cosine = None if analysis.kernel is None else analysis.kernel.cosine[one.observed, one.trained].item()
        rows = (analysis.names[one.trained], analysis.names[one.observed])
        table.add_row(*rows, one.role, *numbers, "" if cosine is None else f"{cosine:+z.2f}")
    console.print(table)
    notes = ["argmax: measured change of the tokens that were most likely before the step."]
    if analysis.kernel is not None:
        notes.append("kernel: cosine of the empirical NTK between the two rows' chosen answers.")
    if len(first) > _SHOWN:
        notes.append(f"The {_SHOWN} largest of {len(first)}; --out DIR writes all.")
    for note in [*notes, *_sentences(analysis)]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def write_analysis(analysis: Analysis, out: Path) -> list[Path]:
    """Write ``analysis.json`` and the pictures; returns what was written."""
    path = out / "analysis.json"
    write_json(path, to_json(analysis))
    written = [path]
    for name, figure in figures(analysis):
        written.append(out / name)
        write_text(out / name, draw_figure(figure))
    return written


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The whole analysis in plain values."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(analysis.settings).items()}
    kernel = analysis.kernel
    return {
        "settings": settings,
        "floor": analysis.floor,
        "num_parameters": analysis.num_parameters,
        "rows": analysis.names,
        "by_eta": [_summary(analysis, eta) for eta in analysis.settings.etas],
        "check": {"worst_relative_error": worst_check(analysis), "checks": [asdict(c) for c in analysis.report.checks]},
        "kernel": None if kernel is None else {"mean": kernel.mean.tolist(), "error": kernel.error.tolist()},
        "influences": [asdict(one) for one in analysis.report.influences],
    }


def worst_check(analysis: Analysis) -> float:
    """Largest difference between A K G and plain autograd, over the most that the number could be."""
    return max(abs(c.decomposed - c.autograd) / c.scale if c.scale else 0.0 for c in analysis.report.checks)


def figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """File names and pictures, those that this analysis has the numbers for."""
    yield "predicted_measured.svg", _predicted_measured(analysis)
    if len(analysis.settings.etas) > 1:
        yield "learning_rate.svg", _learning_rate(analysis)
    if analysis.rejected_length is not None and analysis.floor is not None:
        floor, tau, beta = analysis.floor, analysis.settings.temperature, analysis.settings.beta
        yield "loser_push.svg", vulnerable_region(floor, tau, beta, analysis.rejected_length)
        if analysis.pushed is not None:
            yield "squeezing.svg", _squeezing(analysis.pushed, floor, tau)


def vulnerable_region(floor: float, temperature: float, beta: float, length: int) -> Figure:
    """Squared push over its lbar on a loser of ``length`` tokens, with and without cooling."""
    lowest = min(-8.0, 2 * floor)
    lbar = torch.linspace(lowest, -0.001, 160, dtype=torch.float64)
    one, weight = torch.ones_like(lbar), cooling_weight(lbar, floor, temperature=temperature)
    start = torch.maximum(lbar, torch.tensor(floor, dtype=torch.float64))  # a loser that fell from the floor

    def curve(name: str, w: Tensor, begin: Tensor, colour: int, dashed: bool) -> Curve:
        push = loser_push(lbar, w, start=begin, length=length, beta=beta)
        return Curve(name, list(zip(lbar.tolist(), push.tolist(), strict=True)), colour, dashed)

    return Figure(
        title="Squared push on each token of the rejected answer",
        x_label=f"lbar(y_l|x), nats per token   (floor {floor:.2f}, tau {temperature:g}, beta {beta:g}, L {length})",
        y_label="||G_l||^2",
        x=(lowest, 0.0),
        y=(0.0, beta**2 / 2 * 1.15),
        curves=[
            curve("DPO, first step", one, lbar, 1, False),
            curve("CW-DPO, first step", weight, lbar, 0, False),
            curve("DPO, fallen from the floor", one, start, 1, True),
            curve("CW-DPO, fallen from the floor", weight, start, 0, True),
        ],
        shade=((lowest, max(lowest, floor - 3 * temperature)), "w_c < 0.05"),
    )


def _rows(settings: Settings) -> tuple[list[Row], int, int]:
    """Rows spread evenly over the file, and how many of them, from the first, are trained on and observed."""
    found = read_rows(settings.data, image_root=settings.image_root)
    if not found:
        raise DataError(f"{settings.data} has no rows. Give a file with some.")
    trained = min(int(settings.pairs**0.5), len(found))
    observed = min(settings.pairs // trained, len(found))
    if trained * observed < settings.pairs:
        logger.warning(
            "%d pairs (%d rows trained on, %d observed) are used instead of --pairs %d",
            *(trained * observed, trained, observed, settings.pairs),
        )
    count = max(trained, observed)
    return [found[i * len(found) // count] for i in range(count)], trained, observed


def _load(name: str, lora: int | None) -> tuple[Any, Any]:
    """Model and processor in float32, on the GPU where there is one; what trains is what a recipe would train."""
    source = find_checkpoint(name)
    path = Path(source) if Path(source).is_dir() else None
    has_adapters = path is not None and (path / "adapter_config.json").is_file()
    base = named_base(path) if path is not None and has_adapters else source
    model: Any = load_policy(base, dtype="float32")
    if has_adapters:
        if lora is not None:
            raise ConfigError(f"{source} has adapters already. Leave out --lora, or name the base model.")
        model = load_adapter(model, source)
    elif lora is not None:
        model = add_lora(model, r=lora, alpha=2 * lora)
    own = path is None or any((path / file).is_file() for file in ("processor_config.json", "preprocessor_config.json"))
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_processor(source if own else base)


def _batches(model: Any, processor: Any, rows: Sequence[Row], collate: AnswerCollator) -> list[Batch]:
    return [send_to_device(collate([(position, row)]), model.device) for position, row in enumerate(rows)]


@torch.no_grad()
def _floor(settings: Settings, model: Any, engine: Engine, batches: Sequence[Batch]) -> float | None:
    """l_floor from the rows that are used; None where they have no negatives and none are needed."""
    with eval_mode(model):
        means = torch.cat([engine.logprobs(model, batch).mean.cpu() for batch in batches])
    roles = np.concatenate([batch["roles"] for batch in batches])
    lbar = {role: means[np.flatnonzero(roles == role)] for role in Role}
    rule: float | str = settings.floor
    with suppress(ValueError):
        rule = float(settings.floor)
    if settings.loss == "sft" and not len(lbar[Role.REJECTED]) + len(lbar[Role.GENTLE]):
        return None
    return measure_floor(rule, lbar=lbar, temperature=settings.temperature)


@torch.no_grad()
def _least_likely(model: Any, batches: Sequence[Batch], names: Sequence[str]) -> Pushed | None:
    best: Pushed | None = None
    with eval_mode(model):
        for batch, name in zip(batches, names, strict=False):
            logprobs = AnswerLogits(model)(batch).log_softmax(dim=-1).cpu()
            mask = batch["answer_mask"].cpu()
            targets = batch["answer_ids"].cpu()[mask]
            answers, places = mask.nonzero().unbind(dim=1)
            token = logprobs.gather(1, targets[:, None])[:, 0]
            token = token.masked_fill(torch.from_numpy(batch["roles"])[answers] != Role.REJECTED, 0.0)
            at = int(token.argmin())
            if token[at] < (0.0 if best is None else best.logprobs[best.target]):
                best = Pushed(name, int(places[at]), int(targets[at]), logprobs[at].double())
    return best


def _summary(analysis: Analysis, eta: float) -> dict[str, Any]:
    found = analysis.of_eta(eta)
    others = [one for one in found if one.trained != one.observed]
    return {
        "eta": eta,
        "n": len(found),
        "correlation": correlation(found),
        "correlation_other_rows": correlation(others),
        "slope": slope(found),
        "largest_change": max(abs(one.measured) for one in found),
        "means": {"same_row": _means(found, same=True), "other_rows": _means(found, same=False)},
    }


def _means(influences: Sequence[Influence], *, same: bool) -> dict[str, dict[str, float]]:
    """Mean measured change of lbar and of the argmax by role, on the row trained on or on the others."""
    by_role: dict[str, list[Influence]] = {}
    for one in influences:
        if (one.trained == one.observed) == same:
            by_role.setdefault(one.role, []).append(one)
    return {
        role: {
            "lbar": sum(one.measured for one in of) / len(of),
            "argmax": sum(one.measured_top for one in of) / len(of),
        }
        for role, of in by_role.items()
    }


def _sentences(analysis: Analysis) -> Iterator[str]:
    for eta in analysis.settings.etas:
        of = _summary(analysis, eta)
        others = of["correlation_other_rows"]
        apart = f" ({others:.4f} without the rows trained on)" if math.isfinite(others) else ""
        yield (
            f"eta {eta:g}: correlation {of['correlation']:.4f} over {of['n']} answers{apart}, "
            f"slope {of['slope']:.3f}, largest change {of['largest_change']:.2g} nats/token"
        )
    for where, roles in _summary(analysis, analysis.settings.etas[0])["means"].items():
        words = [f"{role} {of['lbar']:+.1e} (argmax {of['argmax']:+.1e})" for role, of in roles.items()]
        if words:
            yield f"mean change, {where.replace('_', ' ')}: {', '.join(words)}"
    yield f"A K G and plain autograd differ by {worst_check(analysis):.1e} of the most it could be."


def _predicted_measured(analysis: Analysis) -> Figure:
    first = analysis.of_eta(analysis.settings.etas[0])
    most = max([abs(v) for one in first for v in (one.predicted, one.measured)] + [1e-12]) * 1.08
    same = [(one.predicted, one.measured) for one in first if one.trained == one.observed]
    other = [(one.predicted, one.measured) for one in first if one.trained != one.observed]
    return Figure(
        title=f"One SGD step, {analysis.settings.loss}, eta {analysis.settings.etas[0]:g}: "
        f"correlation {correlation(first):.4f}",
        x_label="predicted: -eta A K G, nats per token",
        y_label="measured change of lbar",
        x=(-most, most),
        y=(-most, most),
        curves=[Curve("predicted = measured", [(-most, -most), (most, most)], 3, True)],
        dots=[Dots("other rows", other, 0), Dots("the row trained on", same, 1)],
    )


def _learning_rate(analysis: Analysis) -> Figure:
    found = [(math.log10(eta), analysis.of_eta(eta)) for eta in sorted(set(analysis.settings.etas))]
    curves = [
        Curve("correlation", [(x, correlation(of)) for x, of in found], 0),
        Curve("measured / predicted (slope)", [(x, slope(of)) for x, of in found], 1, True),
    ]
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)]
    span = found[-1][0] - found[0][0] or 1.0
    return Figure(
        title=f"How far the first order carries, {analysis.settings.loss}",
        x_label="eta of the SGD step",
        y_label="",
        x=(found[0][0] - 0.03 * span, found[-1][0] + 0.03 * span),
        y=(min([0.0, *values]) - 0.02, max([1.0, *values]) * 1.05),
        curves=curves,
        x_ticks=[(x, f"{10**x:.3g}") for x, _ in found],
    )


def _squeezing(pushed: Pushed, floor: float, temperature: float) -> Figure:
    """The model's own softmax at one place, while a rejected token is pushed down there."""
    size, count = 0.5, 60
    others = pushed.logprobs.clone()
    others[pushed.target] = -math.inf
    top, second = others.topk(2).indices.tolist()
    push = partial(push_down_repeatedly, pushed.logprobs, pushed.target, step=size, num_steps=count)
    hot, cooled = push(), push(floor=floor, temperature=temperature)
    curves = [
        Curve(f"{name}{kind}", list(enumerate(path[:, token].exp().tolist())), colour, dashed)
        for token, name, colour in ((top, "the most likely token", 0), (second, "the second", 1))
        for path, kind, dashed in ((hot, "", False), (cooled, ", cooled", True))
    ]
    return Figure(
        title=f"Pushing down a rejected token of probability {pushed.logprobs[pushed.target].exp():.1e}",
        x_label=f"steps of {size} on its logits (row {pushed.row}, token {pushed.token + 1} of the answer)",
        y_label="probability",
        x=(0, count),
        y=(0.0, 1.02),
        curves=curves,
    )
