"""The fastest engine that is exact for a model: the tree with split attention, else with a mask, else plain rows with
images encoded once, else plain rows."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from cwdpo.batch import FLOAT32_GAP, HALF_MEAN_GAP, AnswerLogprobs, Batch, Detail, eval_mode, has_images, pad_answers
from cwdpo.engine.layout import Cost, Engine, select_prompts
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine, TreeUnsupportedError
from cwdpo.engine.vision import FeatureCache, can_share_images
from cwdpo.errors import ConfigError
from cwdpo.models.parts import bare_model, is_sharded

logger = logging.getLogger(__name__)

_CANDIDATES = {
    "tree": "one row a prompt",
    "tree_masked": "one row a prompt, with a mask",
    "images_once": "one row an answer, images once",
    "plain": "one row an answer",
}
"""Fastest first, with their names in messages."""

_CANNOT = (TreeUnsupportedError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a model raises that does not go along. Running out of memory is not such an answer and passes through."""

_LONGEST, _SHORTEST = 16, 4
"""Tokens of a probe's answers: enough for every layer to show itself, few enough to cost next to nothing."""


FLOAT32_GRADIENT_GAP, HALF_GRADIENT_GAP = 2e-3, 0.25
"""The largest difference of gradients between two exact ways, as a share of their size, in float32 (TF32 included) and
in 16-bit types. A backward pass that misses an answer, or a head, is off by more."""


@dataclass(frozen=True)
class Check:
    """What a self-check found, in nats.

    ``leak`` is how much an answer's log-probs changed with what it must not see: 0 exactly, or it leaks. ``gap`` is the
    largest difference of a token's log-prob to plain rows, ``mean_gap`` the mean difference. ``gradient_gap`` is the
    difference of gradients, as a share of those of plain rows; None where none were compared.
    """

    ok: bool
    reason: str
    leak: float | None = None
    gap: float | None = None
    mean_gap: float | None = None
    gradient_gap: float | None = None


class CheckedEngine:
    """Checks the engines on the first batch of each kind of model, and keeps to the first that is exact.

    A kind is the model's class, attention implementation and type, with or without images. Of several processes that
    train together, each checks on its very first batch, and all take what the slowest of them must.
    """

    def __init__(
        self,
        *,
        must_be_tree: bool = False,
        features: FeatureCache | None = None,
        on_choice: Callable[[dict[str, Any]], None] | None = None,
        elsewhere: Mapping[str, Any] | None = None,
    ) -> None:
        """With ``must_be_tree``, a ``ConfigError`` where the tree is not exact. Nothing runs before the first batch.

        ``elsewhere`` is another engine's :attr:`report`: what that one has chosen for a kind of model is not checked
        again.
        """
        self._elsewhere = {} if elsewhere is None else elsewhere
        self._must_be_tree, self.features, self._on_choice = must_be_tree, features, on_choice
        self._engines: dict[str, TreeEngine | PlainEngine] = {
            "tree": TreeEngine(features=features),
            "tree_masked": TreeEngine(features=features, attention="mask"),
            "images_once": PlainEngine(images_once=True, features=features),
            "plain": PlainEngine(),
        }
        self._chosen: dict[_Kind, str] = {}
        self.report: dict[str, Any] = {"asked": "tree" if must_be_tree else "auto", "choices": []}
        """What was chosen for which model, and the numbers that decided it."""
        if features is not None:
            self.report["features"] = features.report

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        return self._engine_for(model, batch).logprobs(model, batch, want=want)

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return self._engine_for(model, batch).costs(model, batch)

    def _engine_for(self, model: nn.Module, batch: Batch) -> TreeEngine | PlainEngine:
        bare = bare_model(model)
        kind = _kind(bare, batch)
        if kind not in self._chosen:
            self._chosen[kind] = self._chosen_elsewhere(kind) or self._choose(kind, model, bare, batch)
        return self._engines[self._chosen[kind]]

    def _chosen_elsewhere(self, kind: "_Kind") -> str | None:
        choices: Sequence[dict[str, Any]] = self._elsewhere.get("choices", [])
        made = next((choice for choice in choices if asdict(kind).items() <= choice.items()), None)
        if made is None:
            return None
        features = self._elsewhere.get("features", {})
        if self.features is not None and "off" in features:
            self.features.refuse(features["off"])
        return str(made["engine"])

    def _choose(self, kind: "_Kind", model: nn.Module, bare: PreTrainedModel, batch: Batch) -> str:
        # DDP's own forward would wait for ranks that check at another time
        asked = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        checks = {}
        for name in _CANDIDATES:
            checks[name] = self._check_with_features(name, asked, bare, batch)
            if _ok_everywhere(checks[name].ok, batch["answer_ids"].device):
                break
        self._record(name, kind, checks)
        return name

    def _check_with_features(self, name: str, model: nn.Module, bare: PreTrainedModel, batch: Batch) -> Check:
        """As the engine will be used; where kept features alone are at fault, without them from now on."""
        check = self._check(name, model, bare, batch)
        if check.ok or name == "plain" or self.features is None or not self.features.lookup(bare, batch):
            return check
        with self.features.off():
            without = self._check(name, model, bare, batch)
        if without.ok:
            logger.warning("image features of %s are not kept: %s", type(bare).__name__, check.reason)
            self.features.refuse(check.reason)
        return without

    def _check(self, name: str, model: nn.Module, bare: PreTrainedModel, batch: Batch) -> Check:
        if name == "images_once":
            if not can_share_images(bare):
                return Check(False, "the model takes no image features in place of pixels")
            if not has_images(batch):
                return Check(False, "the first batch has no images to check it with")
        gradients = name == "tree" and any(weight.requires_grad for weight in model.parameters())
        if gradients and _is_divided(model):
            return Check(False, "its gradients cannot be compared while its weights are divided among processes")
        try:
            return check_engine(self._engines[name], model, batch, self._engines["plain"], gradients=gradients)
        except torch.OutOfMemoryError:
            if gradients:
                return Check(False, "there is no memory to compare its gradients")
            raise
        except _CANNOT as error:
            if name == "plain":
                raise
            return Check(False, f"{type(error).__name__}: {error}")

    def _record(self, chosen: str, kind: "_Kind", checks: dict[str, Check]) -> None:
        model = kind.model
        numbers = {name: asdict(check) for name, check in checks.items()}
        self.report["choices"].append({**asdict(kind), "engine": chosen, "checks": numbers})
        if self._on_choice is not None:
            self._on_choice(self.report)
        failed = {name: check for name, check in checks.items() if not check.ok}
        reasons = "; ".join(f"{_CANDIDATES[name]}: {check.reason}" for name, check in failed.items())
        if "plain" in failed:
            raise RuntimeError(
                f"{model} cannot be trained here: even with one row an answer, {failed['plain'].reason}. Its inputs "
                "need something for answers that is not known here, such as token types of their own."
            )
        if chosen not in ("tree", "tree_masked") and self._must_be_tree:
            text = f"engine `tree` does not work for {model} ({reasons}). Write `engine: auto`."
            raise ConfigError(text, setting="engine")
        level, why = (logging.WARNING, reasons) if failed else (logging.INFO, checks[chosen].reason)
        logger.log(level, "%s is computed with %s (%s)", model, _CANDIDATES[chosen], why)


def check_engine(engine: Engine, model: nn.Module, batch: Batch, plain: Engine, *, gradients: bool = False) -> Check:
    """Compare an engine with plain rows on a small probe of the batch, without dropout.

    With ``gradients``, those of the embeddings are compared too. They have come through every layer, so that whatever
    is wrong in the backward pass of any attention is in them; and unlike those of the weights they are small.
    """
    before, after, blind = make_probe(batch)
    mask = before["answer_mask"]
    with torch.no_grad(), eval_mode(model):
        changed = engine.logprobs(model, after)
        found, gradient = _with_gradient(engine, model, before) if gradients else (engine.logprobs(model, before), None)
        exact, expected = _with_gradient(plain, model, before) if gradients else (plain.logprobs(model, before), None)
    leak = (found.token - changed.token)[blind].abs().max().item()
    gaps = (found.token - exact.token)[mask].abs()
    gap, mean_gap = gaps.max().item(), gaps.mean().item()
    is_full = found.precision == torch.float32
    close = gap <= FLOAT32_GAP if is_full else mean_gap <= HALF_MEAN_GAP
    off = None
    if gradient is not None and expected is not None:
        off = ((gradient - expected).norm() / expected.norm()).item()
    if leak != 0.0:  # NaN too
        reason = f"answers see what they must not: log-probs change by {leak:.3g} nats"
    elif not close:
        reason = f"log-probs differ from plain rows by up to {gap:.3g} nats"
    elif off is not None and not off <= (FLOAT32_GRADIENT_GAP if is_full else HALF_GRADIENT_GAP):
        close, reason = False, f"gradients differ from those of plain rows by {100 * off:.2g} %"
    else:
        reason = f"log-probs equal those of plain rows to {gap:.2g} nats"
        reason += "" if off is None else f", gradients to {off:.1g} of their size"
    return Check(leak == 0.0 and close, reason, leak, gap, mean_gap, off)


def _with_gradient(engine: Engine, model: nn.Module, probe: Batch) -> tuple[AnswerLogprobs, Tensor]:
    """The log-probs of a probe's answers to its one prompt; and ``(tokens, hidden)`` the gradient, with respect to the
    embeddings of the prompt and then of all its answers, of a sum in which each log-prob has a weight of its own."""
    bare = bare_model(model)
    decoder = bare.get_decoder()
    met: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            embeddings = bare.get_input_embeddings()(kwargs["input_ids"])
        met.append(embeddings.detach().requires_grad_())  # apart from what is before the decoder
        return args, kwargs | {"input_ids": None, "inputs_embeds": met[-1]}

    # a layer that keeps nothing in training must not need more here; what drops at random is in its parts
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    with torch.enable_grad(), decoder.register_forward_pre_hook(keep, with_kwargs=True):
        for layer in layers:
            layer.training = True
        try:
            found = engine.logprobs(model, probe)
            token = found.token[found.mask]
            weights = torch.linspace(-1.0, 2.0, len(token), device=token.device)
            (gradient,) = torch.autograd.grad((token * weights).sum(), met)
        finally:
            for layer in layers:
                layer.training = False
    start = probe["prompts"][0]["input_ids"].shape[1]
    lengths = [length - 1 for length in probe["lengths"].tolist()]
    if len(gradient) == 1:
        tails = [gradient[0, start : start + sum(lengths)]]
    else:
        tails = [row[start : start + length] for row, length in zip(gradient, lengths, strict=True)]
    found = replace(found, token=found.token.detach())
    return found, torch.cat([gradient[:, :start].sum(dim=0), *tails]).float()


def make_probe(batch: Batch) -> tuple[Batch, Batch, Tensor]:
    """Three answers to one prompt of the batch, if possible with images; and the same with the first one changed.

    The last of the results is ``(3, T)``: True on tokens whose log-probs must not feel the change, which are those of
    the first answer before it and all of the others.
    """
    index = next((i for i, prompt in enumerate(batch["prompts"]) if "pixel_values" in prompt), 0)
    one, _ = select_prompts(batch, [index])
    own = [ids[mask].tolist() for ids, mask in zip(one["answer_ids"], one["answer_mask"], strict=True)]
    own = [(ids * -(-_SHORTEST // len(ids)))[:_LONGEST] for ids in own]
    first = own[0]
    second = own[1] if len(own) > 1 else first[::-1]
    pool = [*batch["answer_ids"][batch["answer_mask"]].tolist(), int(one["prompts"][0]["input_ids"][0, -1])]
    half = len(first) // 2
    changed = first[:half] + [next((other for other in pool if other != token), token) for token in first[half:]]
    before, after = (_with_answers(one, [each, second, first]) for each in (first, changed))
    blind = before["answer_mask"].clone()
    blind[0, half:] = False
    return before, after, blind


def _with_answers(one: Batch, answers: list[list[int]]) -> Batch:
    ids, mask = (tensor.to(one["answer_ids"].device) for tensor in pad_answers(answers))
    zeros = np.zeros(len(answers), dtype=np.int64)
    return Batch(
        row_index=one["row_index"],
        prompts=one["prompts"],
        prompt_index=zeros,
        roles=zeros,
        lengths=np.array([len(answer) for answer in answers]),
        answer_ids=ids,
        answer_mask=mask,
        keys=[""] * len(answers),
    )


@dataclass(frozen=True)
class _Kind:
    """What decides which engine is exact."""

    model: str
    attention: str
    dtype: str
    images: bool


def _kind(bare: PreTrainedModel, batch: Batch) -> _Kind:
    attention = str(bare.config.get_text_config()._attn_implementation)
    images = has_images(batch) and not _several_processes()  # ranks must not check at different times
    return _Kind(type(bare).__name__, attention, str(bare.dtype).removeprefix("torch."), images)


def _is_divided(model: nn.Module) -> bool:
    return isinstance(model, FullyShardedDataParallel) or any(map(is_sharded, model.parameters()))


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _ok_everywhere(ok: bool, device: torch.device) -> bool:
    """Asked after each candidate: sharded weights need all ranks in every pass."""
    least = torch.tensor(int(ok), device=device)
    if _several_processes():
        distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return bool(least)
