"""Teach the projector what the language model understands: first words, without that model, then whole names with it.

Both halves stay as they were pretrained, but for small adapters in the language model, which are merged in the end.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    get_cosine_schedule_with_warmup,
)

from examples.pretrained.people import PROMPT

BATCH = 16
RATE = 1e-3


class Pictures:
    """Features and names of the pictures of people that nothing else is trained or measured on."""

    def __init__(self, data: Path, model: FastVlmForConditionalGeneration, processor: LlavaProcessor) -> None:
        """Compute the features once: the tower is frozen."""
        rows = [json.loads(line) for line in (data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "skin tone" in row["chosen"]]
        self.names = [row["chosen"] for row in rows]
        images = [Image.open(data / row["images"][0]).convert("RGB") for row in rows]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            maps = [model.model.vision_tower(part).last_hidden_state for part in pixels.split(32)]
        self.features = torch.cat(maps).flatten(2).transpose(1, 2)
        """``(pictures, image tokens, channels)``"""

    def __len__(self) -> int:
        return len(self.names)


def align(start: Path, out: Path, data: Path, *, word_steps: int, name_steps: int, seed: int = 0) -> None:
    """Train the projector of ``start`` on the emoji of ``data``, and write the checkpoint ``out``."""
    torch.manual_seed(seed)
    model = FastVlmForConditionalGeneration.from_pretrained(start, dtype=torch.float32).requires_grad_(False).eval()
    processor = AutoProcessor.from_pretrained(start)
    model.model.multi_modal_projector.requires_grad_(True)
    pictures = Pictures(data, model, processor)
    print(f"{len(pictures)} pictures", flush=True)
    learn_words(model, processor, pictures, word_steps)
    learn_names(model, processor, pictures, name_steps)
    model.requires_grad_(True).save_pretrained(out)
    processor.save_pretrained(out)


def learn_words(
    model: FastVlmForConditionalGeneration, processor: LlavaProcessor, pictures: Pictures, steps: int
) -> None:
    """Let the image tokens of a picture lie near the embeddings of its name's words.

    Each image token is read as a distribution over all name words, by its inner products with their embeddings; the
    mean over a picture's tokens must hold the words of the name. The language model does not run, so this is quick.
    """
    tokens = [set(processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in pictures.names]
    everywhere = set(processor.tokenizer(": skin tone-,", add_special_tokens=False)["input_ids"])
    everywhere |= set(processor.tokenizer(" skin tone", add_special_tokens=False)["input_ids"])
    spoken = [said - everywhere for said in tokens]
    words = sorted(set().union(*spoken))
    targets = torch.tensor([[word in said for word in words] for said in spoken]).float()
    targets = targets / targets.sum(dim=1, keepdim=True)
    embeddings = model.get_input_embeddings().weight.detach()[words]
    length = embeddings.norm(dim=1).mean()
    projector = model.model.multi_modal_projector

    def losses() -> Iterator[Tensor]:
        for _ in range(steps):
            drawn = torch.randint(len(pictures), (64,))
            projected = projector(pictures.features[drawn])
            # at the length of an embedding a token can be sure of one word: its own product is 12 above the others
            read = (12 / length**2 * projected @ embeddings.T).softmax(dim=-1).mean(dim=1)
            unlike = (projected.norm(dim=-1) / length - 1).square().mean()
            yield -(targets[drawn] * (read + 1e-6).log()).sum(dim=1).mean() + 0.05 * unlike

    descend("words", losses(), list(projector.parameters()), 2 * RATE, steps)


def learn_names(
    model: FastVlmForConditionalGeneration, processor: LlavaProcessor, pictures: Pictures, steps: int
) -> None:
    """Teach projector and adapters to name pictures as they will be asked; the adapters are merged."""
    language, tokenizer = model.model.language_model, processor.tokenizer
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(language, adapters)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    asked = asked.replace(processor.image_token, processor.image_token * pictures.features.shape[1])
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answers = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in pictures.names]
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()

    def losses() -> Iterator[Tensor]:
        order: list[int] = []
        for _ in range(steps):
            if len(order) < BATCH:
                order += torch.randperm(len(pictures)).tolist()
            drawn, order = order[:BATCH], order[BATCH:]
            texts = [torch.tensor([*prompt, *answers[k], tokenizer.eos_token_id]) for k in drawn]
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id)
            projected = model.model.multi_modal_projector(pictures.features[drawn])
            is_image = (ids == processor.image_token_id)[..., None]
            inputs = embed(ids).masked_scatter(is_image, projected)
            hidden = language(inputs_embeds=inputs, use_cache=False).last_hidden_state
            # only answers are scored, so only there is the whole vocabulary looked at; padding comes after them
            ends = torch.tensor([len(text) for text in texts])[:, None]
            place = torch.arange(ids.shape[1])
            scored = ((place >= len(prompt)) & (place < ends))[:, 1:]
            yield F.cross_entropy(head(hidden[:, :-1][scored]), ids[:, 1:][scored])

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    descend("names", losses(), weights, RATE, steps)
    adapted.merge_and_unload()


def descend(what: str, losses: Iterator[Tensor], weights: list[Tensor], rate: float, steps: int) -> None:
    """AdamW over the losses; the learning rate warms up for 5 % of the steps and then falls as a cosine."""
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    began = time.monotonic()
    for step, loss in enumerate(losses, start=1):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"{what} {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)
