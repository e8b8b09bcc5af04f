"""The fastest engine that tells the truth about a model: tree, else plain rows with images once, else plain rows."""

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

import torch
from torch import distributed, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.budget import Cost, tree_costs
from cwdpo.engine.features import FeatureCache
from cwdpo.engine.forward import bare_model
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.self_check import Check, check_engine
from cwdpo.engine.tree import FLEX_FROM, TreeEngine
from cwdpo.engine.tree_attention import TreeUnsupportedError
from cwdpo.engine.vision import can_share_images
from cwdpo.errors import ConfigError

logger = logging.getLogger(__name__)

_ORDER = ("tree", "images_once", "plain")
_WORDS = {"tree": "one row a prompt", "images_once": "one row an answer, images once", "plain": "one row an answer"}
_CANNOT = (TreeUnsupportedError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a model raises that does not go along. Running out of memory is no such answer and passes through."""


class CheckedEngine:
    """Checks the engines on the first batch of each kind of model, and keeps to the first that is exact.

    A kind is the model's class, attention implementation and type, with or without images. Where several processes
    train together, each checks on its very first batch, and all take what the slowest of them must.
    """

    def __init__(
        self,
        *,
        must_be_tree: bool = False,
        features: FeatureCache | None = None,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Set up; nothing runs before the first batch.

        Args:
            must_be_tree: raise where the tree is not exact, in place of falling back.
            features: where the image features of frozen towers are kept.
            tell: called with the report after each choice.
        """
        self._must_be_tree, self._tell_others = must_be_tree, tell
        self._features = features
        self._engines: dict[str, TreeEngine | PlainEngine] = {
            "tree": TreeEngine(features=features),
            "flex": TreeEngine(features=features, flex_from=FLEX_FROM),
            "flex, short": TreeEngine(features=features, flex_from=1),
            "images_once": PlainEngine(images_once=True, features=features),
            "plain": PlainEngine(),
        }
        self._chosen: dict[tuple[Any, ...], str] = {}
        self.report: dict[str, Any] = {"asked": "tree" if must_be_tree else "auto", "choices": []}
        """What was chosen for which model, and the numbers that decided it."""
        if features is not None:
            self.report["features"] = features.report

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`.

        Raises:
            ConfigError: the tree must be used, but is not exact for this model.
        """
        return self._engine_for(model, batch).logprobs(model, batch, want=want)

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """See :meth:`cwdpo.engine.Engine.costs`."""
        return self._engine_for(model, batch).costs(model, batch)

    def _engine_for(self, model: nn.Module, batch: Batch) -> TreeEngine | PlainEngine:
        bare = bare_model(model)
        kind = _kind(bare, batch)
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(model, bare, batch)
        return self._engines[self._chosen[kind]]

    def _choose(self, model: nn.Module, bare: Any, batch: Batch) -> str:
        asked = _without_ddp(model)  # whose forward would wait for ranks that check at another time
        checks: dict[str, Check] = {}
        for name in _ORDER:
            checks[name] = self._check_with_features(name, asked, bare, batch)
            if _ok_everywhere(checks[name].ok, batch["answer_ids"].device):
                break
        self._tell(name, bare, checks)
        return self._with_flex(asked, bare, batch) if name == "tree" and _flex_pays(bare, batch) else name

    def _with_flex(self, model: nn.Module, bare: Any, batch: Batch) -> str:
        """The tree's long rows by flex_attention, where that is as exact on the probe's short ones."""
        check = self._check("flex, short", model, bare, batch)
        self.report["choices"][-1]["checks"]["flex_attention"] = asdict(check)
        told = logger.info if check.ok else logger.warning
        told(
            "%s: flex_attention is %sused for rows of %d tokens or more (%s)",
            type(bare).__name__,
            "" if check.ok else "not ",
            FLEX_FROM,
            check.reason,
        )
        return "flex" if _ok_everywhere(check.ok, batch["answer_ids"].device) else "tree"

    def _check_with_features(self, name: str, model: nn.Module, bare: Any, batch: Batch) -> Check:
        """As the engine will be used; where kept features alone are at fault, without them from now on."""
        check = self._check(name, model, bare, batch)
        if check.ok or name == "plain" or self._features is None or not self._features.used_for(model, bare):
            return check
        with self._features.off():
            without = self._check(name, model, bare, batch)
        if without.ok:
            logger.warning("image features of %s are not kept: %s", type(bare).__name__, check.reason)
            self._features.refuse(check.reason)
        return without

    def _check(self, name: str, model: nn.Module, bare: Any, batch: Batch) -> Check:
        if name == "images_once":
            if not can_share_images(bare):
                return Check(False, "the model takes no image features in place of pixels")
            if not _has_images(batch):
                return Check(False, "the first batch has no images to check it with")
        try:
            return check_engine(self._engines[name], model, batch, self._engines["plain"])
        except torch.OutOfMemoryError:
            raise
        except _CANNOT as error:
            if name == "plain":
                raise
            return Check(False, f"{type(error).__name__}: {error}")

    def _tell(self, chosen: str, bare: Any, checks: dict[str, Check]) -> None:
        model = type(bare).__name__
        self.report["choices"].append(
            {"model": model, "engine": chosen, "checks": {name: asdict(check) for name, check in checks.items()}}
        )
        if self._tell_others is not None:
            self._tell_others(self.report)
        failed = {name: check for name, check in checks.items() if not check.ok}
        reasons = "; ".join(f"{_WORDS[name]}: {check.reason}" for name, check in failed.items())
        if "plain" in failed:
            raise RuntimeError(
                f"{model} cannot be trained here: even with one row an answer, {failed['plain'].reason}. Its inputs "
                "need something for answers that is not known here, such as token types of their own."
            )
        if chosen != "tree" and self._must_be_tree:
            raise ConfigError(f"engine `tree` does not work for {model} ({reasons}). Write `engine: auto`.")
        if failed:
            logger.warning("%s is computed with %s (%s)", model, _WORDS[chosen], reasons)
        else:
            logger.info("%s is computed with %s (%s)", model, _WORDS[chosen], checks[chosen].reason)


def _kind(bare: Any, batch: Batch) -> tuple[Any, ...]:
    text = bare.config.get_text_config()
    images = _has_images(batch) and not _several_processes()  # ranks must not check at different times
    return type(bare), text._attn_implementation, bare.dtype, images, _flex_pays(bare, batch)


def _flex_pays(bare: Any, batch: Batch) -> bool:
    """Whether some rows will be long enough; with several processes, any may be."""
    if batch["answer_ids"].device.type != "cuda" or bare.config.get_text_config()._attn_implementation != "sdpa":
        return False
    return _several_processes() or max(cost.tokens for cost in tree_costs(batch)) >= FLEX_FROM


def _has_images(batch: Batch) -> bool:
    return any("pixel_values" in prompt for prompt in batch["prompts"])


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _ok_everywhere(ok: bool, device: torch.device) -> bool:
    """Asked after each candidate: sharded weights need all ranks in every pass."""
    if not _several_processes():
        return ok
    least = torch.tensor(int(ok), device=device)
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return bool(least)
