"""Load a vision-language model for training: all of its weights or an error, and no dropout."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from cwdpo.errors import UserError
from cwdpo.models.parts import freeze_vision_tower
from cwdpo.models.sources import local_directory, one_line, reported_by_us, some

logger = logging.getLogger(__name__)


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
    freeze_vision: bool = True,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the model that is to be trained.

    Every dropout probability, in the configuration and in the modules, is set to 0: policy and reference must agree on
    the same weights in training mode too, or the rewards of step 0 would not be 0. The saved configuration says so.

    Args:
        name_or_path: a local directory or a hub name that ``AutoModelForImageTextToText`` loads.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        attn_implementation: as in transformers; None leaves the choice to it.
        quantization: from :func:`cwdpo.models.adapters.quantization_config`, for a frozen base under adapters.
        freeze_vision: stop training the vision tower; its projector (for Qwen-VL the mergers inside the tower) and
            the language model train on.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: there is no such checkpoint, it is no vision-language model, its weights are missing, broken or
            incomplete, or it needs code that may not run.
    """
    source = str(local_directory(name_or_path) or name_or_path)
    config = load_config(source, trust_remote_code=trust_remote_code)
    _silence_dropout_settings(config)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "quantization_config": quantization}
    if quantization is not None:
        # quantised weights cannot move later, so each process loads them onto its own GPU
        options["device_map"] = {"": PartialState().local_process_index}
    model = _load_whole(
        source,
        config=config,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **{name: value for name, value in options.items() if value is not None},
    )
    _silence_dropout_modules(model)
    if freeze_vision and not freeze_vision_tower(model):
        logger.warning("freeze_vision has no effect: %s has no vision tower that can be told apart", source)
    return model


def load_outline(name_or_path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's layers without their weights (meta tensors): for asking what would train, in no memory and no time.

    Raises:
        UserError: there is no such checkpoint, it is no vision-language model, or it needs code that may not run.
    """
    source = str(local_directory(name_or_path) or name_or_path)
    config = load_config(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        auto: Any = AutoModelForImageTextToText
        outline: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return outline


def load_config(source: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a vision-language model.

    Raises:
        UserError: there is no such checkpoint, it is no vision-language model, or it needs code that may not run.
    """
    directory = local_directory(source)
    if directory is not None and not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            raise UserError(
                f"{source} holds adapters, not a model. Run `cwdpo merge {source} --out DIR` and use DIR, or name the "
                "base model."
            )
        raise UserError(f"{source} has no config.json, so it is no checkpoint. Name the directory that holds one.")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{source} comes with its own Python code. If you trust it, set `model.trust_remote_code: true` "
                "(--trust-remote-code where a command has it)."
            ) from error
        if directory is None:
            raise UserError(
                f"{source} is neither a directory here nor a hub model that can be reached: {one_line(error)}"
            ) from error
        raise UserError(f"the configuration of {source} cannot be read: {one_line(error)}") from error
    remote = trust_remote_code and "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        raise UserError(
            f"{source} is a {config.model_type} model, which does not read images. Name a vision-language model that "
            "AutoModelForImageTextToText loads, such as Qwen2.5-VL, Qwen3-VL, LLaVA or Idefics3."
        )
    return config


def _load_whole(source: str, **options: Any) -> PreTrainedModel:
    """``from_pretrained``, where any weight that the checkpoint does not give is an error."""
    try:
        # wrong shapes are let through here, so that the message below can name them
        with reported_by_us():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except SafetensorError as error:
        raise UserError(
            f"a weight file of {source} is damaged ({one_line(error)}). Copy or download the checkpoint again."
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"the weights of {source} cannot be loaded: {one_line(error)}") from error
    model: PreTrainedModel
    model, report = loaded
    mismatched = [f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    for what, names in (("lacks", report["missing_keys"]), ("has the wrong shape for", mismatched)):
        if names:
            raise UserError(
                f"{source} {what} {len(names)} of the model's weights: {some(names)}. They would be random. Download "
                "the checkpoint again, or fix the sizes in its config.json."
            )
    if report["unexpected_keys"]:
        logger.warning("%s has weights that the model does not use: %s", source, some(report["unexpected_keys"]))
    return model


def _silence_dropout_settings(config: PretrainedConfig) -> None:
    """Set every ``*drop*`` number to 0, before the layers copy it out of the configuration."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _silence_dropout_settings(value)
        elif "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))


def _silence_dropout_modules(model: nn.Module) -> None:
    """Reach the probabilities that no configuration names."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            module.p = 0.0
