"""A model of Qwen2.5-VL's class with random weights, its processor, and random pairs: all made here, nothing loaded."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from cwdpo.bench.sizes import ModelSize, Setting, VisionSize
from cwdpo.models.processors import load_processor

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
)
_WORDS = 900
"""Words that rows are made of; ids beyond them are never used, but the head scores them."""

# The end token ends a turn, with no newline behind it: TRL would score that newline, and losses could not agree.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
_TEMPLATE_TOKENS = 7
"""Of a prompt: start, role, vision start and end, end; start and role of the answer."""


def build_model(size: ModelSize, processor: Any, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Any:
    """A model of that size with random weights, made where it will run."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        auto: Any = AutoModelForImageTextToText
        return auto.from_config(build_config(size, processor), dtype=getattr(torch, dtype))


def build_config(size: ModelSize, processor: Any) -> Qwen2_5_VLConfig:
    """The model's configuration; its special tokens are the processor's."""
    ids = processor.tokenizer.convert_tokens_to_ids
    head_width = size.width // size.heads
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _sections(head_width // 2)}
    text = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "tie_word_embeddings": size.tied,
        "rope_parameters": rope,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=_vision_config(size.vision, size.width),
        tie_word_embeddings=size.tied,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )


def _sections(half: int) -> list[int]:
    """The rotary features given to time, height and width: a quarter and twice three eighths, as published."""
    side = half * 3 // 8
    return [half - 2 * side, side, side]


def _vision_config(vision: VisionSize, out_width: int) -> dict[str, Any]:
    return {
        "depth": vision.depth,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.heads,
        "out_hidden_size": out_width,
        "patch_size": vision.patch,
        "window_size": vision.window,
        "spatial_merge_size": vision.merge,
        "fullatt_block_indexes": list(vision.full_attention),
    }


def build_processor(vision: VisionSize) -> Any:
    """Qwen2.5-VL's processor with a tokenizer of whole words, every image taken in its own size."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(_vocabulary())}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=[token for token in _SPECIAL[:-1] if token not in ("<|im_end|>", "<|endoftext|>")],
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    settings = {
        "size": {"shortest_edge": 1, "longest_edge": 2**30},
        "patch_size": vision.patch,
        "temporal_patch_size": 2,
        "merge_size": vision.merge,
    }
    images = {"image_processor_type": "Qwen2VLImageProcessor", **settings}
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", **settings}
    content = {"image_processor": images, "video_processor": videos, "processor_class": "Qwen2_5_VLProcessor"}
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        (Path(directory) / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
        return load_processor(directory)


def make_rows(setting: Setting, vision: VisionSize, *, seed: int = 0) -> Dataset:
    """One batch of random pairs, each with an image of noise, in the canonical form that TRL reads too."""
    generator = random.Random(seed)
    side = setting.image_side * vision.patch * vision.merge

    def say(words: int) -> str:
        return " ".join(f"w{generator.randrange(_WORDS)}" for _ in range(words))

    def answer() -> list[dict[str, str]]:
        length = generator.randint(setting.shortest, setting.longest)
        return [{"role": "assistant", "content": say(length - 1)}]  # the end token is one of them

    return Dataset.from_list(
        [
            {
                "images": [_noise(side, seed + i)],
                "prompt": [{"role": "user", "content": say(setting.text - _TEMPLATE_TOKENS)}],
                "chosen": answer(),
                "rejected": answer(),
            }
            for i in range(setting.pairs)
        ]
    )


def _noise(side: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def _vocabulary() -> list[str]:
    return [*_SPECIAL, "user", "assistant", *(f"w{i}" for i in range(_WORDS))]
