"""Split attention: the numbers and gradients of a loop over tokens, for layouts and models of every kind."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForImageTextToText

from cwdpo.batch import Batch
from cwdpo.engine import attention, make_engine
from cwdpo.engine.attention import SplitMask, can_split
from cwdpo.engine.checked import check_engine
from cwdpo.engine.layout import TreePlan, one_row_a_prompt
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine

Tiny = Callable[[str], Path]
LAYOUTS = [[[5, 3, 2]], [[4], [1, 6, 1, 1]], [[3, 2, 2, 2], [7, 1], [2]]]
"""Tokens of each row's prompt and answers: one row, one without answers, three of unequal lengths."""

MASKED = ("gemma3", "paligemma")
"""Families that look in both directions among the tokens of an image or of a prompt."""


def make_plan(lengths: list[list[int]]) -> TreePlan:
    """The plan of such rows, with each first token after the prompt already an answer's own."""
    prompts = [{"input_ids": torch.arange(1, prompt + 1)[None]} for prompt, *_ in lengths]
    # an answer's last token is not in its row; one of a single token is not there at all
    batch = make_batch(prompts, [[n + 1 for n in answers] or [1] for _, *answers in lengths])
    _, plan = one_row_a_prompt(batch)
    assert [list(row) for row in plan.lengths] == lengths
    return plan


def by_loops(query: Tensor, key: Tensor, value: Tensor, lengths: list[list[int]]) -> dict[tuple[int, int], Tensor]:
    """``(heads, size)`` of each token of each row that is no padding: its softmax over what it sees, term by term."""
    found = {}
    groups = query.shape[1] // key.shape[1]
    for row, (prompt, *answers) in enumerate(lengths):
        start = prompt
        seen = {i: [*range(i + 1)] for i in range(prompt)}
        for answer in answers:
            seen |= {i: [*range(prompt), *range(start, i + 1)] for i in range(start, start + answer)}
            start += answer
        for i, visible in seen.items():
            heads = []
            for head in range(query.shape[1]):
                keys, values = (each[row, head // groups] for each in (key, value))
                terms = [(query[row, head, i] @ keys[j] / math.sqrt(query.shape[-1])).exp() for j in visible]
                heads.append(sum(t * values[j] for t, j in zip(terms, visible, strict=True)) / sum(terms))
            found[row, i] = torch.stack(heads)
    return found


def inputs(plan: TreePlan, heads: int, kv_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, length = plan.branch.shape
    shapes = [(rows, count, length, 8) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def check_against_loops(attend: Callable[..., Tensor], lengths: list[list[int]], plan: TreePlan, groups: int) -> None:
    """Numbers and gradients, weighted so that every one of them counts."""
    tensors = inputs(plan, 4, 4 // groups)
    weights = torch.randn(plan.branch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_loops(*tensors, lengths)
    by_hand = torch.autograd.grad(sum(weights[place] * value.sum() for place, value in expected.items()), tensors)
    found = attend(*tensors)
    for (row, i), value in expected.items():
        assert torch.allclose(found[row, :, i], value, atol=1e-12)
    real = (plan.branch >= 0).double() * weights
    for one, other in zip(torch.autograd.grad((found * real[:, None, :, None]).sum(), tensors), by_hand, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_equals_a_loop_over_tokens(lengths: list[list[int]], groups: int, repeated: bool) -> None:
    plan = make_plan(lengths)
    mask: Any = SplitMask(plan, groups=groups, dtype=torch.float64)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if repeated:  # as layers do with a mask
            key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)

    check_against_loops(attend, lengths, plan, groups)


def one_after_the_other(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *most: int, **options: Any
) -> Tensor:
    """What ``varlen_attn`` is documented to do, a sequence at a time."""
    assert options["window_size"] == (-1, 0)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert list(most) == [int(ends.diff().max()) for ends in (query_ends, key_ends)]
    pieces = []
    for i in range(len(query_ends) - 1):
        queries, keys = (slice(*ends[i : i + 2].tolist()) for ends in (query_ends, key_ends))
        q, k, v = (each.transpose(0, 1)[None] for each in (query[queries], key[keys], value[keys]))
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        gqa = options["enable_gqa"]
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options["scale"], enable_gqa=gqa)
        pieces.append(found[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_what_a_gpu_is_given_is_the_same(
    lengths: list[list[int]], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of the one call for all rows but the call."""
    monkeypatch.setattr(attention, "varlen_attn", one_after_the_other)
    plan = make_plan(lengths)
    mask = SplitMask(plan, groups=groups, dtype=torch.float64)
    check_against_loops(lambda *tensors: mask._at_once(*tensors, None), lengths, plan, groups)


@pytest.mark.parametrize("lengths", LAYOUTS)
def test_attention_that_drops_at_random_has_the_same_mask(lengths: list[list[int]]) -> None:
    plan = make_plan(lengths)
    mask: Any = SplitMask(plan, groups=1, dtype=torch.float64)
    tensors = inputs(plan, 4, 4)
    check_against_loops(lambda *each: scaled_dot_product_attention(*each, attn_mask=mask.dense()), lengths, plan, 1)
    ones = torch.ones_like(tensors[2])
    torch.manual_seed(0)
    # each value is the sum of the weights that are left: 1 where none are dropped, and 1 on average
    found = scaled_dot_product_attention(*tensors[:2], ones, attn_mask=mask, dropout_p=0.25)
    kept = [found[row, :, :, 0].flatten() for row in range(len(lengths))]
    assert min(each.min() for each in kept) < 0.9
    many = [scaled_dot_product_attention(*tensors[:2], ones, attn_mask=mask, dropout_p=0.25) for _ in range(400)]
    assert torch.allclose(torch.stack(many).mean(dim=0), ones, atol=0.2)


def test_sequences_by_hand() -> None:
    packed = attention._Packed([[3, 2, 1], [2]], 7, torch.device("cpu"))
    assert packed.queries.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert packed.keys.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 7, 8]
    assert packed.query_ends.tolist() == [0, 3, 5, 6, 8]
    assert packed.key_ends.tolist() == [0, 3, 8, 12, 14]
    assert (packed.most_queries, packed.most_keys) == (3, 5)


def test_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert can_split(cpu, torch.float32)
    assert can_split(cuda, torch.bfloat16)
    assert not can_split(cuda, torch.float32)
    monkeypatch.setattr(attention, "varlen_attn", None)
    assert not can_split(cuda, torch.bfloat16)
    assert can_split(cpu, torch.bfloat16)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the rows that split attention is asked for."""
    seen: list[int] = []
    own = SplitMask.attend

    def attend(self: SplitMask, query: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(query.shape[2])
        return own(self, query, *args, **options)

    monkeypatch.setattr(SplitMask, "attend", attend)
    return seen


def mixed_batch(directory: Path) -> Batch:
    kinds = (2, 1, 1 if directory.name == "paligemma" else 0)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7, 2], [6, 2], [3]])


@pytest.mark.parametrize("name", [*NAMES, *MORE_NAMES, "smolvlm"])
@torch.no_grad()
def test_which_families_take_it(name: str, tiny: Tiny, splits: list[int]) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    TreeEngine().logprobs(model, batch)
    assert bool(splits) == (name not in MASKED)
    splits.clear()
    TreeEngine(attention="mask").logprobs(model, batch)
    assert splits == []


def test_only_layers_without_a_window_are_split(tiny: Tiny, splits: list[int]) -> None:
    config: Any = AutoConfig.from_pretrained(tiny("qwen2_5_vl"))
    text = config.text_config
    text.use_sliding_window, text.sliding_window = True, 6
    text.layer_types = ["full_attention", "sliding_attention"]
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config).eval()
    batch = mixed_batch(tiny("qwen2_5_vl"))
    expected = token_logprobs(model, batch)
    found = TreeEngine().logprobs(model, batch)
    assert len(splits) == 1
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


def test_autocast_and_bits_of_the_other_answers(tiny: Tiny, splits: list[int]) -> None:
    model, batch = load_model(tiny("qwen2_vl")), mixed_batch(tiny("qwen2_vl"))
    changed = batch | {"answer_ids": batch["answer_ids"].clone()}
    changed["answer_ids"][0, :4] += 1
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found, other, plain = (
            engine.logprobs(model, each)
            for engine, each in ((TreeEngine(), batch), (TreeEngine(), changed), (PlainEngine(), batch))
        )
    assert splits
    assert (found.token - plain.token).abs().mean() < 0.1
    assert not torch.equal(found.token[0], other.token[0])
    assert torch.equal(found.token[1:], other.token[1:])


def test_no_mask_of_the_square_of_the_length_is_kept(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    sizes, shapes = {}, {}
    for way in ("mask", "split"):
        kept: dict[int, int] = {}
        seen: list[torch.Size] = []

        def keep(tensor: Tensor, kept: dict[int, int] = kept, seen: list[torch.Size] = seen) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            seen.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = TreeEngine(attention=way).logprobs(model, batch)  # type: ignore[arg-type]
        sizes[way], shapes[way] = sum(kept.values()), seen
        del found
    assert sizes["split"] <= sizes["mask"]
    square = {way: any(s[2:3] == s[3:4] and len(s) == 4 and s[1] == 1 for s in shapes[way]) for way in shapes}
    assert square == {"mask": True, "split": False}


def test_gradients_of_the_check_are_those_of_plain_rows(tiny: Tiny) -> None:
    for name in ("qwen2_5_vl", "gemma3", "mllama"):
        model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
        check = check_engine(TreeEngine(), model, batch, PlainEngine(), gradients=True)
        assert check.ok
        assert 0 < check.gradient_gap < 1e-5  # type: ignore[operator]
        assert not any(module.training for module in model.modules())


def test_wrong_gradients_leave_the_mask(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = attention._ATTEND_BACKWARD
    halved = lambda *args, **options: [part / 2 for part in own(*args, **options)]  # noqa: E731
    monkeypatch.setattr(attention, "_ATTEND_BACKWARD", halved)
    model, batch, engine = load_model(tiny("llava")), mixed_batch(tiny("llava")), make_engine("auto")
    expected = token_logprobs(model, batch)
    found = engine.logprobs(model, batch)
    (made,) = engine.report["choices"]
    assert made["engine"] == "tree_masked"
    assert made["checks"]["tree"]["gradient_gap"] > 0.1
    assert "gradients differ from those of plain rows" in caplog.text
    by_name = gradients(model, weighted_loss(expected))
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


def test_no_memory_to_compare_leaves_the_mask(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("cwdpo.engine.checked._with_gradient", full)
    model, batch, engine = load_model(tiny("llava")), mixed_batch(tiny("llava")), make_engine("tree")
    engine.logprobs(model, batch)
    (made,) = engine.report["choices"]
    assert made["engine"] == "tree_masked"
    assert "no memory" in made["checks"]["tree"]["reason"]


def test_divided_weights_leave_the_mask(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwdpo.engine.checked.is_sharded", lambda weight: True)
    engine = make_engine("auto")
    engine.logprobs(load_model(tiny("llava")), mixed_batch(tiny("llava")))
    assert engine.report["choices"][0]["engine"] == "tree_masked"


def test_nothing_to_train_needs_no_gradients(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    model, batch, engine = load_model(tiny("llava")), mixed_batch(tiny("llava")), make_engine("auto")
    model.requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="cwdpo"):
        engine.logprobs(model, batch)
    (made,) = engine.report["choices"]
    assert made["engine"] == "tree"
    assert made["checks"]["tree"]["gradient_gap"] is None


def test_the_check_keeps_no_more_than_training_does(tiny: Tiny) -> None:
    """With activation checkpointing it computes layers again too."""
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.get_decoder().layers[0].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    assert check_engine(TreeEngine(), model, batch, PlainEngine(), gradients=True).ok
    assert len(calls) == 5  # two passes of the tree and one of plain rows; two of the three again
