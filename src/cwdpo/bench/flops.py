"""FLOPs of a step in closed form, for models too large to run here. No torch; held to torch's counter by the tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


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


ATTENTION_BACKWARD = 2.5
"""An attention kernel that keeps no scores computes five products going backward, where it computed two forward."""

_CHANNELS, _FRAMES = 3, 2
"""Of a patch: colours, and the frames that a still image is repeated over."""

_KEEP_LOGITS = 2**23
"""Logits above which our head computes them again going backward, see :mod:`cwdpo.engine.forward`."""

Pairs: TypeAlias = Sequence[tuple[int, int]]
"""A batch: tokens of the chosen and of the rejected answer of each pair, end tokens included."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a step is computed."""

    rows: Literal["trl", "plain", "tree"]
    """One row an answer as TRL lays it out, as this package does, or one row a prompt."""

    reference: Literal["live", "cached"] = "live"
    features: Literal["computed", "cached"] = "computed"
    """Whether the vision tower runs at all; cached features are for a frozen tower."""


METHODS = {
    "TRL": Method(rows="trl"),
    "plain": Method(rows="plain"),
    "tree": Method(rows="tree"),
    "tree, cached reference": Method(rows="tree", reference="cached"),
    "tree, cached reference and features": Method(rows="tree", reference="cached", features="cached"),
}


@dataclass(frozen=True)
class Cost:
    """FLOPs; a multiplication and an addition count as two."""

    forward: float
    backward: float
    again: float = 0.0
    """What activation checkpointing computes a second time: layers up to the last product whose input is needed."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def __rmul__(self, times: float) -> "Cost":
        return Cost(times * self.forward, times * self.backward, times * self.again)


def step_flops(
    size: ModelSize, method: Method, pairs: Pairs, *, prompt: int, image_tokens: int, lora: bool, checkpointing: bool
) -> float:
    """FLOPs of one step over a batch.

    A layer's backward pass costs its forward pass once for the gradient of its input, and once more for that of its
    weights where they train.

    Args:
        size: the model.
        method: how the step is computed.
        pairs: the batch.
        prompt: tokens of each prompt, image included.
        image_tokens: of each prompt's one image.
        lora: train adapters on the language model; False trains everything, the vision tower too.
        checkpointing: of activations.
    """
    rows = row_lengths(method, pairs, prompt)
    images = 0 if method.features == "cached" else len(rows)
    answer_tokens = sum(chosen + rejected for chosen, rejected in pairs)
    theirs = method.rows == "trl"
    recompute_logits = theirs or answer_tokens * size.vocabulary > _KEEP_LOGITS
    # TRL makes the embedded prompt require a gradient, which goes on into the tower although nothing there trains
    into_tower = theirs and checkpointing
    tower = vision_cost(size, image_tokens, weights=not lora, inputs=not lora or into_tower)
    tower = images * tower
    decoder = decoder_cost(size, rows, rank=size.lora_rank if lora else None, read=read_positions(method, pairs))
    head = head_cost(size, answer_tokens, weights=not lora, recompute=recompute_logits)
    policy = tower + decoder + head
    total = policy.forward + policy.backward
    if checkpointing:
        total += decoder.again + (tower.again if tower.backward else 0.0)
    if method.reference == "live":
        total += reference_flops(size, method, pairs, prompt=prompt, image_tokens=image_tokens, adapters=False)
    return total


def reference_flops(
    size: ModelSize, method: Method, pairs: Pairs, *, prompt: int, image_tokens: int, adapters: bool
) -> float:
    """FLOPs of a batch's forward pass under the reference; see :func:`step_flops`.

    Args:
        size: the model.
        method: how rows are laid out.
        pairs: the batch.
        prompt: tokens of each prompt, image included.
        image_tokens: of each prompt's one image.
        adapters: whether they are on, as in the pass that fills the cache; beside a policy they are switched off.
    """
    rows = row_lengths(method, pairs, prompt)
    images = 0 if method.features == "cached" else len(rows)
    tower = vision_cost(size, image_tokens, weights=False, inputs=False)
    rank = size.lora_rank if adapters else None
    decoder = decoder_cost(size, rows, rank=rank, read=read_positions(method, pairs))
    answers = sum(chosen + rejected for chosen, rejected in pairs)
    head = head_cost(size, answers, weights=False, recompute=False)
    return images * tower.forward + decoder.forward + head.forward


def row_lengths(method: Method, pairs: Pairs, prompt: int) -> list[int]:
    """Tokens of each row of a batch, padding included. This package leaves out each answer's last token, which
    predicts nothing."""
    answers = [length for pair in pairs for length in pair]
    if method.rows == "tree":
        return [prompt + max(chosen + rejected - 2 for chosen, rejected in pairs)] * len(pairs)
    return [prompt + max(answers) - (method.rows == "plain")] * len(answers)


def read_positions(method: Method, pairs: Pairs) -> int | None:
    """Positions of a batch at which the last layer is computed whole, see :mod:`cwdpo.engine.forward`; None means
    all of them. Both answers of a pair have the prompt's last position in common."""
    return sum(chosen + rejected - 1 for chosen, rejected in pairs) if method.rows == "tree" else None


def vision_cost(size: ModelSize, image_tokens: int, *, weights: bool, inputs: bool) -> Cost:
    """The tower and its merger on one image.

    Args:
        size: the model.
        image_tokens: what the image becomes.
        weights: whether the tower's weights train.
        inputs: whether a gradient goes back through it.
    """
    vision = size.vision
    patches = image_tokens * vision.merge**2
    in_window = min(patches, (vision.window // vision.patch) ** 2)
    seen = sum(patches if i in vision.full_attention else in_window for i in range(vision.depth))
    embed = 2 * patches * vision.width * _CHANNELS * _FRAMES * vision.patch**2
    layers = 2 * patches * vision.depth * (4 * vision.width**2 + 3 * vision.width * vision.mlp_width)
    merged = vision.width * vision.merge**2
    merger = 2 * image_tokens * merged * (merged + size.width)
    attention = 4 * patches * seen * vision.width
    back = (layers + merger) * (inputs + weights) + embed * weights + ATTENTION_BACKWARD * attention * inputs
    down = 2 * patches * vision.depth * vision.width * vision.mlp_width
    return Cost(embed + layers + merger + attention, back, layers - down + attention)


def decoder_cost(size: ModelSize, rows: Sequence[int], *, rank: int | None, read: int | None = None) -> Cost:
    """The language model without its head.

    Args:
        size: the model.
        rows: tokens of each row.
        rank: of adapters; None trains the model whole.
        read: how many positions of the last layer are read; None means all of them.
    """
    tokens = sum(rows)
    all_layers = tokens * size.depth
    skipped = 0 if read is None else tokens - read
    layer = size.width * (2 * size.width + 2 * size.kv_width + 3 * size.mlp_width)
    skippable = size.width * (2 * size.width + 3 * size.mlp_width)  # all but keys and values
    linear = 2 * (all_layers * layer - skipped * skippable)
    attention = 4 * sum(length**2 for length in rows) * size.depth * size.width
    if rank is None:
        down = 2 * (all_layers - skipped) * size.width * size.mlp_width
        return Cost(linear + attention, 2 * linear + ATTENTION_BACKWARD * attention, linear - down + attention)
    # in and out of q and o, gate, up and down; of k and v
    skippable_ends = 4 * size.width + 3 * (size.width + size.mlp_width)
    ends = skippable_ends + 2 * (size.width + size.kv_width)
    adapters = 2 * rank * (all_layers * ends - skipped * skippable_ends)
    forward = linear + adapters + attention
    return Cost(forward, linear + 2 * adapters + ATTENTION_BACKWARD * attention, forward)


def head_cost(size: ModelSize, tokens: int, *, weights: bool, recompute: bool) -> Cost:
    """The output embeddings on so many tokens."""
    logits = 2 * tokens * size.width * size.vocabulary
    return Cost(logits, logits * (1 + weights + recompute))
