"""The engine answers one question: the log-probs of these answers to these prompts."""

from collections.abc import Callable, Collection
from typing import Any, Literal, Protocol

from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.checked import CheckedEngine
from cwdpo.engine.layout import Cost, within_budget
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.vision import FeatureCache

__all__ = ["Engine", "FeatureCache", "make_engine", "separate_engine", "within_budget"]


class Engine(Protocol):
    """How a batch is laid out in rows is the engine's business alone; the numbers are the same for every engine."""

    report: dict[str, Any]
    """What the engine decided, and on which numbers, for a run's records. JSON types only."""

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """Log-probs of every answer in the batch under the model.

        Args:
            model: a vision-language model of transformers, bare or wrapped (PEFT, DDP, FSDP).
            batch: prompts with their answers, on the model's device.
            want: optional details to compute as well.
        """
        ...

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """What each of a batch's prompts with its answers is to a forward pass, as this engine lays them out.

        Args:
            model: bare or wrapped.
            batch: on the model's device, since an engine may have to check itself on it first.
        """
        ...


def make_engine(
    name: Literal["auto", "plain", "tree"] = "auto",
    *,
    features: FeatureCache | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> Engine:
    """The engine of that name; ``auto`` is the fastest that gives exact numbers, ``tree`` the fastest or an error.

    Args:
        name: the engine.
        features: where the image features of frozen towers are kept; ``plain``, to which the others are held, keeps
            none.
        tell: called with the engine's report as soon as it has chosen; ``plain`` has nothing to choose.
    """
    if name != "plain":
        return CheckedEngine(must_be_tree=name == "tree", features=features, tell=tell)
    engine = PlainEngine()
    if features is not None:
        engine.report["features"] = "not kept by engine `plain`"
    return engine


def separate_engine(other: Engine, name: Literal["auto", "plain", "tree"], *, budget: int | None) -> Engine:
    """An engine beside another, that learns nothing of it and teaches it nothing.

    Args:
        other: where it keeps image features, so does this one, as many and apart from them.
        name: the engine.
        budget: most tokens in a pass; None sets no limit.
    """
    kept = other.report.get("features")
    features = FeatureCache(memory_mb=kept["memory_mb"]) if isinstance(kept, dict) else None
    return within_budget(make_engine(name, features=features), budget)
