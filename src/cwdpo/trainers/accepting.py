"""What the trainers are made of: each argument is taken in any form that has one meaning, or refused in one line that
says, with Python's names, what to write. Most refusals come before anything is loaded.
"""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from cwdpo.engine import Engine
from cwdpo.errors import ConfigError, UserError, shortened, what_is
from cwdpo.models.adapters import check_adapters, check_targets, with_adapters
from cwdpo.models.loading import check_reads_images, load_policy, load_processor

_Arguments = TypeVar("_Arguments")


def take_arguments(args: object, wanted: type[_Arguments], *, trainer: str) -> _Arguments:
    """The trainer's settings, which must be of its own class: those of another have no meaning for its loss."""
    if isinstance(args, wanted):
        return args
    raise ConfigError(
        f"args is {what_is(args)}, but {trainer} takes a {wanted.__name__}. Write `from cwdpo import "
        f"{wanted.__name__}` and args={wanted.__name__}(...); it has every setting of transformers.TrainingArguments."
    )


def take_policy(
    model: object,
    peft_config: object,
    *,
    loading: Mapping[str, Any],
    quantization_config: BitsAndBytesConfig | None = None,
) -> PreTrainedModel | PeftModel:
    """The model that is trained: loaded where ``model`` is a text or a path, and with new adapters where a
    ``peft_config`` describes some. ``loading`` are options of
    :func:`cwdpo.models.loading.load_policy`."""
    if not isinstance(model, PreTrainedModel | PeftModel | str | Path):
        advice = (
            "Give the transformers model that is inside it."
            if isinstance(model, nn.Module)
            else 'Write model="Qwen/Qwen2.5-VL-3B-Instruct" (a hub name or a directory), or a model that you loaded.'
        )
        raise ConfigError(f"model is {what_is(model)}, and not a transformers model. {advice}")
    adapters = None if peft_config is None else _peft_config_for(model, peft_config)
    if isinstance(model, str | Path):
        policy: Any = load_policy(model, **_with_quantization(loading, quantization_config))
    else:
        policy = model
        if quantization_config is not None:
            raise ConfigError(
                "quantization_config is for loading, and model is loaded already. Give model as a text, or load it "
                "with that configuration and leave quantization_config out."
            )
    if adapters is not None:
        check_targets(policy, getattr(adapters, "target_modules", None))
        policy = with_adapters(policy, adapters)
    if isinstance(policy, PeftModel):
        check_adapters(policy)
    return policy  # type: ignore[no-any-return]


def _peft_config_for(model: object, peft_config: object) -> PeftConfig:
    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"peft_config is {what_is(peft_config)}, and not a configuration of PEFT. Write "
            "peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules=...)."
        )
    if isinstance(model, PeftModel):
        raise ConfigError(
            "model is a PeftModel, and peft_config describes adapters too: they would be put into each other, and "
            "saved without the model's own. Leave peft_config out to train the adapters that the model has, or give "
            "the model without them (`model.merge_and_unload()` keeps what they learned)."
        )
    return peft_config


def _with_quantization(loading: Mapping[str, Any], quantization: BitsAndBytesConfig | None) -> dict[str, Any]:
    if quantization is None:
        return dict(loading)
    if "quantization" in loading:
        raise ConfigError("quantization_config stands in model_init_kwargs too. Write it once.")
    return {**loading, "quantization": quantization}


def take_reference(ref_model: object, *, loading: Mapping[str, Any]) -> nn.Module:
    """The reference: a model, loaded where a text or a path names it."""
    if isinstance(ref_model, str | Path):
        return load_policy(ref_model, **loading)
    if not isinstance(ref_model, PreTrainedModel | PeftModel):
        raise ConfigError(
            f"ref_model is {what_is(ref_model)}, and not a transformers model. Give a model, its name or its "
            "directory; or leave it out: the reference is then the model as it is when training starts."
        )
    return ref_model


def given_processor(processing_class: object, tokenizer: object) -> ProcessorMixin | None:
    """The processor that is given, under its name of today or of older versions; anything else is a ConfigError."""
    if processing_class is not None and tokenizer is not None and processing_class is not tokenizer:
        raise ConfigError("processing_class and tokenizer are two names of one argument. Leave tokenizer out.")
    given = tokenizer if processing_class is None else processing_class
    if given is None:
        return None
    if isinstance(given, ProcessorMixin) and hasattr(given, "tokenizer") and hasattr(given, "image_processor"):
        return given
    what = " (a tokenizer, which does not read images)" if isinstance(given, PreTrainedTokenizerBase) else ""
    raise ConfigError(
        f"processing_class is {what_is(given)}{what}, and not a processor of a vision-language model. Write "
        "processing_class=AutoProcessor.from_pretrained(...), or leave it out: it is loaded from the model's name."
    )


def processor_beside(model: object, *, trust_remote_code: bool) -> ProcessorMixin:
    """The processor that lies beside a model, given by name or loaded from one."""
    config: Any = getattr(model, "config", None)
    name = model if isinstance(model, str | Path) else getattr(config, "name_or_path", None)
    if name:
        try:
            return load_processor(name, trust_remote_code=trust_remote_code)
        except UserError as error:
            if isinstance(model, str | Path):
                raise
            check_reads_images(config, str(name))
            raise ConfigError(f"no processing_class was given, and {error}") from error
    raise ConfigError("pass processing_class=AutoProcessor.from_pretrained(...): it turns rows into tensors.")


def check_trainable(policy: nn.Module) -> None:
    """Refuse a model of which no weight would train."""
    if any(weight.requires_grad for weight in policy.parameters()):
        return
    advice = (
        "Load its adapters with PeftModel.from_pretrained(..., is_trainable=True)."
        if isinstance(policy, PeftModel)
        else "Write `model.requires_grad_(True)`, or give a peft_config."
    )
    raise ConfigError(f"no weight of the model trains: requires_grad is False in all of them. {advice}")


def refuse_unknown(unknown: Mapping[str, object], args: object, known: Collection[str]) -> None:
    """Refuse what the trainer does not take; ``known`` are its arguments, and ``args`` its settings."""
    settings, kind = vars(args), type(args).__name__
    for name, value in unknown.items():
        if name == "model_init":
            raise ConfigError(
                "model_init makes a new model for every trial of a search, and none is made here. Write "
                "model=model_init()."
            )
        if name in settings:
            raise ConfigError(f"{name} belongs in {kind}: write args={kind}({name}={shortened(repr(value))}, ...).")
        near = difflib.get_close_matches(name, [*known, *settings], n=1, cutoff=0.75)
        advice = f"Did you mean {near[0]}?" if near else f"Leave it out: rows come whole, and settings are in {kind}."
        raise ConfigError(f"{name} is neither an argument of the trainer nor a setting. {advice}")


def refuse_file(directory: str | Path | None, name: str) -> None:
    """Refuse a file where models are to be saved; ``name`` is of the setting."""
    if directory is not None and Path(directory).is_file():
        raise ConfigError(f"{name}: {directory} is a file, and a directory is needed. Write another.")


def refuse_collator(data_collator: object) -> None:
    """Batches of prompts with answers are what the losses read, so no other collator can make them."""
    if data_collator is not None:
        raise ConfigError(
            f"data_collator is {what_is(data_collator)}, but the losses read batches of prompts with their answers, "
            "which only the trainer's own collator makes. Leave it out, and change the rows instead "
            "(`dataset.map`, or `dataset.with_transform`; where a transform is random, stage 2 needs "
            "reference='live')."
        )


def check_engine(engine: object) -> None:
    """An engine is an object; its name is a setting."""
    if engine is not None and not (hasattr(engine, "logprobs") and hasattr(engine, "costs")):
        raise ConfigError(
            f"engine is {engine!r}, and not an {Engine.__name__}. Write its name into args: engine='tree'."
        )
