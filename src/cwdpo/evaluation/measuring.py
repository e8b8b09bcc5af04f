"""What a model says to rows, and how likely it finds given answers: everything that metrics are made of, row by row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import nn
from transformers import ProcessorMixin

from cwdpo.batch import Detail
from cwdpo.data.encode import EncodedMemory, Encoder
from cwdpo.engine import Engine, make_engine
from cwdpo.evaluation.questions import Question
from cwdpo.generation import Generated, generate
from cwdpo.models.parts import model_limits
from cwdpo.probes import ProbeRow, ProbeSet, StartDistributions
from cwdpo.probes.measuring import has_wide_vocabulary, undisturbed, wanted
from cwdpo.probes.probe_set import ProbeAnswer

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""

Values: TypeAlias = NDArray[np.float64]


class Scored(NamedTuple):
    """How likely a model finds an answer."""

    total: float
    """log pi(y|x), nats."""

    length: int
    """Tokens, the end token included."""

    @property
    def mean(self) -> float:
        """lbar, nats per token."""
        return self.total / self.length


@dataclass
class Measured:
    """What one model gives; an entry a row, in the order of the questions."""

    chosen: list[Scored]
    rejected: list[list[Scored]]
    gentle: list[Scored | None]
    options: list[list[Scored | None]]
    """None for an option that the model cannot take."""

    confidence: list[Values]
    hit: list[Values]
    """Of each token of the chosen answer: the likeliest token's probability, and 1 where it was the right one."""

    moved: list[Values] = field(default_factory=list)
    """``(tokens, 3)`` of each chosen answer: TV, JS and KL from the base; no entry where there is none."""

    answers: list[Generated] | None = None
    """Greedy answers; None where none were asked for."""

    own: list[Scored | None] = field(default_factory=list)
    """How likely the model finds them; None for an empty one."""


def measure_model(
    model: nn.Module,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    *,
    start: StartDistributions | None = None,
    max_new_tokens: int | None = 256,
    batch_size: int = 16,
    progress: Progress = lambda what, done, total: None,
) -> Measured:
    """Measure a model on rows: first all given answers, then its own.

    Args:
        model: in any mode, which is put back.
        processor: the model's.
        questions: what is asked; at least one.
        start: the base's predictions for the chosen answers. Rows that it lacks are recorded in it; for those it has,
            how far this model is from them. None leaves drift out.
        max_new_tokens: longest greedy answer; None generates nothing.
        batch_size: prompts in one call of ``generate``, and answers in one pass of the model.
        progress: called as the work goes on.
    """
    encoder = Encoder(processor, limits=model_limits(model), memory=EncodedMemory())
    engine = make_engine()
    found = _score_given(model, encoder, engine, questions, start, batch_size, progress)
    if max_new_tokens is None:
        return found
    found.answers = _generate(model, processor, encoder, questions, max_new_tokens, batch_size, progress)
    found.own = _score_own(model, encoder, engine, questions, found.answers, batch_size, progress)
    return found


def _score_given(
    model: nn.Module,
    encoder: Encoder,
    engine: Engine,
    questions: Sequence[Question],
    start: StartDistributions | None,
    batch_size: int,
    progress: Progress,
) -> Measured:
    num = len(questions)
    nothing = np.zeros(0)
    found = Measured(
        chosen=[Scored(math.nan, 1)] * num,
        rejected=[[] for _ in questions],
        gentle=[None] * num,
        options=[[None] * len(question.scored_options) for question in questions],
        confidence=[nothing] * num,
        hit=[nothing] * num,
        moved=[] if start is None or 0 not in start else [nothing] * num,
    )
    probes = ProbeSet([_given(i, q) for i, q in enumerate(questions)], encoder, answers_in_a_pass=batch_size)
    with undisturbed(model) as device:
        for part in probes.batches(chosen_apart=start is not None and has_wide_vocabulary(model)):
            wide: tuple[Detail, ...] = ("distribution",) if start is not None and "chosen" in part.groups else ()
            scored = engine.logprobs(model, send_to_device(part.batch, device), want=("confidence", "hit", *wide))
            totals, lengths = scored.total.double().tolist(), scored.mask.sum(dim=-1).tolist()
            for i, (row, group) in enumerate(zip(part.rows, part.groups, strict=True)):
                answer = Scored(totals[i], lengths[i])
                if group == "rejected":
                    found.rejected[row].append(answer)
                elif group == "gentle":
                    found.gentle[row] = answer
                elif group != "chosen":
                    found.options[row][int(group.removeprefix(_OPTION))] = answer
                else:
                    mask = scored.mask[i]
                    found.chosen[row] = answer
                    found.confidence[row] = wanted(scored, "confidence")[i][mask].double().cpu().numpy()
                    found.hit[row] = wanted(scored, "hit")[i][mask].double().cpu().numpy()
                    if start is not None and row not in start:
                        start.record(row, wanted(scored, "distribution")[i][mask])
                    elif start is not None:
                        moved = start.compare(row, wanted(scored, "distribution")[i][mask])
                        measures = [value.double().cpu().numpy() for value in (moved.tv, moved.js, moved.kl)]
                        found.moved[row] = np.stack(measures, axis=1)
            progress("given answers", max(part.rows) + 1, num)
    return found


_OPTION = "option/"


def _given(index: int, question: Question) -> ProbeRow:
    row = question.row
    answers = [ProbeAnswer("chosen", row.chosen), *(ProbeAnswer("rejected", text) for text in row.rejected)]
    answers += [ProbeAnswer("gentle", row.gentle)] if row.gentle is not None else []
    answers += [ProbeAnswer(f"{_OPTION}{i}", text) for i, text in enumerate(question.scored_options)]
    return ProbeRow(index, row, tuple(answers))


def _generate(
    model: nn.Module,
    processor: ProcessorMixin,
    encoder: Encoder,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
) -> list[Generated]:
    return generate(
        model,
        processor,
        [question.row for question in questions],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=None,
        top_p=None,
        seed=0,
        encoder=encoder,
        progress=lambda done: progress("own answers", done, len(questions)),
    )


def _score_own(
    model: nn.Module,
    encoder: Encoder,
    engine: Engine,
    questions: Sequence[Question],
    answers: Sequence[Generated],
    batch_size: int,
    progress: Progress,
) -> list[Scored | None]:
    found: list[Scored | None] = [None] * len(questions)
    said = [i for i, answer in enumerate(answers) if answer.text]
    if not said:
        return found
    rows = [ProbeRow(i, questions[i].row, (ProbeAnswer("greedy", answers[i].text),)) for i in said]
    with undisturbed(model) as device:
        for part in ProbeSet(rows, encoder, answers_in_a_pass=batch_size).batches():
            scored = engine.logprobs(model, send_to_device(part.batch, device))
            totals, lengths = scored.total.double().tolist(), scored.mask.sum(dim=-1).tolist()
            for row, total, length in zip(part.rows, totals, lengths, strict=True):
                found[row] = Scored(total, length)
            progress("how sure of own answers", max(part.rows) + 1, len(questions))
    return found
