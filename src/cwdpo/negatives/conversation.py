"""Rows as OpenAI-compatible servers take them: messages with images inside."""

import base64
import io
from typing import Any

from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Row


def messages_of(row: Row) -> list[dict[str, Any]]:
    """A row's prompt as the API takes it; images become PNG data URIs, in reading order."""
    images = iter(row.images)
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image_url", "image_url": {"url": _data_uri(next(images), row.source)}}
                for part in message.parts
            ],
        }
        for message in row.prompt
    ]


def _data_uri(image: ImageSource, source: str) -> str:
    # the very pixels that training sees: upright, RGB, and without another lossy compression
    file = io.BytesIO()
    open_image(image, source=source).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
