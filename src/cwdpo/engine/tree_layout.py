"""One row a prompt, ``[prompt | answer 1 | ... | answer K]``, and the plan that keeps its answers apart."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cwdpo.batch import Batch
from cwdpo.engine.layout import Layout, continue_prompt, merge_images, stack_tokens

PROMPT, PADDING = 0, -1
"""Branches that are no answer; answers count from 1 in each row."""


@dataclass(frozen=True)
class TreePlan:
    """Which tokens of each row may meet, and where each stands in ``[prompt | its own answer]``."""

    branch: Tensor
    """``(rows, length)`` 0 on the prompt, 1 to K on the answers, -1 on padding."""

    shift: Tensor
    """``(rows, length)`` how many tokens of sister answers stand before each token."""

    @property
    def logical(self) -> Tensor:
        """``(rows, length)`` the token's index in ``[prompt | its own answer]``."""
        return torch.arange(self.branch.shape[1], device=self.branch.device) - self.shift

    def allow(self, own: Tensor, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Cut the model's own mask across answers: a token sees its prompt and its own answer.

        Args:
            own: whether the model lets the query see the key at their places in ``[prompt | their answer]``.
            row: index of the row; the three indices broadcast against each other and ``own``.
            query: physical index of the token that looks.
            key: physical index of the token looked at.
        """
        queries, keys = self.branch[row, query], self.branch[row, key]
        seen = own & (queries != PADDING) & ((keys == queries) | (keys == PROMPT))
        # a query without any key would give NaN, so padding sees itself
        return seen | ((queries == PADDING) & (query == key))


def one_row_a_prompt(batch: Batch, *, answer_type: int | None = None) -> tuple[Layout, TreePlan]:
    """Lay out every prompt once with all its answers behind it, padded on the right.

    As in plain rows, the last token of each answer is left out: it predicts nothing that is asked for. Every answer's
    first token is predicted by the same position, the prompt's last.

    Args:
        batch: see :class:`cwdpo.batch.Batch`.
        answer_type: see :func:`cwdpo.engine.layout.continue_prompt`.
    """
    device = batch["answer_ids"].device
    lengths = batch["answer_mask"].sum(dim=-1).tolist()
    owners = batch["prompt_index"].tolist()
    rows, branches, shifts, predictors = [], [], [], []
    for i, prompt in enumerate(batch["prompts"]):
        start = prompt["input_ids"].shape[1]
        ids, branch, shift, before = [], [0] * start, [0] * start, 0
        for a in (a for a, owner in enumerate(owners) if owner == i):
            extra = lengths[a] - 1
            ids.append(batch["answer_ids"][a, :extra])
            branch += [len(ids)] * extra
            shift += [before] * extra
            predictors += [(i, position) for position in (start - 1, *range(start + before, start + before + extra))]
            before += extra
        rows.append(continue_prompt(prompt, torch.cat(ids), answer_type=answer_type))
        branches.append(torch.tensor(branch, device=device))
        shifts.append(torch.tensor(shift, device=device))
    inputs = stack_tokens(rows, "right") | merge_images(batch["prompts"])
    layout = _predict(inputs, torch.tensor(predictors, device=device))
    pad = torch.nn.utils.rnn.pad_sequence
    return layout, TreePlan(
        branch=pad(branches, batch_first=True, padding_value=PADDING),
        shift=pad(shifts, batch_first=True),
    )


def _predict(inputs: dict[str, Tensor], predictors: Tensor) -> Layout:
    """Args: ``(n, 2)`` row and position that predict each answer token, in the batch's answer order."""
    predicts = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    predicts[predictors[:, 0], predictors[:, 1]] = True
    place = (predicts.flatten().cumsum(dim=0) - 1).view_as(inputs["input_ids"])
    return Layout(inputs, predicts, place[predictors[:, 0], predictors[:, 1]])
