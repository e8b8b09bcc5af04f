"""On-policy negatives: answers sampled from the policy itself, so that it unlearns what it really says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.generation import Generated, generate


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    k: int = 1
    """Answers a prompt."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 32
    """Answers at one time; the samples of a local model depend on it, as they do on the seed."""


class Sampler(Protocol):
    """Draws answers to prompts."""

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """``k`` answers for each row; fewer where some could not be had."""
        ...


class LocalSampler:
    """Draws from a model in memory, with torch's random state left as it was."""

    def __init__(self, model: Any, processor: Any, sampling: Sampling, *, encoder: Encoder | None = None) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.encoder = encoder or Encoder(processor)

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """See :class:`Sampler`."""
        how = self.sampling
        found = generate(
            self.model,
            self.processor,
            [row for row in rows for _ in range(how.k)],
            batch_size=how.batch_size,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=seed,
            encoder=self.encoder,
        )
        return [found[start : start + how.k] for start in range(0, len(found), how.k)]


def chunks(indices: Sequence[int], sampling: Sampling) -> list[Sequence[int]]:
    """Rows in the portions that are sampled at one time, each with a seed of its own.

    So samples do not depend on how many processes share the work, nor on where an interruption fell.
    """
    size = max(1, sampling.batch_size // sampling.k)
    return [indices[start : start + size] for start in range(0, len(indices), size)]
