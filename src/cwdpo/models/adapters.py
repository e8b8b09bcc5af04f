"""Low-rank adapters: which layers they go into, how they are made and loaded, and which base they belong to."""

import difflib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, ProcessorMixin

from cwdpo.batch import hash_tensors
from cwdpo.config.foreign import our_value
from cwdpo.errors import ConfigError, UserError
from cwdpo.models.loading import load_policy, load_processor, one_line, refuse_other_weights, some
from cwdpo.models.parts import bare_model, vision_tower

_LORA_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_BASE_FILE = "cwdpo_base.json"
"""Beside ``adapter_config.json``: the base that the adapters were trained on."""


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "language",
    freeze_vision: bool = True,
) -> PeftModel:
    """Put fresh adapters into a bare model, in place; nothing else trains. They begin at 0, so logits do not change.

    The update of rank ``r`` is multiplied by ``alpha / r``. With a ``dropout`` above 0, policy and reference differ in
    training mode. A model loaded in 4 or 8 bits is prepared first, which casts its unquantised weights to
    float32. Gradient checkpointing is left to the Trainer.
    """
    targets = lora_targets(model, target_modules, freeze_vision=freeze_vision)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = _wrap(model, config)
    inner: Any = wrapped.base_model
    hit = sorted(inner.targeted_module_names)
    assert hit == sorted(targets), f"PEFT put adapters into other layers than asked for: {hit} for {targets}"
    return wrapped


def _wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return with_adapters(model, config)


def with_adapters(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """PEFT's ``get_peft_model``, without the notice that it asks transformers for an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped: PeftModel = get_peft_model(model, config)
    return wrapped


def lora_targets(model: nn.Module, target_modules: str | Sequence[str], *, freeze_vision: bool = True) -> list[str]:
    """Names of the layers that adapters would go into, in model order.

    Fused experts, which are parameters and not layers, are never hit.

    Args:
        model: a bare model.
        target_modules: ``language``: every linear layer of the language model, without the output head;
            ``all-linear``: every linear layer but the output head; a list: layers with one of these names, or with a
            longer dotted name that ends in one; any other text: a regular expression for the whole dotted name.
        freeze_vision: leave the vision tower out of ``all-linear``; a pattern or a list that hits it (as one that
            hits nothing, or a layer that shares its weights with another) is a ``ConfigError``.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LORA_LAYERS)}
    tower = vision_tower(model) if freeze_vision else None
    frozen = {id(module) for module in tower.modules()} if tower is not None else set()
    if target_modules in ("language", "all-linear"):
        bare = bare_model(model)
        head = bare.get_output_embeddings()
        inside = {id(module) for module in bare.get_decoder().modules()}
        return [
            name
            for name, module in layers.items()
            if isinstance(module, nn.Linear)
            and module is not head
            and (id(module) in inside if target_modules == "language" else id(module) not in frozen)
        ]
    hit = [name for name in layers if _matches(name, target_modules)]
    _refuse_missed(target_modules, hit, list(layers))
    inside_tower = [name for name in hit if id(layers[name]) in frozen]
    if inside_tower:
        raise ConfigError(
            f"`lora.target_modules` hits the vision tower ({some(inside_tower)}), but `freeze_vision` is on. Set "
            "`freeze_vision: false`, or `target_modules: language`."
        )
    _refuse_shared(shared_weights(model, {name: layers[name] for name in hit}))
    return hit


def check_targets(model: nn.Module, target_modules: object) -> None:
    """Refuse names of layers, given to PEFT, that the model has not: PEFT passes over some, and proposes none."""
    if target_modules == "all-linear" or not isinstance(target_modules, str | list | tuple | set) or not target_modules:
        return
    names = target_modules if isinstance(target_modules, str) else sorted(target_modules)
    everything = [name for name, _ in model.named_modules()]
    layers = [name for name, module in model.named_modules() if isinstance(module, _LORA_LAYERS)]
    _refuse_missed(names, everything, layers, setting="target_modules")


def _refuse_missed(
    target_modules: str | Sequence[str], among: Sequence[str], layers: list[str], setting: str = "`lora.target_modules`"
) -> None:
    """A ConfigError where one of the names matches none ``among`` some, which proposes one of the ``layers``."""
    targets = [target_modules] if isinstance(target_modules, str) else [[target] for target in target_modules]
    for target in targets or [target_modules]:
        if not any(_matches(name, target) for name in among):
            language = "`language` takes every linear layer of the language model. " if "lora" in setting else ""
            raise ConfigError(
                f"{setting} is {target!r}, which is not a layer of this model. {_layers_near(target, layers)} "
                f"{language}A regular expression must match the whole name."
            )


def shared_weights(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Those of some layers whose weight is another module's too, with that module's name: tied embeddings."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            owners.setdefault(id(weight), []).append(name)
    found = {}
    for name, layer in layers.items():
        others = [other for other in owners.get(id(layer.weight), []) if model.get_submodule(other) is not layer]
        if others:
            found[name] = others[0]
    return found


def adapted_tied_layers(model: PeftModel) -> dict[str, str]:
    """The layers with adapters whose weight is another module's too, see :func:`shared_weights`. A trained copy
    (``modules_to_save``) is none: it has a weight of its own."""
    inner = {
        name: module.get_base_layer() for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    layers = {name: layer for name, layer in inner.items() if isinstance(getattr(layer, "weight", None), nn.Parameter)}
    found = shared_weights(model, layers)
    return {_plain_name(name): _plain_name(other) for name, other in found.items()}


def check_adapters(model: PeftModel) -> None:
    """Refuse, with a ConfigError, adapters that cannot be trained here or would not survive a merge."""
    if len(model.active_adapters) != 1:
        raise ConfigError(
            f"{len(model.active_adapters)} adapters are active ({', '.join(model.active_adapters)}), and a resumed run "
            "would go on with the first alone. Merge those that are trained already into the model "
            "(`merge_and_unload`), and give it one that trains."
        )
    config = model.peft_config[model.active_adapters[0]]
    if config.is_prompt_learning:
        raise ConfigError(
            f"{type(config).__name__} puts learned tokens before the prompt, which these trainers do not lay out. "
            "Give adapters that change layers, such as peft.LoraConfig."
        )
    _refuse_shared(adapted_tied_layers(model))


def _refuse_shared(shared: Mapping[str, str]) -> None:
    for name, other in shared.items():
        raise ConfigError(
            f"adapters on {name} cannot be merged: it shares its weights with {other} (tied embeddings), so that a "
            "merge would change both and give another model. Take it out of `target_modules`."
        )


def _plain_name(name: str) -> str:
    """A layer's name without what PEFT puts around it."""
    pieces = name.removeprefix("base_model.model.").split(".")
    return ".".join(piece for piece in pieces if piece not in ("base_layer", "original_module"))


def _matches(name: str, target_modules: str | Sequence[str]) -> bool:
    if not isinstance(target_modules, str):
        return any(name == target or name.endswith(f".{target}") for target in target_modules)
    try:
        return re.fullmatch(target_modules, name) is not None
    except re.error as error:
        raise ConfigError(
            f"`lora.target_modules` is {target_modules!r}, which is not a regular expression: {error}. Write "
            "`language`, `all-linear` or a list of layer names."
        ) from error


def _layers_near(target_modules: str | Sequence[str], layers: list[str]) -> str:
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    short = sorted({name.rsplit(".", 1)[-1] for name in layers if not name.rsplit(".", 1)[-1].isdigit()})
    near = [match for word in wanted for match in difflib.get_close_matches(word.rsplit(".", 1)[-1], short, n=2)]
    near = [ours for word in wanted if (ours := our_value("target_modules", word)) is not None] or near
    return f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else f"Layers are called {some(short)}."


def load_adapter(
    model: PreTrainedModel, directory: str | Path, *, trainable: bool = True, any_base: bool = False
) -> PeftModel:
    """Put saved adapters into a bare model, in place, all of them or an error.

    With ``trainable`` they go on training. ``any_base`` takes a base that they fit but were not trained on.
    """
    path = Path(directory)
    if not (path / "adapter_config.json").is_file():
        raise UserError(f"{path} has no adapter_config.json, so it holds no adapters. Name a directory that does.")
    if not any_base:
        check_base(model, path)
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = not trainable
    wrapped = _wrap(model, config)
    load_adapter_weights(wrapped, path)
    return wrapped


def load_checkpoint(name: str) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin]:
    """A model to look at, on the GPU if there is one, and its processor; of a hub name or a directory, adapters too."""
    directory = Path(name)
    if (directory / "adapter_config.json").is_file():
        base = load_policy(named_base(directory), freeze_vision=False)
        model: PreTrainedModel | PeftModel = load_adapter(base, directory, trainable=False)
    else:
        model = load_policy(name, freeze_vision=False)
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")  # in place
    return model, load_processor(name)


def named_base(source: Path) -> str:
    """The base model that saved adapters name, unless it is gone."""
    base: str | None = PeftConfig.from_pretrained(str(source)).base_model_name_or_path
    if not base:
        raise UserError(f"the adapters in {source} do not name their base model. {_name_base(source)}")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(f"the base model of {source} was {base}, which is gone. {_name_base(source)}")
    return base


def _name_base(source: Path) -> str:
    """How to name the base of adapters, in whatever command: only ``cwdpo merge`` has an option for it."""
    return (
        f"Write where it is into {source / 'adapter_config.json'}, as `base_model_name_or_path`; or merge the adapters "
        f"first, `cwdpo merge {source} --base MODEL --out DIR`, and use DIR."
    )


def load_adapter_weights(model: PeftModel, directory: str | Path) -> None:
    """Replace the weights of the model's active adapter by saved ones, in place, all of them or a ``UserError``."""
    adapter = model.active_adapter
    try:
        saved: dict[str, Tensor] = load_peft_weights(str(directory), device="cpu", local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the adapter weights in {directory} cannot be read: {one_line(error)}") from error
    wanted: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter)
    refuse_other_weights(
        directory,
        "adapter weights",
        "Use the base model and the `target_modules` and `r` that the adapters were trained with.",
        missing=wanted.keys() - saved.keys(),
        unexpected=saved.keys() - wanted.keys(),
        reshaped={name for name in wanted.keys() & saved.keys() if wanted[name].shape != saved[name].shape},
    )
    set_peft_model_state_dict(model, saved, adapter_name=adapter)


def quantization_config(
    bits: Literal[4, 8] = 4, quant_type: Literal["nf4", "fp4"] = "nf4", double: bool = True
) -> BitsAndBytesConfig:
    """How to load the frozen base in 4 or 8 bits (QLoRA); arithmetic stays in bfloat16."""
    if not torch.cuda.is_available():
        raise UserError("`model.quantization` needs a CUDA GPU, and there is none. Remove the setting to train here.")
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "`model.quantization` needs bitsandbytes, which is not installed. Run `pip install bitsandbytes`, or "
            "remove the setting."
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def write_base(base: Mapping[str, Any], directory: Path) -> None:
    """Write beside saved adapters which model they belong to, as :func:`describe_base` says."""
    (directory / _BASE_FILE).write_text(json.dumps(base) + "\n", encoding="utf-8")


def read_base(directory: Path) -> dict[str, Any]:
    """What :func:`check_base` compares; empty for adapters that were not saved here."""
    try:
        found = json.loads((directory / _BASE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_base(model: nn.Module, directory: Path) -> None:
    """Compare a model with the one that saved adapters were trained on; another one is a ``UserError``."""
    trained_on = read_base(directory)
    if not trained_on:
        return
    here = describe_base(model, through=trained_on.get("dtype"))
    kind, its_kind = trained_on.get("model_type"), here["model_type"]
    marks = trained_on.get("fingerprint"), here["fingerprint"]
    if kind == its_kind and (None in marks or marks[0] == marks[1]):
        return
    other = f"a {its_kind} model" if kind != its_kind else f"another {its_kind} model, with other weights"
    raise UserError(
        f"the adapters in {directory} were trained on {trained_on.get('name') or f'a {kind} model'}"
        f"{f' ({kind})' if kind != its_kind else ''}, and this base is {other}. A recipe names the base as "
        f"`model.name_or_path`. {_name_base(directory)} If you mean another base (one that was quantised for training, "
        "say), give the merge `--any-base` too."
    )


def describe_base(model: Any, *, through: str | None = None) -> dict[str, Any]:
    """What distinguishes a base model, with or without adapters, from others. Its weights are whole; ``through`` is the
    type that they once had, to which they are rounded first."""
    rounded = getattr(torch, through, None) if through is not None else None
    return {
        "name": model.config.name_or_path or None,
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": base_fingerprint(model, through=rounded),
    }


def base_fingerprint(model: nn.Module, *, through: torch.dtype | None = None) -> str | None:
    """Hash a sample of the base's weights: cheap enough for every load, whatever the model's size.

    Of each weight its shape and up to 4,096 values count, spread evenly and rounded to bfloat16, first through the type
    that the other model was in, so that a base loaded in another precision is still the same one. Names do not, as they
    differ between versions of transformers. Adapters are left out: the result is the same before they are added and
    while they train. None for a quantised model, whose values are others.
    """
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        return None
    added = {id(weight) for weight in _added_by_peft(model)}
    weights = (weight for weight in model.parameters() if id(weight) not in added)
    return xxhash.xxh3_128("".join(sorted(_sample_hash(weight, through) for weight in weights)).encode()).hexdigest()


def _added_by_peft(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of adapters of any kind, and of trained copies of layers or tokens: PEFT's layers say where they are."""
    for module in model.modules():
        for name in getattr(module, "adapter_layer_names", ()):
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                yield from part.parameters()


def _sample_hash(weight: Tensor, through: torch.dtype | None) -> str:
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, -(-len(flat) // 4096))]
    rounded = sample.to(through or sample.dtype).to(torch.bfloat16)
    return hash_tensors([(str(tuple(weight.shape)), rounded)]).hexdigest()
