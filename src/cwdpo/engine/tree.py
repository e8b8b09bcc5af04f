"""The tree engine: one row a prompt, with all its answers behind it. The image and the prompt are paid for once."""

from collections.abc import Collection
from typing import Any

from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.budget import Cost, tree_costs
from cwdpo.engine.features import FeatureCache
from cwdpo.engine.forward import Forward, answer_type, bare_model
from cwdpo.engine.grouping import in_groups
from cwdpo.engine.last_layer import only_where_read
from cwdpo.engine.tree_attention import as_tree
from cwdpo.engine.tree_layout import one_row_a_prompt
from cwdpo.engine.vision import share_images

FLEX_FROM = 4096
"""Tokens of a row from which ``flex_attention`` is worth its compiler on a GPU. It skips what causality hides, half of
the attention, which in a 3B model is 6 % of the decoder's work at 1,200 tokens and 18 % at 4,096 (by arithmetic)."""


class TreeEngine:
    """Log-probs by ``[prompt | answer 1 | ... | answer K]`` rows.

    Exact for decoders whose only tie between tokens is attention. It does not find out by itself whether a model is
    one of those: :class:`cwdpo.engine.choice.CheckedEngine` does, before it is used.
    """

    def __init__(self, *, flex_from: int | None = None, features: FeatureCache | None = None) -> None:
        """Choose the attention kernel.

        Args:
            flex_from: rows of at least this many tokens run by ``flex_attention``, whose block masks skip what no
                query may see, where the model's own attention is sdpa; None leaves every row to the model's own.
            features: where the image features of frozen towers are kept; None encodes images at every step.
        """
        self.flex_from = flex_from
        self.report: dict[str, Any] = {"asked": "tree", "choices": []}
        self._features = features
        self._forward = Forward()

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`.

        Raises:
            TreeUnsupportedError: the model's forward pass cannot be made to follow the rows' plan.
        """
        return in_groups(batch, lambda part: self._logprobs(model, part, want))

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """See :meth:`cwdpo.engine.Engine.costs`."""
        return tree_costs(batch)

    def _logprobs(self, model: nn.Module, batch: Batch, want: Collection[Detail]) -> AnswerLogprobs:
        bare = bare_model(model)
        layout, plan = one_row_a_prompt(batch, answer_type=answer_type(bare))
        by_flex = self.flex_from is not None and plan.branch.shape[1] >= self.flex_from
        contexts = [as_tree(bare, plan, by_flex=by_flex), only_where_read(bare, layout.predicts)]
        lookup = self._features.lookup(model, bare, batch) if self._features else None
        if lookup is not None and "pixel_values" in layout.inputs:
            contexts.append(share_images(bare, batch, range(len(batch["prompts"])), lookup=lookup))
        return self._forward(model, batch, layout, want=want, contexts=contexts)
