"""The engine answers one question: the log-probs of these answers to these prompts."""

from collections.abc import Collection
from typing import Literal, Protocol

from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.plain import PlainEngine
from cwdpo.errors import ConfigError


class Engine(Protocol):
    """How a batch is laid out in rows is the engine's business alone; the numbers are the same for every engine."""

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """Log-probs of every answer in the batch under the model.

        Args:
            model: a vision-language model of transformers, bare or wrapped (PEFT, DDP, FSDP).
            batch: prompts with their answers, on the model's device.
            want: optional details to compute as well.
        """
        ...


def make_engine(name: Literal["auto", "plain", "tree"] = "auto") -> Engine:
    """The engine of that name; ``auto`` is the fastest that gives exact numbers.

    Raises:
        ConfigError: the engine is not there yet.
    """
    if name == "tree":
        raise ConfigError("engine `tree` is not built yet. Write `engine: auto` or `engine: plain`.")
    return PlainEngine()
