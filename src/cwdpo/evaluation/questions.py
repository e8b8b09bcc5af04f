"""Rows to evaluate, with what the model's answers are compared with: right answers, options, objects.

A row is read as everywhere (:mod:`cwdpo.data.formats`). Evaluation also looks at these keys of it, which training
passes over:

========================  ==========================================================================================
``references``            a list of further right answers
``options``, ``choices``  a list of texts: the row is multiple choice. Without it, options are read from the prompt's
                          last turn where it lists them by letter, a line each (``A. red``)
``objects``               a list of the objects in the image, for the share of named objects that are not there
========================  ==========================================================================================

Which rows are asked what: *multiple choice* rows have options; *yes/no* rows are those whose chosen answer is yes or
no; all others are *open*, and captions are compared there.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.rows import Row
from cwdpo.errors import DataError
from cwdpo.evaluation.answers import is_letter, is_yes, option_of, options_in
from cwdpo.negatives.files import rows_with_records
from cwdpo.negatives.filtering import RightAnswers
from cwdpo.probes import choose_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A row and what its answers are compared with."""

    row: Row
    references: tuple[str, ...]
    """Right answers: chosen, its paraphrases, the row's ``references``, and those of other rows with the same prompt
    and images."""

    options: tuple[str, ...] = ()
    right_option: int | None = None
    """Place of the chosen answer among the options."""

    objects: tuple[str, ...] | None = None
    """What the row says is in its image; None where it says nothing."""

    @property
    def yes(self) -> bool | None:
        """The right answer to a question of yes or no; None to any other."""
        return None if self.options else is_yes(self.row.chosen)

    @property
    def is_open(self) -> bool:
        """Whether the answer is free text."""
        return not self.options and self.yes is None

    @property
    def scored_options(self) -> tuple[str, ...]:
        """The options as answers: their letters where the chosen answer is a letter, else their texts."""
        if is_letter(self.row.chosen) and self.row.chosen not in self.options:
            return tuple(chr(ord("A") + place) for place in range(len(self.options)))
        return self.options


def read_questions(
    data: Path, *, image_root: GivenRoots = None, num_rows: int | None = None, seed: int = 0
) -> list[Question]:
    """Read a file of rows to evaluate.

    Args:
        data: file or directory of rows; every row has a chosen answer.
        image_root: where relative image paths start.
        num_rows: most rows; more are sampled. None takes all.
        seed: of the sample.

    Raises:
        DataError: a row cannot be used; the message names it.
    """
    pairs = list(rows_with_records(data, image_root))
    right = RightAnswers(row for _, row in pairs)
    rows = [row for _, row in pairs]
    chosen = rows if num_rows is None else choose_rows(rows, num_rows, seed, asked=True)
    wanted = {id(row) for row in chosen}
    return [_question(record, row, right(row)) for record, row in pairs if id(row) in wanted]


def _question(record: Mapping[str, Any], row: Row, right: Sequence[str]) -> Question:
    further = _texts(record, "references", row.source) or ()
    if record.get("options") is not None and record.get("choices") is not None:
        raise DataError(f"{row.source}: the row has both `options` and `choices`. Keep one of them.")
    given = _texts(record, "options" if record.get("options") is not None else "choices", row.source)
    options = given if given is not None else tuple(options_in(_last_turn(row)))
    right_option = option_of(row.chosen, options) if options else None
    if given is not None and (right_option is None or len(given) < 2):
        raise DataError(
            f"{row.source}: the chosen answer {row.chosen[:40]!r} is not one of the row's {len(given)} options. Write "
            "the option's text or its letter under `chosen`, and two options or more."
        )
    return Question(
        row=row,
        references=tuple(dict.fromkeys([*right, *further])),
        options=options if right_option is not None else (),
        right_option=right_option,
        objects=_texts(record, "objects", row.source),
    )


def _texts(record: Mapping[str, Any], key: str, source: str) -> tuple[str, ...] | None:
    """A list of texts under a key; None where there is none."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise DataError(f'{source}: `{key}` must be a list of texts for evaluation. Write ["...", "..."].')
    return tuple(value)


def _last_turn(row: Row) -> str:
    return "".join(part for part in row.prompt[-1].parts if isinstance(part, str))
