"""The engine answers one question: what are the log-probs of these answers to these prompts?

Which calls which, each for a reason of its own:

====================  ================================================================================================
an image in each      (``stand_in``) where processes that train together would wait for each other at the vision tower
the budget            (here) takes a batch in parts, where no gradient is wanted and ``max_tokens_per_batch`` is set
``checked``           checks itself on the first batch, and calls the fastest of ``tree`` and ``plain`` that is exact
``tree``, ``plain``   lay the prompts that may share a pass out as rows (``layout``, in groups)
``attention``         computes a tree's attention: split into prompt and answers, or by a mask
``forward``           passes the rows through the model, while ``vision`` shares and keeps the features of images
the head              (in ``forward``) reads log-probs where answers are predicted, a chunk of the logits at a time
====================  ================================================================================================
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.checked import CheckedEngine
from cwdpo.engine.layout import Cost, Engine, in_parts, parts_within
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.stand_in import WithStandIn
from cwdpo.engine.vision import FeatureCache
from cwdpo.models.parts import has_sharded_weights

__all__ = ["Engine", "FeatureCache", "features_of", "make_engine", "separate_engine", "with_stand_in", "within_budget"]


def make_engine(
    name: Literal["auto", "plain", "tree"] = "auto",
    *,
    features: FeatureCache | None = None,
    on_choice: Callable[[dict[str, Any]], None] | None = None,
    elsewhere: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of that name; ``auto`` is the fastest that gives exact numbers, ``tree`` the fastest or an error.

    ``features`` keeps the image features of frozen towers, except for ``plain``, which the others are compared with.
    ``on_choice`` is called with the engine's report after each choice. ``elsewhere`` is the report of another engine,
    whose choices are taken over.
    """
    if name != "plain":
        return CheckedEngine(must_be_tree=name == "tree", features=features, on_choice=on_choice, elsewhere=elsewhere)
    engine = PlainEngine()
    if features is not None:
        engine.report["features"] = "not kept by engine `plain`"
    return engine


def separate_engine(other: Engine, name: Literal["auto", "plain", "tree"], *, budget: int | None) -> Engine:
    """An engine that changes nothing of another; it keeps as many image features, if that one keeps any, and does not
    check again what that one has checked."""
    kept = other.report.get("features")
    features = FeatureCache(memory_mb=kept["memory_mb"]) if isinstance(kept, dict) else None
    return within_budget(make_engine(name, features=features, elsewhere=other.report), budget)


def features_of(engine: Engine) -> FeatureCache | None:
    """Where an engine keeps image features, for generation to look them up too; None where it keeps none."""
    features = getattr(engine, "features", None)
    return features if isinstance(features, FeatureCache) else None


def within_budget(engine: Engine, budget: int | None) -> Engine:
    """The engine with at most ``budget`` tokens in a pass, padding included; None sets no limit."""
    return engine if budget is None else WithinBudget(engine, budget)


def with_stand_in(engine: Engine, stand_in: Batch | None) -> Engine:
    """The engine with an image in every pass, that of ``stand_in`` where there is none; see :mod:`.stand_in`."""
    return engine if stand_in is None else WithStandIn(engine, stand_in)


class WithinBudget:
    """An engine that takes a batch in parts where no gradient is wanted: evaluation, reference and probes.

    Training divides its own batches, because each part needs its own backward pass; they pass through as they are.
    """

    def __init__(self, engine: Engine, budget: int) -> None:
        self._inner, self._budget = engine, budget
        self.report: dict[str, Any] = engine.report
        self.features = features_of(engine)

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return self._inner.costs(model, batch)

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        # the ranks of sharded weights must make equally many passes, or some wait forever
        if torch.is_grad_enabled() or has_sharded_weights(model):
            return self._inner.logprobs(model, batch, want=want)
        parts = parts_within(self.costs(model, batch), self._budget)
        return in_parts(batch, parts, lambda part: self._inner.logprobs(model, part, want=want))
