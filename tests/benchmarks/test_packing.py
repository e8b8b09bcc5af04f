"""Packing is counted as it would be done."""

from benchmarks import packing
from benchmarks.packing import mixed_lengths, picture_lengths, plans, table


def test_packs_and_blocks_by_hand() -> None:
    assert packing._packs([5000, 4000, 3000, 1192]) == 2  # 5000 + 3000, 4000 + 1192
    assert packing._packs([8192, 1]) == 2
    assert packing._causal_blocks(128) == 128**2
    assert packing._causal_blocks(129) == 3 * 128**2


def test_what_the_documents_say_of_packing() -> None:
    found = {plan.name: plan for plan in plans(mixed_lengths())}
    buckets, blocks = found["length_buckets, steps of 16"], found["the same by block masks"]
    dense, packed = found["packed into 8192, dense mask"], found["packed into 8192, block masks"]
    size = packing.PUBLISHED["3b"]
    assert dense.flops(size) > 1.2 * buckets.flops(size)
    assert 0.94 * blocks.flops(size) < packed.flops(size) < blocks.flops(size)
    assert buckets.tokens / sum(mixed_lengths()) < 1.05


def test_one_row_has_the_flops_of_the_formula() -> None:
    length = 640  # a multiple of the block's side
    size = packing.PUBLISHED["7b"]
    alone = packing._padded("", [[0]], [length])
    assert alone.flops(size) == packing.decoder_cost(size, [length], rank=None).forward
    assert "1.0" in table(picture_lengths(64))
