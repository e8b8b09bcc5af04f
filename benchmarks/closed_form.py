"""FLOPs of a step in closed form, for models too large to run here: ``python -m benchmarks.closed_form``.

The tests compare the formula with torch's counter.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from cwdpo.bench.contestants import SETTINGS, SIZES, ModelSize

PUBLISHED = {
    "3b": SIZES["3b"],
    "7b": ModelSize(
        vision=SIZES["3b"].vision,
        depth=28,
        width=3584,
        mlp_width=18944,
        heads=28,
        kv_heads=4,
        vocabulary=152064,
    ),
    "72b": ModelSize(
        vision=replace(SIZES["3b"].vision, mlp_width=3456),
        depth=80,
        width=8192,
        mlp_width=29568,
        heads=64,
        kv_heads=8,
        vocabulary=152064,
    ),
}
"""Qwen2.5-VL's published sizes."""

_PAIR = ((48, 48),)
"""Tokens of the two answers of the pair that the table is for."""

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


def closed_form_table() -> str:
    """Markdown: TFLOP of TRL's step on one pair with answers of 48 tokens, of the published sizes, and ratios to it."""
    lines = []
    for lora, checkpointing in ((False, False), (True, False), (False, True), (True, True)):
        title = ("LoRA" if lora else "full") + (", activation checkpointing" if checkpointing else "")
        methods = {name: m for name, m in METHODS.items() if lora or m.features == "computed"}
        names = [f"{name} (TFLOP)" if name == "TRL" else name for name in methods]
        lines += [f"**{title}**", "", f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for size in PUBLISHED:
            for setting in SETTINGS:
                lines.append(_closed_form_line(size, setting, list(methods), lora=lora, checkpointing=checkpointing))
        lines.append("")
    return "\n".join(lines).rstrip()


def _closed_form_line(size: str, setting: str, methods: list[str], *, lora: bool, checkpointing: bool) -> str:
    shape = SETTINGS[setting]
    flops = [
        step_flops(
            PUBLISHED[size],
            METHODS[name],
            _PAIR,
            prompt=shape.image_tokens + shape.text,
            image_tokens=shape.image_tokens,
            lora=lora,
            checkpointing=checkpointing,
        )
        for name in methods
    ]
    cells = [f"{flops[0] / 1e12:.1f}", *(f"{value / flops[0]:.3f}" for value in flops[1:])]
    return f"| {size.upper()}, {shape.image_tokens} image tokens | {' | '.join(cells)} |"


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
    kv_width = size.width // size.heads * size.kv_heads  # features of the keys, and of the values, of a token
    layer = size.width * (2 * size.width + 2 * kv_width + 3 * size.mlp_width)
    skippable = size.width * (2 * size.width + 3 * size.mlp_width)  # all but keys and values
    linear = 2 * (all_layers * layer - skipped * skippable)
    attention = 4 * sum(length**2 for length in rows) * size.depth * size.width
    if rank is None:
        down = 2 * (all_layers - skipped) * size.width * size.mlp_width
        return Cost(linear + attention, 2 * linear + ATTENTION_BACKWARD * attention, linear - down + attention)
    # in and out of q and o, gate, up and down; of k and v
    skippable_ends = 4 * size.width + 3 * (size.width + size.mlp_width)
    ends = skippable_ends + 2 * (size.width + kv_width)
    adapters = 2 * rank * (all_layers * ends - skipped * skippable_ends)
    forward = linear + adapters + attention
    return Cost(forward, linear + 2 * adapters + ATTENTION_BACKWARD * attention, forward)


def head_cost(size: ModelSize, tokens: int, *, weights: bool, recompute: bool) -> Cost:
    """The output embeddings on so many tokens."""
    logits = 2 * tokens * size.width * size.vocabulary
    return Cost(logits, logits * (1 + weights + recompute))


if __name__ == "__main__":
    sys.stdout.write(f"{closed_form_table()}\n")
