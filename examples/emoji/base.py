"""Train a small vision-language model from scratch on part of the emoji, as the start that the recipe fine-tunes.

    python examples/emoji/base.py --data examples/emoji/data --out examples/emoji/base

No checkpoint needs to be downloaded. The model is LLaVA's real class at a small size (CLIP vision tower, Llama text
model, a million weights). It trains in minutes on one core, and ``AutoModelForImageTextToText`` and ``AutoProcessor``
load it like any other. First the vision tower learns to predict which words are in the name of a picture; a few hundred
steps of naming then teach the rest. It is good but imperfect on purpose: fine-tuning must have something left to teach.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from build import PROMPTS
from emoji_model import PATCH, SIDE, build_model, build_processor
from emoji_names import read_name
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, get_cosine_schedule_with_warmup

BATCH = 64
"""Pictures in a step."""


class Pictures:
    """All pretraining pictures and names in memory, drawn in batches."""

    def __init__(self, data: Path, names: list[str], files: list[str], processor: LlavaProcessor, seed: int) -> None:
        """Read the images; ``seed`` is of the order, the prompts and the moves."""
        images = [Image.open(data / file).convert("RGB") for file in files]
        self.pixels: Tensor = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        self.names = names
        self.tokenizer = processor.tokenizer
        self.generator = torch.Generator().manual_seed(seed)
        self.prompts: list[str] = []
        for prompt in PROMPTS:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            self.prompts.append(text.replace("<image>", "<image>" * (SIDE // PATCH) ** 2))

    def draw(self, steps: int, size: int) -> Iterator[tuple[list[int], Tensor]]:
        """``steps`` times ``size`` pictures, each moved a little so that they are not learned by heart."""
        order: list[int] = []
        for _ in range(steps):
            if len(order) < size:
                order += torch.randperm(len(self.names), generator=self.generator).tolist()
            chosen, order = order[:size], order[size:]
            yield chosen, torch.stack([moved(self.pixels[k], self.generator) for k in chosen])

    def inputs(self, chosen: list[int], pixels: Tensor) -> dict[str, Tensor]:
        """What the model eats, with labels on the names and their end token alone."""
        asked = torch.randint(len(self.prompts), (len(chosen),), generator=self.generator).tolist()
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
            "pixel_values": pixels,
            "labels": torch.where((column >= start) & (column < stop), ids, -100),
        }


def moved(pixels: Tensor, generator: torch.Generator, *, most: int = 3) -> Tensor:
    """``(3, H, W)`` shifted by at most ``most`` pixels each way on white."""
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (most,) * 4, value=1.0)  # 1 is white after normalising
    return padded[:, down : down + pixels.shape[1], right : right + pixels.shape[2]]


def descend(what: str, losses: Iterator[Tensor], groups: list[tuple[list[Tensor], float]], steps: int) -> None:
    """AdamW over the losses: each group's learning rate warms up for 5 % of the steps and then falls as a cosine."""
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": rate} for weights, rate in groups], betas=(0.9, 0.98), weight_decay=0.05
    )
    weights = [weight for group, _ in groups for weight in group]
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    began = time.monotonic()
    for step, loss in enumerate(losses, start=1):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            print(f"{what} {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)


def train_vision(model: LlavaForConditionalGeneration, pictures: Pictures, steps: int, rate: float) -> None:
    """Teach the vision tower which words are in a picture's name; the classifier on top is thrown away."""
    spoken = [set(re.findall(r"[^\s:,]+", name)) for name in pictures.names]
    words = sorted(set().union(*spoken))
    targets = torch.tensor([[word in said for word in words] for said in spoken]).float()
    tower = model.model.vision_tower
    head = torch.nn.Linear(tower.config.hidden_size, len(words))
    torch.nn.init.constant_(head.bias, -4.0)  # nearly all words are absent from any one name

    def losses() -> Iterator[Tensor]:
        for chosen, pixels in pictures.draw(steps, BATCH):
            logits = head(tower(pixel_values=pixels).last_hidden_state[:, 1:].mean(dim=1))
            yield F.binary_cross_entropy_with_logits(logits, targets[chosen], reduction="sum") / BATCH

    descend("vision", losses(), [([*tower.parameters(), *head.parameters()], rate)], steps)


def train_naming(model: LlavaForConditionalGeneration, pictures: Pictures, steps: int, rate: float) -> None:
    """Teach the whole model to name pictures; the vision tower, which knows its part already, moves slowly."""
    seeing = {id(weight) for weight in model.model.vision_tower.parameters()}
    groups = [
        ([weight for weight in model.parameters() if id(weight) not in seeing], rate),
        ([weight for weight in model.parameters() if id(weight) in seeing], rate / 10),
    ]
    losses = (model(**pictures.inputs(*drawn)).loss for drawn in pictures.draw(steps, BATCH))
    descend("naming", losses, groups, steps)


def pretrain(data: Path, out: Path, *, vision_steps: int, steps: int, learning_rate: float, seed: int) -> None:
    """Train from scratch and save model and processor.

    Only pictures of people and hands are learned: a model this small cannot learn the other 1,500 in minutes, and all
    rows of train.jsonl and eval.jsonl are of people and hands.

    Args:
        data: what build.py wrote.
        out: directory of the checkpoint.
        vision_steps: steps of the vision tower alone.
        steps: steps of the whole model.
        learning_rate: the highest, in both.
        seed: of the weights and the batches.
    """
    torch.manual_seed(seed)
    rows = [json.loads(line) for line in (data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
    processor = build_processor([row["chosen"] for row in rows])
    rows = [row for row in rows if read_name(row["chosen"]).get("tone")]
    names, files = [row["chosen"] for row in rows], [row["images"][0] for row in rows]
    pictures, model = Pictures(data, names, files, processor, seed), build_model(processor)
    print(f"{model.num_parameters():,} parameters, {len(names)} pictures, {len(processor.tokenizer)} tokens")
    train_vision(model, pictures, vision_steps, learning_rate)
    train_naming(model, pictures, steps, learning_rate)
    model.eval()
    model.save_pretrained(out)
    processor.save_pretrained(out)


def main() -> int:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data", help="what build.py wrote")
    parser.add_argument("--out", type=Path, default=here / "base", help="where the checkpoint goes")
    parser.add_argument("--vision-steps", type=int, default=2000, help="steps of the vision tower alone")
    parser.add_argument("--steps", type=int, default=400, help="steps of the whole model")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.data / "pretrain.jsonl").is_file():
        print(f"no {args.data / 'pretrain.jsonl'}: run build.py --out {args.data} first", file=sys.stderr)
        return 2
    settings = {"vision_steps": args.vision_steps, "steps": args.steps, "learning_rate": args.learning_rate}
    pretrain(args.data, args.out, **settings, seed=args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
