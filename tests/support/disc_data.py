"""A few rows with drawn pictures, enough to train a tiny model on."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]


def records(number: int, *, text_only_every: int = 0) -> list[dict[str, Any]]:
    """Canonical rows; every ``text_only_every``-th has no image."""
    rows = []
    for i in range(number):
        colour, other = COLOURS[i % 6], COLOURS[(i + 1 + i // 6) % 6]
        row: dict[str, Any] = {
            "id": str(i),
            "images": [f"{i}.png"],
            "prompt": [
                {"role": "user", "content": "What is this?" if i % 2 else "Say what the picture shows, please."}
            ],
            "chosen": f"A {colour} disc on grey, number {i}.",
            "rejected": f"The stock market fell {i} percent." if i % 3 else f"A {other} disc.",
            "gentle": f"A {other} disc on grey, number {i}.",
        }
        if text_only_every and i % text_only_every == text_only_every - 1:
            del row["images"]
        rows.append(row)
    return rows


def write(directory: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    """Pictures and a JSONL file that names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
        for image in row.get("images", []):
            picture = Image.new("RGB", (32, 32), "grey")
            ImageDraw.Draw(picture).ellipse((4, 4, 27, 27), fill=COLOURS[i % 6])
            picture.save(directory / image)
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
