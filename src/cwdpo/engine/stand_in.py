"""An image in every pass: where weights or gradients are divided, all processes must use the same of them.

FSDP2 and ZeRO-3 gather a layer's weights from all processes when one uses them, and ZeRO-2 adds up gradients in the
order in which they come: a process whose rows have no image would leave the others waiting forever at the vision tower,
or would mix its gradients with those of other weights. So its passes have one prompt more, which has an image, and
nothing is read from it: its gradients are zeros.
"""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Role, has_images
from cwdpo.engine.layout import Cost, Engine
from cwdpo.models.parts import has_sharded_weights


class WithStandIn:
    """An engine that adds a prompt with an image to each batch that has none, and leaves it out of what it returns."""

    def __init__(self, engine: Engine, stand_in: Batch) -> None:
        """``stand_in`` is a batch of one prompt, which has images; one token of one of its answers is used."""
        self._inner, self._stand_in = engine, stand_in
        self.report: dict[str, Any] = engine.report
        self.features = getattr(engine, "features", None)

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return self._inner.costs(model, batch)

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        # whole weights that need no gradient are waited for by nobody
        waited_for = torch.is_grad_enabled() or has_sharded_weights(model)
        if has_images(batch) or not waited_for:
            return self._inner.logprobs(model, batch, want=want)
        found = self._inner.logprobs(model, with_prompt(batch, self._stand_in), want=want)
        given = {each.name: getattr(found, each.name) for each in fields(found)}
        own: dict[str, Any] = {name: value[:-1] for name, value in given.items() if isinstance(value, Tensor)}
        return replace(found, **own)


def with_prompt(batch: Batch, other: Batch) -> Batch:
    """A batch with the first prompt of another behind its own, and one token of one answer, the last of all, to it."""
    longest = batch["answer_ids"].shape[1]
    device = batch["answer_ids"].device
    token = other["answer_ids"][:1, :1].to(device)
    prompt = {name: value.to(device) for name, value in other["prompts"][0].items()}
    joined = Batch(
        row_index=np.append(batch["row_index"], other["row_index"][:1]),
        prompts=[*batch["prompts"], prompt],
        prompt_index=np.append(batch["prompt_index"], len(batch["prompts"])),
        # no chosen answer, whose entropy would be computed
        roles=np.append(batch["roles"], int(Role.GENTLE)),
        lengths=np.append(batch["lengths"], 1),
        answer_ids=torch.cat([batch["answer_ids"], F.pad(token, (0, longest - 1))]),
        answer_mask=torch.cat([batch["answer_mask"], F.pad(torch.ones_like(token).bool(), (0, longest - 1))]),
        keys=[*batch["keys"], other["keys"][0]],
    )
    if "image_keys" in batch:
        joined["image_keys"] = [*batch["image_keys"], other["image_keys"][0]]
    return joined
