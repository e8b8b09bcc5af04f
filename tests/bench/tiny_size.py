"""A model of the 3B model's proportions, every width a sixteenth."""

from cwdpo.bench.contestants import ModelSize, VisionSize

TINY = ModelSize(
    vision=VisionSize(depth=4, full_attention=(3,), width=80, mlp_width=214, heads=2),
    depth=4,
    width=128,
    mlp_width=688,
    heads=4,
    kv_heads=1,
    vocabulary=1000,
    tied=True,
    lora_rank=1,
)
