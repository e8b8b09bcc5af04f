"""Rows in steps by length, and steps in parts by tokens."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny.prompts import make_batch

from cwdpo.batch import Role
from cwdpo.engine.layout import Cost, parts_within, plain_costs, select_prompts, tree_costs
from cwdpo.trainers.steps import LengthBuckets, Step, count_roles, cut_further, row_tokens


def mixed_lengths(number: int) -> list[int]:
    """Short questions, longer ones, and pictures of several sizes, log-uniform from 40 to 2,000 tokens."""
    generator = random.Random(0)
    return [int(40 * 50 ** generator.random()) for _ in range(number)]


def padded(steps: list[list[int]], lengths: list[int]) -> int:
    """Tokens of the steps' rows when each is filled up to its step's longest."""
    return sum(len(step) * max(lengths[row] for row in step) for step in steps)


def steps_of(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_buckets_pad_little_where_random_steps_pad_much() -> None:
    lengths = mixed_lengths(4096)
    shuffled = random.Random(1).sample(range(4096), 4096)
    buckets = list(LengthBuckets(lengths, step_rows=16, seed=0))
    random_ratio, bucket_ratio = (padded(steps_of(rows, 16), lengths) / sum(lengths) for rows in (shuffled, buckets))
    assert random_ratio > 2.5
    assert bucket_ratio < 1.1


def test_parts_of_a_large_random_step_pad_little() -> None:
    lengths = mixed_lengths(4096)
    shuffled = random.Random(1).sample(range(4096), 4096)
    found = 0
    for step in steps_of(shuffled, 64):
        parts = parts_within([Cost(1, lengths[row]) for row in step], 8192)
        found += padded([[step[i] for i in part] for part in parts], lengths)
    assert found / sum(lengths) < 1.35


def test_every_row_once_an_epoch_and_a_short_step_last() -> None:
    lengths = mixed_lengths(103)
    sampler = LengthBuckets(lengths, step_rows=8, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(103))
        assert order == list(sampler)
        steps = steps_of(order, 8)
        assert max(lengths) in [lengths[row] for row in steps[0]]
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 3
    assert list(LengthBuckets(lengths, step_rows=8, seed=4)) != orders[0]


def test_fewer_rows_than_a_step() -> None:
    assert sorted(LengthBuckets([5, 3, 9], step_rows=8, seed=0)) == [0, 1, 2]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 500)), min_size=1, max_size=40),
    budget=st.integers(1, 2000),
)
def test_parts_keep_to_the_budget_and_hold_every_row(shapes: list[tuple[int, int]], budget: int) -> None:
    parts = parts_within([Cost(*shape) for shape in shapes], budget)
    assert sorted(i for part in parts for i in part) == list(range(len(shapes)))
    for part in parts:
        rows, longest = sum(shapes[i][0] for i in part), max(shapes[i][1] for i in part)
        assert len(part) == 1 or rows * longest <= budget
    more = cut_further(parts, len(shapes))
    assert sorted(i for part in more for i in part) == list(range(len(shapes)))
    assert len(more) == len(shapes)


def test_costs_by_hand() -> None:
    prompts = [{"input_ids": torch.ones(1, n, dtype=torch.long)} for n in (7, 3)]
    batch = make_batch(prompts, [[2, 5], [4]])
    assert tree_costs(batch) == [Cost(1, 7 + 2 + 5), Cost(1, 3 + 4)]
    assert plain_costs(batch) == [Cost(2, 7 + 5), Cost(1, 3 + 4)]


def test_row_tokens_by_hand() -> None:
    prompts = [{"input_ids": torch.ones(1, n, dtype=torch.long)} for n in (7, 3)]
    assert row_tokens(make_batch(prompts, [[2, 5], [4]])) == [7 + 2 + 5, 3 + 4]


def test_shares_of_the_parts_are_a_whole() -> None:
    prompts = [{"input_ids": torch.ones(1, n, dtype=torch.long)} for n in (7, 3, 4)]
    batch: Any = make_batch(prompts, [[2, 5], [4], [3, 3]])
    batch["roles"] = np.array([Role.CHOSEN, Role.GENTLE, Role.CHOSEN, Role.CHOSEN, Role.GENTLE])
    parts = [select_prompts(batch, sorted(part))[0] for part in ([2, 0], [1])]  # as the trainer cuts them
    assert [part["row_index"].tolist() for part in parts] == [[0, 2], [1]]
    counts = count_roles(parts)
    step = Step(counts)
    assert counts.tolist()[:3] == [3, 0, 2]
    found = [[float(step.share_of(part, role)) for part in parts] for role in (Role.CHOSEN, Role.GENTLE, Role.REJECTED)]
    assert found == [[pytest.approx(2 / 3), pytest.approx(1 / 3)], [1.0, 0.0], [0.0, 0.0]]
    assert Step().share_of(parts[0], Role.CHOSEN) == 1.0
