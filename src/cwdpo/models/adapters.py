"""Low-rank adapters: which layers they go into, and how they are made, loaded and put on a quantised base."""

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from cwdpo.errors import ConfigError, UserError
from cwdpo.models.parts import base_model, check_base, language_model, one_line, some, vision_tower

_LORA_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "language",
    freeze_vision: bool = True,
) -> PeftModel:
    """Put fresh adapters into the model; nothing else trains. Logits do not change, because the adapters begin at 0.

    A model loaded in 4 or 8 bits is prepared first, which casts its unquantised weights to float32. Gradient
    checkpointing is left to the Trainer.

    Args:
        model: a bare model; it is changed in place.
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: inside the adapters. Above 0, policy and reference differ in training mode.
        target_modules: see :func:`lora_targets`.
        freeze_vision: see :func:`lora_targets`.
    """
    targets = lora_targets(model, target_modules, freeze_vision=freeze_vision)
    _prepare_quantized(model)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    hit = sorted(wrapped.base_model.targeted_module_names)
    assert hit == sorted(targets), f"PEFT put adapters into other layers than asked for: {hit} for {targets}"
    return wrapped  # type: ignore[no-any-return]  # get_peft_model promises less than it gives


def _prepare_quantized(model: PreTrainedModel) -> None:
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        prepare: Any = prepare_model_for_kbit_training
        prepare(model, use_gradient_checkpointing=False)


def lora_targets(model: nn.Module, target_modules: str | Sequence[str], *, freeze_vision: bool = True) -> list[str]:
    """Names of the layers that adapters would go into, in model order.

    Fused experts, which are parameters and not layers, are never hit.

    Args:
        model: a bare model.
        target_modules: ``language``: every linear layer of the language model, without the output head;
            ``all-linear``: every linear layer but the output head; a list: layers with one of these names, or with a
            longer dotted name that ends in one; any other text: a regular expression for the whole dotted name.
        freeze_vision: leave the vision tower out of ``all-linear``, and refuse a pattern or a list that hits it.

    Raises:
        ConfigError: nothing is hit, the regular expression is broken, or the frozen vision tower is hit.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LORA_LAYERS)}
    tower = vision_tower(model) if freeze_vision else None
    frozen = {id(module) for module in tower.modules()} if tower is not None else set()
    if target_modules in ("language", "all-linear"):
        head = base_model(model).get_output_embeddings()
        inside = {id(module) for module in language_model(model).modules()}
        return [
            name
            for name, module in layers.items()
            if isinstance(module, nn.Linear)
            and module is not head
            and (id(module) in inside if target_modules == "language" else id(module) not in frozen)
        ]
    hit = [name for name in layers if _matches(name, target_modules)]
    if not hit:
        raise ConfigError(_nothing_hit(target_modules, list(layers)))
    inside_tower = [name for name in hit if id(layers[name]) in frozen]
    if inside_tower:
        raise ConfigError(
            f"`lora.target_modules` hits the vision tower ({some(inside_tower)}), but `freeze_vision` is on. Set "
            "`freeze_vision: false`, or `target_modules: language`."
        )
    return hit


def _matches(name: str, target_modules: str | Sequence[str]) -> bool:
    if not isinstance(target_modules, str):
        return any(name == target or name.endswith(f".{target}") for target in target_modules)
    try:
        return re.fullmatch(target_modules, name) is not None
    except re.error as error:
        raise ConfigError(
            f"`lora.target_modules` is {target_modules!r}, which is no regular expression: {error}. Write `language`, "
            "`all-linear` or a list of layer names."
        ) from error


def _nothing_hit(target_modules: str | Sequence[str], layers: list[str]) -> str:
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    short = sorted({name.rsplit(".", 1)[-1] for name in layers if not name.rsplit(".", 1)[-1].isdigit()})
    near = [match for word in wanted for match in difflib.get_close_matches(word.rsplit(".", 1)[-1], short, n=2)]
    hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else f"Layers are called {some(short)}."
    return (
        f"`lora.target_modules` is {target_modules!r}, which is no layer of this model. {hint} "
        "`language` takes every linear layer of the language model; a regular expression must match the whole name."
    )


def load_adapter(
    model: PreTrainedModel, directory: str | Path, *, trainable: bool = True, any_base: bool = False
) -> PeftModel:
    """Put saved adapters into a bare model, all of them or an error.

    Args:
        model: the base; it is changed in place.
        directory: holds the adapters.
        trainable: go on training them.
        any_base: take a base that the adapters were not trained on, as long as they fit into it.

    Raises:
        UserError: the directory holds no adapters, or others than fit this model or were trained on it.
    """
    path = Path(directory)
    if not (path / "adapter_config.json").is_file():
        raise UserError(f"{path} has no adapter_config.json, so it holds no adapters. Name a directory that does.")
    if not any_base:
        check_base(model, path)
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = not trainable
    _prepare_quantized(model)
    wrapped: Any = get_peft_model(model, config)
    load_adapter_weights(wrapped, path)
    return wrapped  # type: ignore[no-any-return]  # get_peft_model promises less than it gives


def load_adapter_weights(model: PeftModel, directory: str | Path) -> None:
    """Replace the weights of the model's active adapter by saved ones, in place and completely.

    Raises:
        UserError: the file is missing or damaged, or its weights differ in name or shape from the model's.
    """
    adapter = model.active_adapter
    try:
        saved: dict[str, torch.Tensor] = load_peft_weights(str(directory), device="cpu", local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the adapter weights in {directory} cannot be read: {one_line(error)}") from error
    wanted: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=adapter)
    shape_differs = [name for name in wanted.keys() & saved.keys() if wanted[name].shape != saved[name].shape]
    for what, names in (
        ("lacks", wanted.keys() - saved.keys()),
        ("has, beyond the model's,", saved.keys() - wanted.keys()),
        ("has another shape for", shape_differs),
    ):
        if names:
            raise UserError(
                f"{directory} {what} {len(names)} adapter weights: {some(names)}. Use the base model and the "
                "`target_modules` and `r` that the adapters were trained with."
            )
    set_peft_model_state_dict(model, saved, adapter_name=adapter)


def quantization_config(
    bits: Literal[4, 8] = 4, quant_type: Literal["nf4", "fp4"] = "nf4", double: bool = True
) -> BitsAndBytesConfig:
    """How to load the frozen base in 4 or 8 bits (QLoRA); arithmetic stays in bfloat16.

    Raises:
        UserError: bitsandbytes or a CUDA device is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "`model.quantization` needs bitsandbytes, which is not installed. Run `pip install cwdpo[qlora]`, or "
            "remove the setting."
        )
    if not torch.cuda.is_available():
        raise UserError("`model.quantization` needs a CUDA GPU, and there is none. Remove the setting to train here.")
    settings: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quant_type,
            "bnb_4bit_use_double_quant": double,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
