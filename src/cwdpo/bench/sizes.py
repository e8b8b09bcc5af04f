"""What is measured: model sizes by their public numbers, and settings of images and answers. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VisionSize:
    """A Qwen2.5-VL vision tower. Widths count features, patches count pixels."""

    depth: int
    full_attention: tuple[int, ...]
    """Layers that attend over the whole image; the others attend inside windows."""

    width: int
    mlp_width: int
    heads: int
    patch: int = 14
    window: int = 112
    """Side of an attention window in pixels."""

    merge: int = 2
    """Patches along each side that become one image token."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model of Qwen2.5-VL's shape."""

    vision: VisionSize
    depth: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    """Whether the head shares the token embeddings' weight."""

    lora_rank: int = 16

    @property
    def kv_width(self) -> int:
        """Features of the keys, and of the values, of a token."""
        return self.width // self.heads * self.kv_heads


def _qwen_vision(mlp_width: int = 3420) -> VisionSize:
    return VisionSize(depth=32, full_attention=(7, 15, 23, 31), width=1280, mlp_width=mlp_width, heads=16)


SIZES = {
    # every width an eighth of the 3B model's and every depth a ninth or an eighth; the vocabulary is such that the
    # head's share of a token's work is the 3B model's
    "small": ModelSize(
        vision=VisionSize(depth=4, full_attention=(3,), width=160, mlp_width=428, heads=2),
        depth=4,
        width=256,
        mlp_width=1376,
        heads=4,
        kv_heads=1,
        vocabulary=2000,
        tied=True,
        lora_rank=2,
    ),
    # every width a sixteenth; for tests
    "tiny": ModelSize(
        vision=VisionSize(depth=4, full_attention=(3,), width=80, mlp_width=214, heads=2),
        depth=4,
        width=128,
        mlp_width=688,
        heads=4,
        kv_heads=1,
        vocabulary=1000,
        tied=True,
        lora_rank=1,
    ),
    "3b": ModelSize(
        vision=_qwen_vision(),
        depth=36,
        width=2048,
        mlp_width=11008,
        heads=16,
        kv_heads=2,
        vocabulary=151936,
        tied=True,
    ),
    "7b": ModelSize(
        vision=_qwen_vision(),
        depth=28,
        width=3584,
        mlp_width=18944,
        heads=28,
        kv_heads=4,
        vocabulary=152064,
    ),
    "72b": ModelSize(
        vision=_qwen_vision(3456),
        depth=80,
        width=8192,
        mlp_width=29568,
        heads=64,
        kv_heads=8,
        vocabulary=152064,
    ),
}
"""Qwen2.5-VL's published sizes, and two of the 3B model's proportions with which a CPU takes a step in seconds. The
narrower a model, the more of its work is attention's, and the tower's share with it, for it has the longer rows."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a pair looks like. Lengths are in tokens."""

    image_side: int
    """Image tokens along each side of the square image."""

    shortest: int
    longest: int
    """Answers have between so many and so many tokens, end token included."""

    text: int = 32
    """The prompt's tokens beside the image's, the template's among them."""

    pairs: int = 2
    """Pairs of a batch."""

    @property
    def image_tokens(self) -> int:
        """Tokens of the image in the prompt."""
        return self.image_side**2

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, image included."""
        return self.image_tokens + self.text


SETTINGS = {
    "ii": Setting(image_side=8, shortest=20, longest=20),
    "i256": Setting(image_side=16, shortest=32, longest=64),
    "i1024": Setting(image_side=32, shortest=32, longest=64),
}
"""64, 256 and 1,024 image tokens."""
