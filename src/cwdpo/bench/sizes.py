"""What the bench trains: sizes of models, and of the pairs they train on."""

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


SIZES = {
    # every width an eighth of the 3B model's, every depth a ninth or an eighth; with this vocabulary the head's share
    # of the work for a token is the 3B model's
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
    "3b": ModelSize(
        vision=VisionSize(depth=32, full_attention=(7, 15, 23, 31), width=1280, mlp_width=3420, heads=16),
        depth=36,
        width=2048,
        mlp_width=11008,
        heads=16,
        kv_heads=2,
        vocabulary=151936,
        tied=True,
    ),
}
"""Qwen2.5-VL-3B, and a model of its proportions that a CPU can train. The narrower a model, the larger the share of
attention in its work, and the larger the vision tower's share, because its rows are longer."""


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
