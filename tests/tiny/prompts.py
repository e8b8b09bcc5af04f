"""Prompts and batches for the tiny checkpoints, as their processors make them, without any chat template.

The models' weights are made larger than a fresh initialisation, so that a wrong mask or position shows in every answer.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from cwdpo.batch import Batch, Role
from cwdpo.models.loading import load_processor

_PLACEHOLDER = {
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "llava": "<image>",
    "fast_vlm": "<image>",
    "llava_onevision": "<image>",
    "paligemma": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
    "mllama": "<|image|>",
}
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SIZES = ((40, 30), (64, 48), (33, 61))


def load_model(directory: Path, **options: Any) -> Any:
    """The model of a tiny checkpoint, with a narrow sliding window where it has one and every gate half open."""
    config: Any = AutoConfig.from_pretrained(directory)
    if getattr(config.text_config, "sliding_window", None):
        config.text_config.sliding_window = 12
    model = AutoModelForImageTextToText.from_pretrained(directory, config=config, **options).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate"):
                weight.fill_(0.5)
            elif weight.ndim > 1 and "position" not in name:
                weight.mul_(3.0 if "vision" in name or "visual" in name else 8.0)
    return model


@cache
def make_prompt(directory: Path, images: int, *, words: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """What the family's processor returns for one prompt: images first, then ``words`` words."""
    name, generator = directory.name, np.random.default_rng(100 * seed + images)
    vocabulary = ("red", "circle", "left", "of", "the", "small", "blue", "square.")
    text = " ".join(generator.choice(vocabulary, words))
    if name in ("lfm2_vl", "mistral3"):
        return _by_hand(directory, images, text, generator)
    pictures = [
        Image.fromarray(generator.integers(0, 255, (*_SIZES[(i + seed) % len(_SIZES)], 3), dtype=np.uint8))
        for i in range(images)
    ]
    processor: Any = load_processor(directory)
    whole = _PLACEHOLDER.get(name, _QWEN_IMAGE) * images + text
    return dict(processor(text=[whole], images=[pictures] if pictures else None, return_tensors="pt"))


def make_batch(prompts: Sequence[dict[str, Tensor]], answers: Sequence[Sequence[int]], *, seed: int = 0) -> Batch:
    """A batch with random answers of the given lengths to each prompt."""
    generator = torch.Generator().manual_seed(seed)
    lengths = np.array([length for each in answers for length in each])
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    ids = torch.randint(50, 300, mask.shape, generator=generator).where(mask, torch.tensor(0))
    owners = np.array([i for i, each in enumerate(answers) for _ in each])
    return Batch(
        row_index=np.arange(len(prompts)),
        prompts=list(prompts),
        prompt_index=owners,
        roles=np.full_like(owners, int(Role.CHOSEN)),
        lengths=lengths,
        answer_ids=ids,
        answer_mask=mask,
        keys=[str(i) for i in range(len(owners))],
    )


def _by_hand(directory: Path, images: int, text: str, generator: Any) -> dict[str, Tensor]:
    """As the processor would, for families whose image processor needs torchvision."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    make = _lfm2_vl_image if directory.name == "lfm2_vl" else _mistral3_image
    made = [make(tokenizer.convert_tokens_to_ids, i, generator) for i in range(images)]
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[token for tokens, _ in made for token in tokens] + words])
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in made[0][1] if made else ():
        values = [tensors[name] for _, tensors in made]
        size = [max(value.shape[d] for value in values) for d in range(1, values[0].ndim)]
        stacked = values[0].new_zeros(len(values), *size)
        for place, value in zip(stacked, values, strict=True):
            place[tuple(slice(n) for n in value.shape[1:])] = value[0]
        prompt[name] = stacked
    return prompt


def _lfm2_vl_image(ids: Any, index: int, generator: Any) -> tuple[list[int], dict[str, Tensor]]:
    height, width = ((4, 4), (2, 4))[index % 2]
    patches = torch.zeros(1, 16, 3 * 8 * 8)
    patches[:, : height * width] = torch.tensor(generator.standard_normal((height * width, 192)))
    mask = (torch.arange(16) < height * width).long()[None]
    tensors = {
        "pixel_values": patches,
        "spatial_shapes": torch.tensor([[height, width]]),
        "pixel_attention_mask": mask,
    }
    return [ids("<|image_pad|>")] * (height * width // 4), tensors


def _mistral3_image(ids: Any, index: int, generator: Any) -> tuple[list[int], dict[str, Tensor]]:
    height, width = ((32, 48), (48, 32))[index % 2]
    row = [ids("[IMG]")] * (width // 16) + [ids("[IMG_BREAK]")]
    tokens = [*(row * (height // 16))[:-1], ids("[IMG_END]")]
    pixels = torch.tensor(generator.standard_normal((1, 3, height, width)), dtype=torch.float32)
    return tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
