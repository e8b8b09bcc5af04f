"""The plain engine: one row an answer. Slow and obvious, it is what every faster engine is held to."""

from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakSet

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.head import HeadInput, capture_head_input, logit_transform, read_tokens
from cwdpo.engine.layout import Layout, PaddingSide, one_row_an_answer


class PlainEngine:
    """Log-probs by ``[prompt | answer]`` rows, without (row, length, vocabulary) logits."""

    def __init__(self, *, padding_side: PaddingSide = "right") -> None:
        self.padding_side: PaddingSide = padding_side
        self._verified: WeakSet[nn.Module] = WeakSet()

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`."""
        mask = batch["answer_mask"]
        layout = one_row_an_answer(batch, padding_side=self.padding_side)
        read = self._read(model, layout, batch["answer_ids"][mask], want)
        return AnswerLogprobs(
            mask=mask,
            **{name: _spread(values, mask) for name, values in read.items()},
        )

    def _read(self, model: nn.Module, layout: Layout, targets: Tensor, want: Collection[Detail]) -> dict[str, Tensor]:
        bare: Any = extract_model_from_parallel(model)
        head = bare.get_output_embeddings()
        with capture_head_input(head) as captured:
            output = model(**layout.inputs, use_cache=False, logits_to_keep=layout.predicts)
        transform = logit_transform(bare)
        if bare not in self._verified:
            _verify_head(output.logits, captured, head, transform)
            self._verified.add(bare)
        return read_tokens(captured, targets, head, transform, want=want)


@torch.no_grad()
def _verify_head(logits: Tensor, captured: HeadInput, head: nn.Module, transform: Callable[[Tensor], Tensor]) -> None:
    """Compare the model's own logits of one position with ours, once a model, so that no unknown transform passes."""
    (hidden,), autocast = captured.hidden, captured.autocast
    theirs = logits.reshape(-1, logits.shape[-1])[0].float().log_softmax(dim=-1)
    with torch.autocast(hidden.device.type, dtype=autocast[1], enabled=autocast[0]):
        ours = transform(head(hidden[:1]))[0].log_softmax(dim=-1)
    gap = (ours - theirs).abs().max().item()
    tolerance = 1e-4 if logits.dtype == torch.float32 else 0.1
    if not gap <= tolerance:
        raise RuntimeError(
            f"the model changes its logits in a way that is not known here (log-probs differ by {gap:.3g} nats). "
            "Known are final_logit_softcapping, logit_scale and logits_scaling of the text config."
        )


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """``(n, ...)`` values of the True entries, back in their places of an ``(A, T, ...)`` tensor of zeros."""
    spread = values.new_zeros(*mask.shape, *values.shape[1:])
    return spread.index_put((mask,), values)
