"""The examples of a stage: some answers token by token, when it began and when it ended, in files that show alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from accelerate.utils import gather_object
from torch import nn

from cwdpo.data.rows import Row
from cwdpo.engine import Engine
from cwdpo.probes import ProbeRow, ProbeSet
from cwdpo.probes.examples import ByRow, as_numbers, example_lines, example_rows, token_logprobs, token_pieces
from cwdpo.probes.files import StageFiles

if TYPE_CHECKING:
    from cwdpo.trainers.base import AnswerTrainer

logger = logging.getLogger(__name__)

Write: TypeAlias = Callable[[nn.Module, Sequence[Row]], list[str]]
"""A model's own answers to rows, by greedy decoding."""


class Examples:
    """Measures the first rows of a probe set at both ends of a stage. All ranks take part, and the first one writes."""

    def __init__(self, trainer: "AnswerTrainer", files: StageFiles, engine: Engine, *, write_greedy: Write | None):
        """Set up.

        Args:
            trainer: of the stage.
            files: of the stage.
            engine: the probes'.
            write_greedy: lets the model answer when the stage ends; None leaves that out.
        """
        self._trainer, self._files, self._engine, self._write_greedy = trainer, files, engine, write_greedy
        self._rows: Sequence[ProbeRow] = ()
        self.start: dict[str, Any] | None = None
        """Log-probs when the stage began, see :data:`cwdpo.probes.examples.Numbers`; kept on disk with the start."""

    def begin(self, rows: Sequence[ProbeRow]) -> None:
        """The stage begins: measure the examples among these rows of the probe set."""
        self._rows = rows
        self.start = as_numbers(self._measure(example_rows(rows)))

    def go_on(self, rows: Sequence[ProbeRow], start: Mapping[str, Any] | None) -> None:
        """The stage goes on from a checkpoint: it began with these numbers."""
        self._rows = rows
        self.start = None if start is None else dict(start)

    def end(self) -> None:
        """The stage is over and its model is the one that is kept: measure again, and write all."""
        if self.start is None:
            logger.warning("no examples: the stage began with another version of cwdpo, which measured none.")
            return
        asked = [probe.row for probe in example_rows(self._rows)]
        greedy = shared(self._trainer, self._write_greedy, asked)
        rows = example_rows(self._rows, greedy)
        found = self._measure(rows)
        if self._trainer.is_world_process_zero():
            template, tokenizer = self._trainer.encoder.template, self._trainer.encoder.tokenizer
            pieces = partial(token_pieces, tokenizer, controls=frozenset(template.control_tokens))
            self._files.write_examples(
                asked,
                lambda pictures: example_lines(rows, self.start or {}, found, pictures=pictures, pieces=pieces),
            )

    def _measure(self, rows: Sequence[ProbeRow]) -> ByRow:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        probes = ProbeSet(
            rows,
            trainer.encoder,
            answers_in_a_pass=3 * trainer.args.per_device_eval_batch_size,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        )
        assert trainer.model is not None
        here = token_logprobs(trainer.model, probes, self._engine, autocast=accelerator.autocast)
        whole: ByRow = {}
        for part in gather_object([here]):
            whole.update(part)
        return dict(sorted(whole.items()))


def shared(trainer: "AnswerTrainer", write: Write | None, rows: Sequence[Row]) -> list[str] | None:
    """The model's own answer to each row; each rank writes its share, and all have them all. None without a way to."""
    if write is None:
        return None
    rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    assert trainer.model is not None
    parts: list[list[str]] = gather_object([write(trainer.model, rows[rank::ranks])])
    return [parts[i % ranks][i // ranks] for i in range(len(rows))]
