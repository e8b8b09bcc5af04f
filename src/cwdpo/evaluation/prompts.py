"""Prompts of rows as a padded batch of model inputs."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature

from cwdpo.data.rows import ImageSlot, Row


def encode_prompts(processor: Any, rows: Sequence[Row]) -> BatchFeature:
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": m.role,
                    "content": [
                        {"type": "image"} if isinstance(p, ImageSlot) else {"type": "text", "text": p} for p in m.parts
                    ],
                }
                for m in row.prompt
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        for row in rows
    ]
    images = [[i if isinstance(i, Image.Image) else Image.open(i) for i in row.images] for row in rows]
    return processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
