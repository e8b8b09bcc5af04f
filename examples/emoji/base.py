"""Train a small vision-language model from scratch on part of the emoji, as the start that the recipe fine-tunes.

    python examples/emoji/base.py --data examples/emoji/data --out examples/emoji/base

No checkpoint needs to be downloaded: the model is LLaVA's real class in small (CLIP vision tower, Llama text model, 1.4
million weights), it trains in minutes on one core, and ``AutoModelForImageTextToText`` and ``AutoProcessor`` load it
like any other. It is good but imperfect on purpose: fine-tuning must have something left to teach.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from build import OFF_TOPIC, PROMPTS
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

SIDE, PATCH = 64, 16
"""Pixels of the model's picture and of its patches: 16 image tokens."""

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def build_processor(names: list[str], *, vocabulary: int = 1200) -> LlavaProcessor:
    """A LLaVA processor whose tokenizer learnt its merges from the names; any other text is spelt in bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*names, *OFF_TOPIC, *PROMPTS * 5, *["\nUSER: ASSISTANT: "] * 5], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": SIDE, "width": SIDE}
    half = [0.5, 0.5, 0.5]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, image_mean=half, image_std=half, do_resize=True, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the default strategy drops again
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """An untrained model that fits the processor. Random weights: seed torch before."""
    tokenizer = processor.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**special, max_new_tokens=40)
    return model


class Pictures:
    """All pretraining pictures and names in memory, drawn in batches."""

    def __init__(self, data: Path, processor: LlavaProcessor) -> None:
        """Read ``data/pretrain.jsonl`` and its images."""
        rows = [json.loads(line) for line in (data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
        images = [Image.open(data / row["images"][0]).convert("RGB") for row in rows]
        self.pixels: Tensor = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        self.names: list[str] = [row["chosen"] for row in rows]
        self.tokenizer = processor.tokenizer
        image = {"type": "image"}
        self.prompts: list[str] = []
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            self.prompts.append(text.replace("<image>", "<image>" * (SIDE // PATCH) ** 2))

    def batches(self, steps: int, size: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Model inputs with labels on the names alone; pictures are moved a little, so that they are not learnt by heart.

        Args:
            steps: number of batches.
            size: pictures in a batch.
            generator: draws pictures, prompts and moves.
        """
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(self.names), generator=generator)])
            chosen, order = order[:size], order[size:]
            yield self._inputs(chosen.tolist(), generator)

    def _inputs(self, chosen: list[int], generator: torch.Generator) -> dict[str, Tensor]:
        asked = torch.randint(len(self.prompts), (len(chosen),), generator=generator).tolist()
        heads = [self.tokenizer(self.prompts[k], add_special_tokens=False)["input_ids"] for k in asked]
        tails = [self.tokenizer(self.names[k], add_special_tokens=False)["input_ids"] for k in chosen]
        ends = [self.tokenizer.eos_token_id]
        texts = [torch.tensor(head + tail + ends) for head, tail in zip(heads, tails, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        column = torch.arange(ids.shape[1])
        start = torch.tensor([len(head) for head in heads])[:, None]
        stop = torch.tensor([len(text) for text in texts])[:, None]
        return {
            "input_ids": ids,
            "attention_mask": (column < stop).long(),
            "pixel_values": torch.stack([moved(self.pixels[k], generator) for k in chosen]),
            "labels": torch.where((column >= start) & (column < stop), ids, -100),
        }


def moved(pixels: Tensor, generator: torch.Generator, *, most: int = 3) -> Tensor:
    """``(3, H, W)`` shifted by at most ``most`` pixels each way on white."""
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (most,) * 4, value=1.0)  # 1 is white after normalising
    return padded[:, down : down + pixels.shape[1], right : right + pixels.shape[2]]


def pretrain(data: Path, out: Path, *, steps: int, batch: int, learning_rate: float, seed: int) -> None:
    """Train from scratch and save model and processor.

    Args:
        data: what build.py wrote.
        out: directory of the checkpoint.
        steps: optimiser steps; learning rate warms up for 5 % of them and then falls as a cosine.
        batch: pictures in a step.
        learning_rate: the highest.
        seed: of the weights and the batches.
    """
    torch.manual_seed(seed)
    names = [json.loads(line)["chosen"] for line in (data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
    processor = build_processor(names)
    pictures, model = Pictures(data, processor), build_model(processor)
    print(f"{model.num_parameters():,} parameters, {len(names)} pictures, {len(processor.tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    began = time.monotonic()
    for step, inputs in enumerate(pictures.batches(steps, batch, torch.Generator().manual_seed(seed)), start=1):
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - began
            print(f"step {step}/{steps}  loss {loss.item():.3f} nats/token  {seconds:.0f} s", flush=True)
    model.eval()
    model.save_pretrained(out)
    processor.save_pretrained(out)


def main() -> int:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data", help="what build.py wrote")
    parser.add_argument("--out", type=Path, default=here / "base", help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.data / "pretrain.jsonl").is_file():
        print(f"no {args.data / 'pretrain.jsonl'}: run build.py --out {args.data} first", file=sys.stderr)
        return 2
    pretrain(args.data, args.out, steps=args.steps, batch=args.batch, learning_rate=args.learning_rate, seed=args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
