"""Load a checkpoint's processor, also where torchvision is missing.

Qwen-VL and some other processors hold a video processor beside the image processor, and every video processor needs
torchvision. Without it we build the same processor for images and text only, and keep what the checkpoint says of
videos, so that a directory saved here loads whole where torchvision is installed.
"""

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoProcessor, ProcessorMixin

from cwdpo.errors import UserError
from cwdpo.models.sources import local_directory, one_line

logger = logging.getLogger(__name__)

_VIDEO_FILE = "video_preprocessor_config.json"
_IMAGE_FILE = "preprocessor_config.json"
_CONFIG_FILES = ("processor_config.json", _IMAGE_FILE, _VIDEO_FILE, "tokenizer_config.json")


def load_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a vision-language model.

    The result is what ``AutoProcessor`` gives, except where that fails only because torchvision is missing: then it is
    the same processor without its video part, whose ``save_pretrained`` writes the video settings of the source
    unchanged. A tokenizer without a padding token pads with its end token; the padding side is left alone.

    Args:
        name_or_path: a local directory or a hub name.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: there is no processor for images and text, or it needs code that may not run.
    """
    source = str(local_directory(name_or_path) or name_or_path)
    try:
        processor = _auto_processor(source, trust_remote_code=trust_remote_code)
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
    _ensure_pad_token(processor, source)
    return processor  # type: ignore[no-any-return]  # transformers leaves AutoProcessor untyped


def _missing_files(source: str) -> str | None:
    """What a local directory lacks of a processor, and where to get it; None if it is there, or on the hub."""
    directory = local_directory(source)
    if directory is None:
        return None
    lacking = [
        names
        for names in ((_IMAGE_FILE, "processor_config.json"), ("tokenizer_config.json", "tokenizer.json"))
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


def _auto_processor(source: str, *, trust_remote_code: bool) -> Any:
    return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)  # type: ignore[no-untyped-call]


def _ensure_pad_token(processor: Any, source: str) -> None:
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {source} has neither a padding nor an end token. Set `pad_token` and `eos_token` in "
            "its tokenizer_config.json."
        )
    logger.info("the tokenizer of %s has no padding token; its end token %r pads", source, tokenizer.eos_token)
    tokenizer.pad_token = tokenizer.eos_token


class _WithoutVideo:
    """Mixed into a processor class: the same processor without a video processor, but with its settings kept."""

    kept_video_section: dict[str, Any] | None = None
    """The ``video_processor`` section of the source's processor_config.json."""

    kept_files: dict[str, bytes]
    """Files of the source that hold video settings, by name."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Names of the parts that are loaded and saved."""
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]

    @classmethod
    def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the processor, and keep the video section instead of handing it to ``__init__``."""
        settings = dict(processor_dict)
        section = settings.pop("video_processor", None)
        settings["video_processor"] = None  # some classes give the argument no default
        processor = super().from_args_and_dict(args, settings, **kwargs)  # type: ignore[misc]
        processor.kept_video_section = section
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The processor's settings, the kept video section among them."""
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
def _without_video(base: Any) -> Any:
    # the base's own name: transformers writes it into the files it saves, and loads by it
    return type(base.__name__, (_WithoutVideo, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _empty(base: Any) -> Any:
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
        other = "torchvision" not in str(error).lower()
        raise UserError(
            f"the processor of {source} cannot be loaded: {one_line(error)}" if other else advice
        ) from error
    logger.info("torchvision is not installed: %s is loaded without its video processor", base.__name__)
    processor.kept_files = _video_files(source) if processor.kept_video_section is None else {}
    return processor


def _video_files(source: str) -> dict[str, bytes]:
    """The file that a full load would read the video settings from; old checkpoints have one for images and videos."""
    for name in (_VIDEO_FILE, _IMAGE_FILE):
        content = _read(source, name)
        if content is not None:
            return {name: content}
    return {}


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
