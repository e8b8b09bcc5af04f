"""Answer tokens of a model to prompts, each prompt read once however many answers it gets.

``generate`` of transformers takes a row an answer: ``k`` samples of a prompt are ``k`` passes through the vision tower
and ``k`` through the prompt, and an answer that has ended is decoded until the longest one ends too. Here the prompts
are read once, their key-value cache is repeated for their answers, and a row leaves the batch when it ends. The tokens
are those of ``generate``, greedy or sampled: its own preparation, processors and stopping criteria are used, and the
random numbers are drawn for the same rows in the same order.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from cwdpo.batch import image_entries
from cwdpo.engine.forward import not_numbers
from cwdpo.engine.layout import prompts_alone
from cwdpo.engine.vision import FeatureCache, image_outputs
from cwdpo.memory import FittingPasses
from cwdpo.models.parts import bare_model, cast_images, has_sharded_weights

logger = logging.getLogger(__name__)

_ROW_BY_ROW: dict[str, Any] = {
    **dict.fromkeys(("encoder_repetition_penalty",), 1.0),
    **dict.fromkeys(("encoder_no_repeat_ngram_size",), 0),
    **dict.fromkeys(("guidance_scale", "watermarking_config", "prefill_chunk_size", "max_time")),
}
"""Settings with the value that leaves them off: set, they look at the whole batch, in which all rows must stay then."""

_CACHES = (None, "dynamic")
"""Values of ``cache_implementation`` that give a cache whose rows can be repeated and taken out."""


class _NoCacheError(Exception):
    """The model keeps no key-value cache whose rows can be repeated and taken out."""


_no_cache: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Models that were found to keep no such cache, and what was said of each."""

_logged: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""The reasons that were logged of each model."""


def decode(
    model: nn.Module,
    prompts: Sequence[dict[str, Tensor]],
    owners: Sequence[int],
    config: GenerationConfig,
    *,
    features: FeatureCache | None = None,
    passes: FittingPasses | None = None,
) -> Tensor:
    """Token ids of answers to prompts, by ``generate``'s rules; a model that cannot share prompts decodes them plainly.

    Args:
        model: generative, bare or with an adapter, in eval mode.
        prompts: what the processor returned for each alone; on any device.
        owners: of each answer, its prompt. Answers of one prompt stand together.
        config: greedy, or with ``do_sample``; the model's own generation config fills in what it leaves open.
        features: where the images' features are kept, if they are.
        passes: what is known of how many answers have room at one time.

    Returns:
        ``(answers, length)``, an answer that ended earlier padded with the config's ``pad_token_id``. Where they have
        no room on a GPU all together they are decoded in portions, one after the other. Logits that are not numbers
        are a ``UserError``.
    """

    def decode_portion(of_portion: Sequence[int]) -> Tensor:
        used = list(dict.fromkeys(of_portion))
        return _decode_at_once(
            model, [prompts[owner] for owner in used], [used.index(owner) for owner in of_portion], config, features
        )

    if has_sharded_weights(model):  # all processes must make equally many passes
        return decode_portion(owners)
    portions = (passes or FittingPasses("answers")).run(decode_portion, owners)
    longest = max(ids.shape[1] for ids in portions)
    pad: Any = config.pad_token_id
    return torch.cat([nn.functional.pad(ids, (0, longest - ids.shape[1]), value=pad) for ids in portions])


def _decode_at_once(
    model: nn.Module,
    prompts: Sequence[dict[str, Tensor]],
    owners: Sequence[int],
    config: GenerationConfig,
    features: FeatureCache | None,
) -> Tensor:
    """:func:`decode`, of all answers in one batch."""
    watch = _Watch()
    with bare_model(model).get_output_embeddings().register_forward_hook(watch.see_precision):
        ids = _generate(model, prompts, owners, config, features, LogitsProcessorList([watch]))
    if watch.broken:  # asked once, as every question waits for the GPU
        raise not_numbers(watch.precision)
    return ids


class _Watch(LogitsProcessor):
    """Looks whether logits are numbers. Those that are pass unchanged; in place of others stand zeros, since drawing a
    token from them is an error, on a GPU one that no later work survives."""

    def __init__(self) -> None:
        self.broken: Tensor | bool = False
        self.precision = torch.float32

    def see_precision(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        """As the head's forward hook: what leaves the model may be float32 whatever it was computed in."""
        self.precision = logits.dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # infinite ones too, whose softmax is not a number
        bad = ~(scores < torch.inf)
        self.broken = bad.any() | self.broken
        return scores.masked_fill(bad, 0.0)


def _generate(
    model: nn.Module,
    prompts: Sequence[dict[str, Tensor]],
    owners: Sequence[int],
    config: GenerationConfig,
    features: FeatureCache | None,
    processors: LogitsProcessorList,
) -> Tensor:
    """:func:`_decode_at_once`, whatever the logits are; the ``processors`` see them all."""
    policy: Any = model
    bare = bare_model(model)
    reason = why_not_shared(model, config) or _no_cache.get(bare)
    if reason is None:
        loop = partial(_decode, owners=torch.tensor(owners), once=_read_once(prompts))
        inputs = _inputs(model, prompts, features)
        try:
            ids: Tensor = policy.generate(
                **inputs, generation_config=config, logits_processor=processors, custom_generate=loop
            )
            return ids
        except _NoCacheError as problem:
            reason = _no_cache[bare] = str(problem)
    if reason not in _logged.setdefault(bare, set()):
        logger.info("answers are decoded by plain `generate`, one row each: %s", reason)
        _logged[bare].add(reason)
    inputs = _inputs(model, [prompts[owner] for owner in owners], None)
    ids = policy.generate(**inputs, generation_config=config, logits_processor=processors)
    return ids[:, inputs["input_ids"].shape[1] :]


def why_not_shared(model: nn.Module, config: GenerationConfig) -> str | None:
    """The reason why a model's prompts cannot be read once under a generation config, or None where they can."""
    if has_sharded_weights(model):
        return "the weights are divided among processes, which must make equally many passes"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "the adapter puts tokens of its own before the prompt"
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return f"the generation config asks for {mode.value.replace('_', ' ')}"
    if config.use_cache is False or config.cache_implementation not in _CACHES:
        return f"the generation config asks for the cache {config.cache_implementation or 'none'}"
    for name, off in _ROW_BY_ROW.items():
        if getattr(config, name, None) not in (None, off):
            return f"the generation config sets {name}, which looks at the whole batch"
    return None


def _inputs(model: nn.Module, prompts: Sequence[dict[str, Tensor]], features: FeatureCache | None) -> dict[str, Any]:
    """What ``generate`` takes, on the model's device; with kept features in place of pixels where there are some."""
    bare = bare_model(model)
    device = bare.device
    found = None
    if features is not None:
        found = image_outputs(bare, prompts, features)
    if found is not None:
        prompts = [{name: value for name, value in each.items() if name != "pixel_values"} for each in prompts]
    inputs: dict[str, Any] = {name: value.to(device) for name, value in prompts_alone(prompts).items()}
    return cast_images(model, inputs) | ({} if found is None else {"mm_encoder_outputs": {"image": found}})


def _read_once(prompts: Sequence[dict[str, Tensor]]) -> frozenset[str]:
    """Names of inputs that only the pass over the prompts needs."""
    return frozenset({name for prompt in prompts for name in image_entries(prompt)} | {"mm_encoder_outputs"})


def _decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    owners: Tensor,
    once: frozenset[str],
    **inputs: Any,
) -> Tensor:
    """The decoding loop, which ``generate`` calls in place of its own when everything is prepared.

    ``input_ids`` are ``(prompts, length)``, ``owners`` ``(answers,)`` and ``once`` the inputs that are dropped behind
    the prompts; gives ``(answers, longest answer)``.
    """
    if not isinstance(inputs.get("past_key_values"), DynamicCache):
        raise _NoCacheError(f"{type(model).__name__} keeps no key-value cache of the usual kind")
    policy: Any = model
    pad = generation_config.pad_token_id
    rows = torch.arange(len(owners), device=input_ids.device)  # of the answers that go on
    output = model(
        **policy.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs), return_dict=True
    )
    # by its private name, as there is no other: it knows what each model's next pass needs
    inputs = policy._update_model_kwargs_for_generation(output, inputs, is_encoder_decoder=False)
    inputs = {name: value for name, value in inputs.items() if name not in once}
    logits = output.logits[:, -1]
    if len(owners) != len(input_ids) or (owners.to(rows.device) != rows).any():
        owners = owners.to(input_ids.device)
        inputs = _select(inputs, owners, of=len(input_ids))
        input_ids, logits = input_ids[owners], logits[owners]
    answers: list[Tensor] = []
    while True:
        scores = logits_processor(input_ids, logits.to(copy=True, dtype=torch.float32))
        tokens = _draw(scores, rows, len(owners), pad) if generation_config.do_sample else scores.argmax(dim=-1)
        answers.append(tokens.new_full((len(owners),), pad).index_copy(0, rows, tokens))
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        going_on = (~stopping_criteria(input_ids, None)).nonzero()[:, 0]
        if not len(going_on):
            return torch.stack(answers, dim=1)
        if len(going_on) < len(rows):
            inputs = _select(inputs, going_on, of=len(rows))
            rows, input_ids = rows[going_on], input_ids[going_on]
        output = model(
            **policy.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **inputs), return_dict=True
        )
        inputs = policy._update_model_kwargs_for_generation(output, inputs, is_encoder_decoder=False)
        logits = output.logits[:, -1]


def _draw(scores: Tensor, rows: Tensor, total: int, pad: int) -> Tensor:
    """One token of each row that goes on, ``(rows, vocabulary)`` scores to ``(rows,)``.

    Rows that have ended take part, so that those that go on draw the same as if all rows stayed to the end.
    """
    chances = scores.softmax(dim=-1)
    if len(rows) == total:
        return torch.multinomial(chances, 1)[:, 0]
    everyone = chances.new_zeros(total, chances.shape[1])
    everyone[:, pad] = 1.0
    return torch.multinomial(everyone.index_copy(0, rows, chances), 1)[rows, 0]


def _select(inputs: dict[str, Any], chosen: Tensor, *, of: int) -> dict[str, Any]:
    """A pass's inputs for some ``of`` its rows, ``(n,)``, any of them several times; the cache is changed in place."""
    inputs["past_key_values"].reorder_cache(chosen)
    selected = {}
    for name, value in inputs.items():
        # positions of several dimensions (Qwen-VL's) have their rows second
        dim = 1 if name == "position_ids" and value.ndim == 3 else 0
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[dim] == of:
            value = value.index_select(dim, chosen)
        selected[name] = value
    return selected
