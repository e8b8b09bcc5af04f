"""The measurements behind ``cwdpo analyse``: load, choose rows, predict, step, compare."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from cwdpo.batch import Batch, Role
from cwdpo.cli.merge import adapter_directory
from cwdpo.cooling import measure_floor
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, make_engine
from cwdpo.errors import ConfigError, DataError
from cwdpo.eval_mode import eval_mode
from cwdpo.evaluation.answer_logits import AnswerLogits, differentiable_attention
from cwdpo.evaluation.influence import InfluenceReport, measure_influence
from cwdpo.evaluation.row_objective import LossName, Objective
from cwdpo.evaluation.token_kernel import MeanKernel, projected_kernel
from cwdpo.models.adapters import add_lora, load_adapter
from cwdpo.models.loading import load_policy
from cwdpo.models.processors import load_processor
from cwdpo.models.saving import named_base
from cwdpo.reference import FrozenCopy

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``cwdpo analyse`` was asked for; the command's help says what each means."""

    model: str
    data: Path
    image_root: Path | None
    loss: LossName
    pairs: int
    etas: tuple[float, ...]
    reference: str | None
    beta: float
    floor: str
    temperature: float
    lora: int | None
    directions: int


@dataclass(frozen=True)
class Pushed:
    """A place where a rejected answer goes against the model: the softmax that squeezing is shown on."""

    row: str
    token: int
    """Position in the answer, from 0."""

    target: int
    """The rejected answer's token id."""

    logprobs: Tensor
    """``(V,)``."""


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
    """l_floor, nats per token; None where no row has a negative."""

    rejected_length: int | None
    """Median tokens of the rejected answers."""

    num_parameters: int
    pushed: Pushed | None


def analyse_model(settings: Settings, on_progress: Progress) -> Analysis:
    """Do what the settings ask.

    Raises:
        UserError: the model, the rows or a setting cannot be used.
    """
    rows, trained, observed = _rows(settings)
    model, processor = _load(settings.model, settings.lora)
    engine = make_engine()
    required = (Role.CHOSEN,) if settings.loss == "sft" else (Role.CHOSEN, Role.REJECTED)
    batches = _batches(model, processor, rows, AnswerCollator(Encoder(processor), required=required))
    floor = _floor(settings, model, engine, batches)
    objective = Objective(loss=settings.loss, beta=settings.beta, floor=floor or 0.0, temperature=settings.temperature)
    start = None
    if settings.reference is not None:
        start = FrozenCopy(_load(settings.reference, None)[0], engine).totals
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
    chosen = _batches(model, processor, rows, AnswerCollator(Encoder(processor), roles=(Role.CHOSEN,)))
    lengths = torch.cat([b["answer_mask"].sum(dim=-1)[b["roles"] == Role.REJECTED] for b in batches])
    return Analysis(
        settings=settings,
        names=[row.id or str(position) for position, row in enumerate(rows)],
        report=report,
        kernel=_kernel(settings, model, chosen, on_progress),
        floor=floor,
        rejected_length=int(lengths.median()) if len(lengths) else None,
        num_parameters=sum(value.numel() for value in AnswerLogits(model).trainable().values()),
        pushed=_most_against(model, batches, [row.id or str(i) for i, row in enumerate(rows)]),
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
            "%d pairs (%d rows trained on, %d observed) stand for --pairs %d",
            trained * observed,
            trained,
            observed,
            settings.pairs,
        )
    count = max(trained, observed)
    return [found[i * len(found) // count] for i in range(count)], trained, observed


def _load(name: str, lora: int | None) -> tuple[Any, Any]:
    """Model and processor in float32, on the GPU where there is one; what trains is what a recipe would train."""
    path = adapter_directory(Path(name)) if Path(name).is_dir() else None
    source = str(path or name)
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
    """One batch a row."""
    return [send_to_device(collate([(position, row)]), model.device) for position, row in enumerate(rows)]


@torch.no_grad()
def _floor(settings: Settings, model: Any, engine: Engine, batches: Sequence[Batch]) -> float | None:
    """l_floor from the rows that are used; None where they have no negatives and none are needed."""
    means: dict[Role, list[Tensor]] = {Role.REJECTED: [torch.empty(0)], Role.GENTLE: [torch.empty(0)]}
    with eval_mode(model):
        for batch in batches:
            mean = engine.logprobs(model, batch).mean.cpu()
            for role, found in means.items():
                found.append(mean[batch["roles"].cpu() == role])
    rejected, gentle = torch.cat(means[Role.REJECTED]), torch.cat(means[Role.GENTLE])
    try:
        rule: float | str = float(settings.floor)
    except ValueError:
        rule = settings.floor
    if settings.loss == "sft" and not len(rejected) + len(gentle):
        return None
    return measure_floor(rule, rejected=rejected, gentle=gentle)


def _kernel(settings: Settings, model: Any, chosen: Sequence[Batch], on_progress: Progress) -> MeanKernel | None:
    if not settings.directions:
        return None
    with eval_mode(model), differentiable_attention():
        return projected_kernel(
            AnswerLogits(model),
            chosen,
            num_directions=settings.directions,
            on_direction=partial(_tell_kernel, on_progress, settings.directions),
        )


def _tell_kernel(on_progress: Progress, total: int, done: int) -> None:
    on_progress("kernel", done, total)


@torch.no_grad()
def _most_against(model: Any, batches: Sequence[Batch], names: Sequence[str]) -> Pushed | None:
    """The rejected token that the model finds least likely; None where nothing was rejected."""
    best: Pushed | None = None
    with eval_mode(model):
        for batch, name in zip(batches, names, strict=False):
            logprobs = AnswerLogits(model)(batch).log_softmax(dim=-1).cpu()
            mask = batch["answer_mask"].cpu()
            targets = batch["answer_ids"].cpu()[mask]
            answers, places = mask.nonzero().unbind(dim=1)
            token = logprobs.gather(1, targets[:, None])[:, 0]
            token = token.masked_fill(batch["roles"].cpu()[answers] != Role.REJECTED, 0.0)
            at = int(token.argmin())
            if token[at] < (0.0 if best is None else best.logprobs[best.target]):
                best = Pushed(name, int(places[at]), int(targets[at]), logprobs[at].double())
    return best
