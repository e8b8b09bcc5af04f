"""Make the demo's base model from nothing: ``python -m cwdpo.demo.pretrain OUT``.

It learns captions of a few thousand drawn scenes and stops while it still errs about half the time: what preference
training is for. The package ships the result, so that the demo starts at once.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.demo.base_model import build_model, build_processor
from cwdpo.demo.captions import sample_style, write_caption
from cwdpo.demo.checker import check_caption
from cwdpo.demo.scenes import Scene, draw_scene, sample_scene
from cwdpo.demo.world import PROMPT
from cwdpo.generation import generate_answers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything that the base model follows from."""

    seed: int = 7
    scenes: int = 8000
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    measured_scenes: int = 1000
    """Fresh scenes on which exactness is measured at the end."""


def pretrain(settings: PretrainSettings) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Train the demo's model from random weights on right captions.

    Returns:
        The model with its weights rounded to bfloat16, as they are shipped, and its processor.
    """
    processor = build_processor()
    torch.manual_seed(settings.seed)
    model = build_model(processor).train()
    rng = np.random.default_rng([settings.seed, 0])
    data = _encode(processor, settings.scenes, rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1)
    order = np.concatenate([rng.permutation(settings.scenes) for _ in range(_epochs(settings))])
    for step in range(settings.steps):
        chosen = torch.from_numpy(order[step * settings.batch_size :][: settings.batch_size])
        loss = model(**{name: values[chosen] for name, values in data.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            logger.info("step %d of %d: loss %.3f", step + 1, settings.steps, loss.item())
    return model.bfloat16().float().eval(), processor


def measure(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, *, scenes: int, seed: int
) -> dict[str, float]:
    """Share of exact captions on fresh scenes, greedy and sampled at temperature 1."""
    rng = np.random.default_rng([seed, 1])
    pictures = [_picture(rng) for _ in range(scenes)]
    prompt = (Message(role="user", parts=(ImageSlot(), PROMPT)),)
    rows = [Row(prompt=prompt, chosen=caption, images=(image,)) for _, image, caption in pictures]
    shares = {}
    for name, temperature in (("exact_greedy", None), ("exact_sampled", 1.0)):
        answers = generate_answers(model, processor, rows, batch_size=128, max_new_tokens=40, temperature=temperature)
        right = [check_caption(answer, scene).exact for answer, (scene, _, _) in zip(answers, pictures, strict=True)]
        shares[name] = sum(right) / scenes
    return shares


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and write the checkpoint with a note of how it was made."""
    parser = argparse.ArgumentParser(prog="python -m cwdpo.demo.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="directory for the checkpoint; must not exist yet")
    for name, default in asdict(PretrainSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args(arguments))
    out: Path = given.pop("out")
    if out.exists():
        parser.error(f"{out} exists already; name a new directory, or remove it first")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = PretrainSettings(**given)
    start = time.monotonic()
    model, processor = pretrain(settings)
    seconds = round(time.monotonic() - start)
    exact = measure(model, processor, scenes=settings.measured_scenes, seed=settings.seed)
    model.bfloat16().save_pretrained(out)  # exact: pretrain has rounded the weights
    processor.save_pretrained(out)
    note = {
        "command": "python -m cwdpo.demo.pretrain OUT",
        "settings": asdict(settings),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **exact,
    }
    (out / "made.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    logger.info("%s: %s", out, exact)


def _epochs(settings: PretrainSettings) -> int:
    return -(-settings.steps * settings.batch_size // settings.scenes)


def _picture(rng: np.random.Generator) -> tuple[Scene, Image.Image, str]:
    scene = sample_scene(rng)
    return scene, draw_scene(scene, rng), write_caption(scene, sample_style(scene, rng))


def _encode(processor: LlavaProcessor, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Prompt and caption of fresh scenes as tensors; only the caption and its end token are labels."""
    pictures = [_picture(rng) for _ in range(count)]
    question: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    texts = [
        processor.apply_chat_template([question, {"role": "assistant", "content": caption}], tokenize=False)
        for _, _, caption in pictures
    ]
    images = [[image] for _, image, _ in pictures]
    data: BatchFeature = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    ids = data["input_ids"]
    answer_starts = processor.tokenizer.convert_tokens_to_ids("<assistant>")
    after = (ids == answer_starts).cumsum(dim=1) - (ids == answer_starts).int()
    labels = torch.where((after == 1) & data["attention_mask"].bool(), ids, -100)
    return {**data, "labels": labels}


if __name__ == "__main__":
    main()
