"""One forward pass over a layout, and what is read from it: the part that every engine shares."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.head import LogitTransform, capture_head_input, find_logit_transform, read_tokens
from cwdpo.engine.layout import Layout
from cwdpo.engine.vision import encode_frozen_without_grad

_ANSWER_TYPE = {"paligemma": 1}
"""``token_type_ids`` of answers by model type. PaliGemma attends in both directions among tokens of type 0, so an
answer that went on with its prompt's type would see its own future; elsewhere an answer goes on as the prompt ends."""


def bare_model(model: nn.Module) -> Any:
    """The transformers model inside DDP, FSDP and PEFT."""
    unwrapped: Any = extract_model_from_parallel(model)
    unwrap = getattr(unwrapped, "get_base_model", None)
    return unwrapped if unwrap is None else unwrap()


def answer_type(bare: Any) -> int | None:
    """What answers have in ``token_type_ids``, or None where they go on as the prompt ends."""
    return _ANSWER_TYPE.get(bare.config.model_type)


class Forward:
    """Runs layouts through models; the first time, it checks that the model's logits are understood."""

    def __init__(self) -> None:
        self._transforms: WeakKeyDictionary[nn.Module, LogitTransform] = WeakKeyDictionary()

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        layout: Layout,
        *,
        want: Collection[Detail],
        contexts: Sequence[AbstractContextManager[Any]] = (),
    ) -> AnswerLogprobs:
        """Log-probs of the batch's answers, whose rows are laid out.

        Args:
            model: bare or wrapped; its own forward is called, so every wrapper does its work.
            batch: the answers to read.
            layout: the rows.
            want: optional details.
            contexts: open during the forward pass alone.
        """
        bare = bare_model(model)
        head = bare.get_output_embeddings()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            stack.enter_context(encode_frozen_without_grad(bare))
            captured = stack.enter_context(capture_head_input(head))
            output = model(**layout.inputs, use_cache=False, logits_to_keep=layout.predicts)
        if bare not in self._transforms:
            self._transforms[bare] = find_logit_transform(bare, captured, head, output.logits)
        if layout.gather is not None:
            captured.hidden = [hidden[layout.gather] for hidden in captured.hidden]
        mask = batch["answer_mask"]
        read = read_tokens(captured, batch["answer_ids"][mask], head, self._transforms[bare], want=want)
        details = {name: _spread(values, mask) for name, values in read.items()}
        return AnswerLogprobs(mask=mask, **details, precision=captured.precision)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """``(n, ...)`` values of the True entries, back in their places of an ``(A, T, ...)`` tensor of zeros."""
    spread = values.new_zeros(*mask.shape, *values.shape[1:])
    return spread.index_put((mask,), values)
