"""Tiny random checkpoints of real model classes, built into a local directory in a fraction of a second.

Each loads with ``AutoModelForImageTextToText`` and a processor, has the special tokens and the chat template of its
family, and turns a small image into a few image tokens. The Qwen-VL checkpoints hold a video section in each of the
three forms found in the wild, so they load with ``AutoProcessor`` only where torchvision is installed.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tiny.families import AWKWARD_SPECS, MORE_SPECS, SPECS, TEXT, Spec
from tiny.tokenizers import build_tokenizer

NAMES = tuple(SPECS)
"""The families that everything is tested on."""

MORE_NAMES = tuple(MORE_SPECS)
"""Further families that :func:`build` knows."""

AWKWARD_NAMES = tuple(AWKWARD_SPECS)
"""Families that :func:`build` knows too, but without a processor of their own; see ``tiny.families``."""


def build(name: str, directory: Path, *, seed: int = 0) -> Path:
    """Write a random checkpoint of one family into ``directory`` and return it.

    The global random state is left as it was; the same name and seed give the same weights.
    """
    spec = (SPECS | MORE_SPECS | AWKWARD_SPECS)[name]
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(spec.family)
    _save_model(spec, tokenizer, directory, seed)
    tokenizer.save_pretrained(directory)
    if spec.processor_class:
        _save_processor(spec, directory)
    return directory


def _save_model(spec: Spec, tokenizer: PreTrainedTokenizerFast, directory: Path, seed: int) -> None:
    ends = tuple(dict.fromkeys(spec.family.stop or (spec.family.eos,)))
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_class = getattr(transformers, spec.model_class)
    config = model_class.config_class(**spec.config(tokenizer.convert_tokens_to_ids, text))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ends],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)


def _save_processor(spec: Spec, directory: Path) -> None:
    images, videos = dict(spec.image_processor), spec.video_processor
    name = {"processor_class": spec.processor_class}
    if spec.layout == "joined":
        sections = {"image_processor": images} | ({"video_processor": videos} if videos else {})
        _write(directory / "processor_config.json", {**sections, **spec.processor, **name})
        return
    _write(directory / "preprocessor_config.json", {**images, **name})
    if videos:
        _write(directory / "video_preprocessor_config.json", {**videos, **name})
    if spec.processor:
        _write(directory / "processor_config.json", {**spec.processor, **name})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
