"""Load a checkpoint for training: all of its weights or an error, no dropout; and its processor, with or without
torchvision.

Qwen-VL and some other processors hold a video processor beside the image processor, and every video processor needs
torchvision. Without it we build the same processor for images and text only, and keep what the checkpoint says of
videos, so that a directory saved here loads whole where torchvision is installed.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import PartialState
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_flash_attn_2_available

from cwdpo.config.foreign import our_value
from cwdpo.contents import MODEL, other_kind, refusal
from cwdpo.errors import UserError
from cwdpo.models.naming import local_directory, unreached
from cwdpo.models.parts import freeze_vision_tower

logger = logging.getLogger(__name__)

_VIDEO_FILE = "video_preprocessor_config.json"
_IMAGE_FILE = "preprocessor_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONFIG_FILES = ("processor_config.json", _IMAGE_FILE, _VIDEO_FILE, "tokenizer_config.json")


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    attn_implementation: str | Mapping[Literal["text", "vision"], str] | None = None,
    quantization: BitsAndBytesConfig | None = None,
    freeze_vision: bool = True,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the model that is to be trained.

    Every dropout probability, in the configuration and in the modules, is set to 0: policy and reference must agree on
    the same weights in training mode too, or the rewards of step 0 would not be 0. The saved configuration says so.

    ``attn_implementation`` is as in :func:`attention_of_parts`. ``quantization`` is for a frozen base under adapters.
    With ``freeze_vision`` the vision tower does not train, but its projector does (for Qwen-VL the mergers in the
    tower). It is a ``UserError`` if this is not a vision-language model that ``AutoModelForImageTextToText`` loads,
    weights are missing, or it needs code that may not run.
    """
    source = str(local_directory(name_or_path) or name_or_path)
    config = load_config(source, trust_remote_code=trust_remote_code)
    _silence_dropout_settings(config)
    weights = getattr(config, "dtype", None) if dtype == "auto" else dtype
    attention = attention_of_parts(config, attn_implementation, weights=str(weights))
    options: dict[str, Any] = {"attn_implementation": attention, "quantization_config": quantization}
    if quantization is not None:
        # quantised weights cannot move later, so each process loads them onto its own GPU
        options["device_map"] = {"": PartialState().local_process_index}
    given = {name: value for name, value in options.items() if value is not None}
    model = _load_whole(source, config=config, dtype=dtype, trust_remote_code=trust_remote_code, **given)
    silence_dropout(model)  # the probabilities that no configuration names
    if freeze_vision and not freeze_vision_tower(model):
        logger.warning("freeze_vision has no effect: no vision tower was found in %s", source)
    return model


def attention_of_parts(
    config: PretrainedConfig, asked: str | Mapping[Literal["text", "vision"], str] | None, *, weights: str
) -> str | dict[str, str] | None:
    """The attention of a model's parts, as transformers' loader takes it.

    Args:
        config: of the whole model.
        asked: one for all parts, or those of ``text`` and ``vision``, the other being transformers' choice. ``auto`` is
            FlashAttention 2 for the vision tower alone, where it is installed, there is a GPU and weights have 16 bits:
            the tree of the language model needs a mask that FlashAttention does not take.
        weights: the name of their type.
    """
    if asked == "auto":
        has_flash = is_flash_attn_2_available() and torch.cuda.is_available()
        if not has_flash or weights.removeprefix("torch.") not in ("bfloat16", "float16"):
            return None
        asked = {"text": "sdpa", "vision": "flash_attention_2"}
    if asked is None or isinstance(asked, str):
        return asked
    text = config.get_text_config()
    keys = {
        "text": [key for key in config.sub_configs if getattr(config, key, None) is text],
        "vision": [key for key in config.sub_configs if "vision" in key],
    }
    missing = [part for part in asked if not keys.get(part)]
    if missing:
        raise UserError(
            f"attn_implementation names {some(missing)}, but {config.model_type} has no such part of its own. Write "
            "one name for the whole model, such as `attn_implementation: sdpa`.",
            setting="model.attn_implementation",
        )
    return {key: name for part, name in asked.items() for key in keys[part]}


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a loaded model to 0, but those inside adapters, which their own configuration
    names."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout):
            module.p = 0.0
        for key, value in vars(module).items():  # attention layers hand theirs to a function
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)


def load_outline(
    name_or_path: str | Path,
    *,
    attn_implementation: str | Mapping[Literal["text", "vision"], str] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The layers without their weights (meta tensors), to see what would train in no memory and no time; what
    :func:`load_policy` would refuse of ``attn_implementation`` is a ``UserError`` here too."""
    source = str(local_directory(name_or_path) or name_or_path)
    config = load_config(source, trust_remote_code=trust_remote_code)
    attention = attention_of_parts(config, attn_implementation, weights=str(getattr(config, "dtype", None)))
    given: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"):
            outline: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, trust_remote_code=trust_remote_code, **given
            )
    except (ValueError, RuntimeError, ImportError) as error:
        if given and (refused := _refused_attention(attn_implementation, error)):
            raise refused from error
        raise
    return outline


_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_weights(name_or_path: str | Path) -> None:
    """Refuse, with a ``UserError``, a model's directory whose weights are not there or not whole, as far as the headers
    and sizes of its files say; nothing is loaded."""
    directory = local_directory(name_or_path)
    if directory is None:
        return
    files = [file for name in ("model.safetensors", "pytorch_model.bin") if (file := directory / name).is_file()][:1]
    for index in () if files else (directory / name for name in _INDICES):
        if index.is_file():
            files = [directory / name for name in _files_of(index)]
            break
    missing = {file.name for file in files if not file.is_file()}
    if missing or not files:
        raise UserError(
            f"{directory} has no weights: there is no {some(missing or {'model.safetensors'})}. Copy or download the "
            "whole checkpoint again."
        )
    for file in files:
        with file.open("rb") as raw:
            start = raw.read(32)
        if not start.startswith(b"PK") and (other := other_kind(start, file)):  # torch.save writes zip archives
            raise UserError(other)
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                raise _damaged(file, error) from error


def _files_of(index: Path) -> list[str]:
    """The files that an index of weights names."""
    try:
        return sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, error) from error


def _damaged(what: Path | str, error: Exception) -> UserError:
    return UserError(f"the weight file {what} is damaged ({one_line(error)}). Copy or download the checkpoint again.")


def _refused_attention(wanted: object, error: Exception) -> UserError | None:
    """The message for an attention that transformers refuses; None where it refuses something else."""
    reason = one_line(error)
    if not re.search("attn_implementation|[Aa]ttention|kernels", reason):
        return None
    ours = our_value("attn_implementation", wanted) if isinstance(wanted, str) else None
    advice = "Leave it out, or write sdpa, which needs nothing else."
    return UserError(
        f"model.attn_implementation is {wanted!r}, which cannot be used: {re.split(r'(?<=[.]) ', reason)[0]} "
        f"{f'Did you mean {ours}?' if ours not in (None, wanted) else advice}",
        setting="model.attn_implementation",
    )


def load_config(source: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a checkpoint, which must be of a vision-language model; anything else is a ``UserError``."""
    directory = local_directory(source)
    if directory is not None and not (directory / "config.json").is_file():
        raise refusal(directory, MODEL)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = f"the configuration of {source} cannot be read: {one_line(error)}"
        if "trust_remote_code" in str(error):
            reason = (
                f"{source} comes with its own Python code. If you trust it, set `model.trust_remote_code: true` "
                "(--trust-remote-code where a command has it)."
            )
        elif directory is None:
            reason = unreached(source, gated="gated" in str(error))
        raise UserError(reason) from error
    check_reads_images(config, source, trust_remote_code=trust_remote_code)
    return config


def check_reads_images(config: PretrainedConfig, source: str, *, trust_remote_code: bool = True) -> None:
    """A UserError for a model that is not one of images and text, by its configuration."""
    remote = trust_remote_code and "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        raise UserError(
            f"{source} is a {config.model_type} model, which does not read images. Name a vision-language model that "
            "AutoModelForImageTextToText loads, such as Qwen2.5-VL, Qwen3-VL, LLaVA or Idefics3."
        )


def load_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a vision-language model.

    The result is what ``AutoProcessor`` gives, except where that fails only because torchvision is missing: then it is
    the same processor without its video part, whose ``save_pretrained`` writes the video settings of the source
    unchanged. A tokenizer without a padding token pads with its end token; the padding side is left alone.
    """
    source = str(local_directory(name_or_path) or name_or_path)
    try:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise UserError(f"the processor of {source} cannot be loaded: {one_line(error)}") from error
        processor = _load_without_video(source)
    except (OSError, ValueError) as error:
        reason = _missing_files(source) or f"the processor of {source} cannot be loaded: {one_line(error)}"
        raise UserError(reason) from error
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise UserError(
            f"{source} gives a {type(processor).__name__} instead of a processor for images and text. Copy "
            "preprocessor_config.json and processor_config.json of the original model into it, or name a "
            "vision-language model."
        )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"the tokenizer of {source} has neither a padding nor an end token. Set `pad_token` and `eos_token` in "
                "its tokenizer_config.json."
            )
        logger.info("the tokenizer of %s has no padding token; its end token %r pads", source, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    return processor


@contextmanager
def reported_by_us() -> Iterator[None]:
    """Silence transformers' warnings, where all it would warn of becomes a message of ours."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def one_line(error: BaseException) -> str:
    """The first line of a library's message that says something, for messages of our own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((at for at, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[: first + 1]) if lines else type(error).__name__


def some(names: Iterable[str], *, shown: int = 3) -> str:
    """The first names in order, and how many more there are.

    Example:
        >>> some(["b", "a", "d", "c"])
        'a, b, c and 1 more'
    """
    ordered = sorted(names)
    text = ", ".join(ordered[:shown])
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"


def refuse_other_weights(
    source: Path | str, what: str, advice: str, *, missing: Set[str], unexpected: Set[str], reshaped: Set[str]
) -> None:
    """A ``UserError`` that names the saved weights which are not those of the model, if there are any."""
    verbs = {"lacks": missing, "has, beyond the model's,": unexpected, "has another shape for": reshaped}
    for verb, names in verbs.items():
        if names:
            raise UserError(f"{source} {verb} {len(names)} {what}: {some(names)}. {advice}")


def _load_whole(source: str, **options: Any) -> PreTrainedModel:
    """``from_pretrained``, where any weight that the checkpoint does not give is an error."""
    check_weights(source)
    try:
        # wrong shapes are let through here, so that the message below can name them
        with reported_by_us():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except SafetensorError as error:
        raise _damaged(source, error) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        wanted = options.get("attn_implementation")
        if wanted is not None and (refused := _refused_attention(wanted, error)):
            raise refused from error
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


def _missing_files(source: str) -> str | None:
    """What a local directory lacks of a processor, and where to get it; None if it is there, or on the hub."""
    directory = local_directory(source)
    if directory is None:
        return None
    lacking = [
        names
        for names in ((_IMAGE_FILE, "processor_config.json"), _TOKENIZERS)
        if not any((directory / name).is_file() for name in names)
    ]
    if not lacking:
        return None
    files = " and ".join(" or ".join(names) for names in lacking)
    return (
        f"{source} holds no processor: there is no {files}. Copy these files of the model it was made from into it: "
        "preprocessor_config.json, processor_config.json, tokenizer.json, tokenizer_config.json, "
        "special_tokens_map.json and chat_template.jinja, as many as that model has."
    )


class _WithoutVideo:
    """Mixed into a processor class: the same processor without a video processor, but with its settings kept."""

    kept_video_section: dict[str, Any] | None = None
    """What the source's processor_config.json says of videos."""

    kept_files: dict[str, bytes]
    """Files of the source that hold video settings, by name."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]

    @classmethod
    def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        settings = dict(processor_dict)
        section = settings.pop("video_processor", None)
        settings["video_processor"] = None  # some classes give the argument no default
        processor = super().from_args_and_dict(args, settings, **kwargs)  # type: ignore[misc]
        processor.kept_video_section = section
        return processor

    def to_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        if self.kept_video_section is not None:
            settings["video_processor"] = self.kept_video_section
        return settings

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as usual, with the source's video settings beside; first, so that a push uploads them too."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.kept_files.items():
            (Path(save_directory) / name).write_bytes(content)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        # the class is made at run time, so pickle cannot find it by name; its base can be found
        return _empty, (type(self).__mro__[2],), self.__dict__


@cache
def _without_video(base: type) -> Any:
    # the base's own name: transformers writes it into the files it saves, and loads by it
    return type(base.__name__, (_WithoutVideo, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _empty(base: type) -> Any:
    made = _without_video(base)
    return made.__new__(made)


def _load_without_video(source: str) -> Any:
    base = _processor_class(source)
    advice = f"the processor of {source} needs torchvision. Install it: pip install torchvision"
    try:
        # a class that needs torchvision for images too raises on any use
        if base is None or "video_processor" not in base.get_attributes():
            raise UserError(advice)
        processor = _without_video(base).from_pretrained(source)
    except ImportError as error:
        needs_torchvision = "torchvision" in str(error).lower()
        reason = advice if needs_torchvision else f"the processor of {source} cannot be loaded: {one_line(error)}"
        raise UserError(reason) from error
    logger.info("torchvision is not installed: %s is loaded without its video processor", base.__name__)
    processor.kept_files = {}
    if processor.kept_video_section is None:
        # a full load would read the first of these; old checkpoints have one file for images and videos
        files = ((name, _read(source, name)) for name in (_VIDEO_FILE, _IMAGE_FILE))
        name, content = next((file for file in files if file[1] is not None), ("", None))
        processor.kept_files = {} if content is None else {name: content}
    return processor


def _processor_class(source: str) -> Any:
    """The processor class that the checkpoint names, or that its model class goes with."""
    for name in _CONFIG_FILES:
        content = _read(source, name)
        class_name = json.loads(content).get("processor_class") if content is not None else None
        if class_name is not None:
            return getattr(transformers, class_name, None)
    return transformers.PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(source)), None)


def _read(source: str, name: str) -> bytes | None:
    directory = local_directory(source)
    if directory is not None:
        return (directory / name).read_bytes() if (directory / name).is_file() else None
    try:
        return Path(hf_hub_download(source, name)).read_bytes()
    except EntryNotFoundError:
        return None
