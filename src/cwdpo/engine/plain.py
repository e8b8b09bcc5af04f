"""The plain engine: one row an answer. Slow and obvious, it is what every faster engine is held to."""

from collections.abc import Collection
from typing import Any

from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.forward import Forward, answer_type, bare_model
from cwdpo.engine.layout import Cost, PaddingSide, in_groups, one_row_an_answer, plain_costs, with_images_once
from cwdpo.engine.vision import FeatureCache, share_images


class PlainEngine:
    """Log-probs by ``[prompt | answer]`` rows, without (row, length, vocabulary) logits."""

    def __init__(
        self,
        *,
        padding_side: PaddingSide = "right",
        images_once: bool = False,
        features: FeatureCache | None = None,
    ) -> None:
        """Choose the rows.

        Args:
            padding_side: where shorter rows are filled.
            images_once: encode each prompt's images once and share the features among its rows; for models that
                :func:`cwdpo.engine.vision.can_share_images`.
            features: with ``images_once``, where features of frozen towers are kept.
        """
        self.padding_side: PaddingSide = padding_side
        self.images_once = images_once
        self.report: dict[str, Any] = {"asked": "plain", "choices": []}
        self._features = features
        self._forward = Forward()

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`."""
        return in_groups(batch, lambda part: self._logprobs(model, part, want))

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """See :meth:`cwdpo.engine.Engine.costs`."""
        return plain_costs(batch)

    def _logprobs(self, model: nn.Module, batch: Batch, want: Collection[Detail]) -> AnswerLogprobs:
        bare = bare_model(model)
        layout = one_row_an_answer(batch, padding_side=self.padding_side, answer_type=answer_type(bare))
        if not (self.images_once and "pixel_values" in layout.inputs):
            return self._forward(model, batch, layout, want=want)
        lookup = self._features.lookup(model, bare, batch) if self._features else None
        shared = share_images(bare, batch, batch["prompt_index"].tolist(), lookup=lookup)
        return self._forward(model, batch, with_images_once(layout, batch), want=want, contexts=[shared])
