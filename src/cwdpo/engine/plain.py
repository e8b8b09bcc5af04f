"""The plain engine: one row per answer. Slow and obvious, it is what every faster engine is compared with."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.forward import Forward, answer_type
from cwdpo.engine.layout import Cost, PaddingSide, in_groups, merge_images, one_row_an_answer, plain_costs
from cwdpo.engine.vision import FeatureCache, share_images
from cwdpo.models.parts import bare_model


class PlainEngine:
    """Log-probs by ``[prompt | answer]`` rows, without (row, length, vocabulary) logits.

    With ``images_once`` each prompt's images are encoded once, the features shared among its rows, and those of frozen
    towers kept; for models that :func:`cwdpo.engine.vision.can_share_images`.
    """

    def __init__(
        self, *, padding_side: PaddingSide = "right", images_once: bool = False, features: FeatureCache | None = None
    ) -> None:
        self.padding_side: PaddingSide = padding_side
        self.images_once = images_once
        self.report: dict[str, Any] = {"asked": "plain", "choices": []}
        self._features = features
        self._forward = Forward()

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        return in_groups(batch, lambda part: self._logprobs(model, part, want))

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return plain_costs(batch)

    def _logprobs(self, model: nn.Module, batch: Batch, want: Collection[Detail]) -> AnswerLogprobs:
        bare = bare_model(model)
        layout = one_row_an_answer(batch, padding_side=self.padding_side, answer_type=answer_type(bare))
        if not (self.images_once and "pixel_values" in layout.inputs):
            return self._forward(model, batch, layout, want=want)
        lookup = self._features.lookup(bare, batch) if self._features else None
        shared = share_images(bare, batch, batch["prompt_index"].tolist(), lookup=lookup)
        # the pixels of each prompt once; what else describes the images stays with the rows
        pixels = merge_images(batch["prompts"])["pixel_values"]
        layout = replace(layout, inputs=layout.inputs | {"pixel_values": pixels})
        return self._forward(model, batch, layout, want=want, contexts=[shared])
