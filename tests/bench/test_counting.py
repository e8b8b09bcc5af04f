"""Counts that can be done by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.without_products import without_products
from cwdpo.bench.counting import count_flops, peak_memory, saved_activations
from cwdpo.engine.attention import FlexMask

CPU = torch.device("cpu")


def test_products() -> None:
    left, right, total = torch.rand(3, 5), torch.rand(5, 7), torch.zeros(3, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert count_flops(lambda: total.addmm_(left, right)) == 2 * 3 * 5 * 7
    assert count_flops(lambda: torch.mm(left, right, out=total)) == 2 * 3 * 5 * 7


def test_attention_both_ways() -> None:
    query, key, value = (torch.rand(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 6 * 6 * 8

    def step() -> None:
        scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

    assert count_flops(step) == (2 + 5) * product


def test_no_products_but_their_shapes_and_counts() -> None:
    layer, x = nn.Conv2d(3, 4, 2), torch.rand(1, 3, 9, 9)

    def step() -> Tensor:
        y = layer(x)
        y.square().sum().backward()
        return y.detach()

    counted = count_flops(step)
    with without_products():
        assert count_flops(step) == counted
        assert torch.equal(step(), torch.zeros(1, 4, 8, 8))
    assert step().abs().sum() > 0


def test_saved_activations_are_what_the_backward_pass_needs() -> None:
    weight = nn.Parameter(torch.rand(50, 20))
    x = torch.rand(10, 50)
    with saved_activations(lambda: iter([weight])) as saved:
        y = (x @ weight).sigmoid()  # keeps x and its own result
        kept = saved()
        del y
        assert saved() == 0
    assert kept == 4 * (10 * 50 + 10 * 20)


def test_peak_is_of_the_step_alone() -> None:
    held = torch.zeros(10_000)

    def step() -> None:
        first = held + 1  # 40 kB
        second = first + 1  # 80 kB
        del first
        third = torch.ones(100)
        del second, third

    assert peak_memory(step, CPU) == pytest.approx(80_000, abs=1_000)


def test_flex_attention_counts_the_blocks_that_it_computes() -> None:
    query, key, value = (torch.rand(1, 2, 256, 8, requires_grad=True) for _ in range(3))
    index = torch.arange(256)
    causal = (index[:, None] >= index)[None, None]

    def step() -> None:
        mask: Any = FlexMask(causal)
        scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()

    product = 2 * 2 * (3 * 128 * 128) * 8  # three of four blocks
    assert count_flops(step) == (2 + 5) * product
