"""What everything shares: the collator makes a :class:`Batch` of prompts, each with some answers, an engine makes
:class:`AnswerLogprobs` of it, and losses and probes pick the answers they want by :class:`Role`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

FLOAT32_GAP = 1e-3
"""nats; the largest difference of any token's log-prob between two exact ways in float32, TF32 kernels included. A
wrong mask, position or weight shows as 0.1 or more."""

HALF_MEAN_GAP = 0.1
"""nats; the largest mean difference in 16-bit types, whose rounding alone gives single tokens more."""


class Role(IntEnum):
    """What an answer is to its prompt."""

    CHOSEN = 0
    REJECTED = 1
    GENTLE = 2
    PROBE = 3
    """Only looked at: shuffled words, another row's answer, the chosen answer under another image, ..."""


Integers: TypeAlias = NDArray[np.int64]
"""Numbers that stay in main memory when a batch goes to a GPU, where reading them would wait for all work before."""


class Batch(TypedDict):
    """Prompts with their answers, before any layout. Nothing is padded but the answers, nothing is repeated.

    ``P`` prompts and ``A`` answers; a prompt may have any number of answers, and they stand together, in prompt order.
    What the model reads are tensors, which go to its device; what says how answers belong together are arrays of NumPy,
    which do not (see :data:`Integers` and :func:`on_device`).
    """

    row_index: Integers
    """``(P,)`` position of each prompt's row in its dataset. First, so that the Trainer counts prompts, not tokens."""

    prompts: list[dict[str, Tensor]]
    """For each prompt, what the processor returned for it alone (batch dimension 1, no padding), passed on unread."""

    prompt_index: Integers
    """``(A,)`` which of the P prompts each answer belongs to, never decreasing."""

    roles: Integers
    """``(A,)`` :class:`Role` of each answer."""

    lengths: Integers
    """``(A,)`` tokens of each answer."""

    answer_ids: Tensor
    """``(A, T)`` token ids, right-padded; the answer's own tokens and its end token, nothing of the prompt."""

    answer_mask: Tensor
    """``(A, T)`` True on the answer's tokens."""

    keys: list[str]
    """``A`` content keys: equal exactly when the model would see the same prompt, images and answer tokens."""

    cropped: NotRequired["Batch"]
    """The prompts that have images, each under a small crop of them and with its chosen answer alone, for a loss that
    compares the two. Selections of a batch leave it out."""

    image_keys: NotRequired[list[str]]
    """``P`` content keys of each prompt's images, see :func:`image_key`; made where the tensors are on the CPU."""


Detail: TypeAlias = Literal["uniform", "entropy", "chosen_entropy", "collision", "confidence", "hit", "distribution"]
"""Optional parts of :class:`AnswerLogprobs`, computed only when asked for. ``chosen_entropy`` is the entropy of the
chosen answers alone: the others' stays 0."""


@dataclass(frozen=True)
class AnswerLogprobs:
    """What an engine says of every answer in a batch; rows are in the batch's answer order."""

    token: Tensor
    """``(A, T)`` log pi(y_t | x, y_<t) in nats, float32, 0 where there is no token."""

    mask: Tensor
    """``(A, T)`` True on the answer's tokens."""

    uniform: Tensor | None = None
    """``(A, T)`` mean log-prob over the vocabulary at each token, with gradient, for label smoothing."""

    entropy: Tensor | None = None
    """``(A, T)`` entropy of the predicted distribution in nats, without gradient."""

    collision: Tensor | None = None
    """``(A, T)`` log sum_v pi(v)^2, the log-probability that two samples agree, without gradient."""

    confidence: Tensor | None = None
    """``(A, T)`` probability of the likeliest token, without gradient."""

    hit: Tensor | None = None
    """``(A, T)`` True where the likeliest token is the answer's token."""

    distribution: Tensor | None = None
    """``(A, T, V)`` log-probs over the vocabulary, without gradient. Large: for evaluation on small batches only."""

    precision: torch.dtype = torch.float32
    """What the model computed in, by its weights or by autocast: how far two exact ways may differ by rounding."""

    @property
    def total(self) -> Tensor:
        """``(A,)`` log pi(y|x), summed over the answer's tokens."""
        return self.token.sum(dim=-1)

    @property
    def mean(self) -> Tensor:
        """``(A,)`` lbar(y|x) = (1/L) sum_t log pi(y_t | x, y_<t), nats per token."""
        return masked_mean(self.token, self.mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """``(A,)`` mean over the True entries of each row of ``(A, T)``, at least one in each.

    Example:
        >>> masked_mean(torch.tensor([[-1.0, -3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([-2.])
    """
    return torch.where(mask, values, 0.0).sum(dim=-1) / mask.sum(dim=-1)


def on_device(values: Integers | Sequence[int], device: torch.device) -> Tensor:
    """Numbers as an int64 tensor on a device, which the program does not wait for.

    The copy is made of memory that is not pinned, so CUDA has taken the values when this returns.
    """
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device, non_blocking=True)


def answer_places(batch: Batch) -> Integers:
    """``(n,)`` where the answers' tokens stand in the flattened ``(A, T)`` of a batch: where ``answer_mask`` is True.

    Example:
        >>> import numpy as np
        >>> answer_places({"lengths": np.array([1, 2]), "answer_ids": torch.zeros(2, 3)})
        array([0, 3, 4])
    """
    return np.flatnonzero(np.arange(batch["answer_ids"].shape[1]) < batch["lengths"][:, None])


def places_of(batch: Batch, role: Role) -> Integers:
    """``(n,)`` which answers of a batch have a role."""
    return np.flatnonzero(batch["roles"] == role)


def pad_answers(answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """``(A, T)`` token ids, right-padded with 0, and ``(A, T)`` where they are: the padding's value means nothing."""
    lengths = torch.tensor([len(answer) for answer in answers])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([token for answer in answers for token in answer])
    return ids, mask


def token_names(prompt: Mapping[str, Tensor]) -> list[str]:
    """The entries that hold one value a token (``input_ids``, ``attention_mask``, token types, ...)."""
    shape = prompt["input_ids"].shape
    return [name for name, value in prompt.items() if value.shape[:2] == shape and name not in _NOT_INPUTS]


def has_images(batch: Batch) -> bool:
    """Whether any prompt of a batch has an image."""
    return any("pixel_values" in prompt for prompt in batch["prompts"])


def image_entries(prompt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that describe a prompt's images: all that are not per token."""
    per_token = token_names(prompt)
    return {name: value for name, value in prompt.items() if name not in per_token and name not in _NOT_INPUTS}


def image_key(prompt: Mapping[str, Tensor]) -> str:
    """Equal exactly when the model would see the same images; empty for a prompt without any."""
    entries = image_entries(prompt)
    return hash_tensors(sorted(entries.items())).hexdigest() if entries else ""


_NOT_INPUTS = ("labels",)
"""What some processors (PaliGemma's) return for a loss of the model's own, which is never asked for."""


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> xxhash.xxh3_128:
    """An xxh3 hash of 128 bits of named tensors in the order given, to which more may be added."""
    digest = xxhash.xxh3_128()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is as it was (a frozen tower may be in eval mode in training)."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
