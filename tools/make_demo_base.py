"""Make the demo's base model from nothing: ``python tools/make_demo_base.py OUT``.

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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.demo.world import (
    IMAGE_SIZE,
    PROMPT,
    Scene,
    check_caption,
    draw_scene,
    grammar_words,
    off_topic_words,
    sample_scene,
    sample_style,
    write_caption,
)
from cwdpo.generation import generate_answers

_PATCH = 8  # pixels; 32 x 32 pixels make 16 image tokens
_PIXEL_MEAN, _PIXEL_STD = 0.85, 0.25  # the light ground comes out near 0, so that shapes stand out
_INIT_STD = 0.06  # with the usual 0.02 a model this narrow needs thousands of steps before it looks at the picture
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
_CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


logger = logging.getLogger(__name__)


def build_processor() -> LlavaProcessor:
    """A LLaVA processor with a word-level tokenizer and an image processor that needs no torchvision."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor: LlavaProcessor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side,
            crop_size=side,
            image_mean=[_PIXEL_MEAN] * 3,
            image_std=[_PIXEL_STD] * 3,
            do_resize=True,
            do_center_crop=False,
        ),
        tokenizer=_build_tokenizer(),
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the default strategy drops again
        chat_template=_CHAT_TEMPLATE,
    )
    return processor


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """An untrained model that fits the processor. Random weights: seed torch before."""
    tokenizer = processor.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=_INIT_STD,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=_vision_config(),
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(IMAGE_SIZE // _PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, max_new_tokens=40)
    return model


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=_PATCH,
        projection_dim=64,
        initializer_range=_INIT_STD,
    )


def _build_tokenizer() -> Any:
    words = sorted({*grammar_words(), *off_topic_words(), *PROMPT.split()})
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        extra_special_tokens=["<user>", "<assistant>"],
        model_max_length=128,
    )


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
    parser = argparse.ArgumentParser(prog="python tools/make_demo_base.py", description=__doc__)
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
        "command": "python tools/make_demo_base.py OUT",
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
