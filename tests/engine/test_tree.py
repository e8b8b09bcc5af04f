"""One row a prompt gives the numbers of each answer alone, and no answer feels the others of its prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.naive_logprobs import gap, gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import layout, tree
from cwdpo.engine.layout import one_row_a_prompt
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine, TreeUnsupportedError, as_tree

Tiny = Callable[[str], Path]
EXACT = (*NAMES, *MORE_NAMES, "smolvlm")
HYBRID = ("qwen3_5", "lfm2_vl")
ANSWERS = {1: [[5]], 2: [[4, 6]], 8: [[4, 1, 7, 2, 9, 3, 1, 5]]}


def mixed_batch(directory: Path) -> Batch:
    """Several images, one, none; eight answers, two, one; so that rows are padded and answers of one token occur."""
    kinds = (2, 1, 1 if directory.name == "paligemma" else 0)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7, 2, 9, 3, 1, 5], [6, 2], [3]])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_equals_each_answer_alone(name: str, count: int, tiny: Tiny) -> None:
    model = load_model(tiny(name))
    for images in (0, 1, 2):
        if name == "paligemma" and not images:  # its processor takes no prompt without images
            continue
        batch = make_batch([make_prompt(tiny(name), images)], ANSWERS[count], seed=images)
        with torch.no_grad():
            assert gap(TreeEngine().logprobs(model, batch), token_logprobs(model, batch)) < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_mixed_batch_and_its_gradients(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    expected = token_logprobs(model, batch)
    found = TreeEngine().logprobs(model, batch)
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_eager_attention_and_its_gradients(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name), attn_implementation="eager"), mixed_batch(tiny(name))
    expected = token_logprobs(model, batch)
    found = TreeEngine().logprobs(model, batch)
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*EXACT, *HYBRID])
def test_leak(name: str, dtype: torch.dtype, tiny: Tiny) -> None:
    model = load_model(tiny(name), dtype=dtype)
    batch = make_batch([make_prompt(tiny(name), 1)], [[6, 5, 7]])
    changed = batch | {"answer_ids": batch["answer_ids"].clone()}
    changed["answer_ids"][0, 2:5] = batch["answer_ids"][1, :3]
    with torch.no_grad():
        one, two = (TreeEngine().logprobs(model, each).token for each in (batch, changed))
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[0, :2], two[0, :2])  # its own past
    sisters_untouched = torch.equal(one[1:], two[1:])
    assert sisters_untouched == (name not in HYBRID)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_bfloat16(name: str, tiny: Tiny) -> None:
    batch = mixed_batch(tiny(name))
    full, half = load_model(tiny(name)), load_model(tiny(name), dtype=torch.bfloat16)
    with torch.no_grad():
        exact = token_logprobs(full, batch)
        tree, plain = (engine.logprobs(half, batch) for engine in (TreeEngine(), PlainEngine()))
    assert gap(tree, exact) < 2 * gap(plain, exact) < 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reentrant"), [*((name, False) for name in EXACT), ("qwen2_5_vl", True), ("mllama", True)]
)
def test_activation_checkpointing(name: str, reentrant: bool, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    expected = gradients(model, weighted_loss(token_logprobs(model, batch)))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    calls: list[int] = []
    layer = model.get_decoder().layers[0]
    layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model, weighted_loss(rows_of(TreeEngine().logprobs(model, batch))))
    assert gradient_gap(found, expected) < 1e-5
    passes = 3 if name == "mllama" else 1  # its three kinds of prompts cannot share one
    assert len(calls) == 2 * passes  # forward, and again backward: it did checkpoint


@pytest.mark.parametrize("reentrant", [True, False])
def test_lora_with_checkpointing_and_a_frozen_tower(reentrant: bool, tiny: Tiny) -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    model: Any = get_peft_model(load_model(tiny("qwen2_5_vl")), config)
    batch = mixed_batch(tiny("qwen2_5_vl"))
    expected = gradients(model.eval(), weighted_loss(token_logprobs(model, batch)))
    assert expected
    assert all("lora" in name for name in expected)
    model.base_model.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    found = TreeEngine().logprobs(model, batch)
    assert gap(found, token_logprobs(model, batch)) < 1e-5
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), expected) < 1e-5


def test_prompt_and_images_pass_once(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    pictures, tokens = [], []
    model.get_encoder(modality="image").register_forward_hook(
        lambda module, args, kwargs, output: pictures.append(len(kwargs.get("pixel_values", args[0] if args else ()))),
        with_kwargs=True,
    )
    model.get_decoder().layers[0].register_forward_hook(lambda module, args, output: tokens.append(args[0].shape[:2]))
    TreeEngine().logprobs(model, batch)
    assert pictures == [3]
    longest = batch["prompts"][0]["input_ids"].shape[1] + sum((4, 1, 7, 2, 9, 3, 1, 5)) - 8
    assert tokens == [(3, longest)]


def by_hand(prompt: int, lengths: list[int]) -> tuple[list[str], list[int]]:
    """Which token stands where, ``a1`` the second of answer a, and its place in prompt and answer."""
    names = [f"p{t}" for t in range(prompt)]
    places = list(range(prompt))
    for letter, length in zip("abc", lengths, strict=False):
        names += [f"{letter}{t}" for t in range(length - 1)]
        places += [prompt + t for t in range(length - 1)]
    return names, places


def test_layout_by_hand() -> None:
    prompts = [{"input_ids": torch.tensor([[7, 8, 9]])}, {"input_ids": torch.tensor([[6, 5]])}]
    batch = make_batch(prompts, [[3, 1, 2], [2]])
    batch["answer_ids"] = torch.tensor([[11, 12, 13], [14, 0, 0], [15, 16, 0], [17, 18, 0]])
    layout, plan = one_row_a_prompt(batch)
    assert layout.inputs["input_ids"].tolist() == [[7, 8, 9, 11, 12, 15], [6, 5, 17, 17, 17, 17]]
    assert layout.inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert plan.logical.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 5]]
    assert layout.keep.tolist() == [[2, 3, 4, 5], [1, 2, 2, 2]]
    assert layout.read.tolist() == [2, 3, 4, 5, 6 + 1, 6 + 2]
    where = [[row, position] for row, positions in enumerate(layout.keep.tolist()) for position in positions]
    assert [where[i] for i in layout.gather.tolist()] == [
        [0, 2],
        [0, 3],
        [0, 4],
        [0, 2],
        [0, 2],
        [0, 5],
        [1, 1],
        [1, 2],
    ]


def test_mask_by_hand() -> None:
    batch = make_batch([{"input_ids": torch.tensor([[7, 8, 9]])}, {"input_ids": torch.tensor([[6]])}], [[3, 1, 2], [2]])
    _, plan = one_row_a_prompt(batch)
    index = torch.arange(6)
    for row, (prompt, lengths) in enumerate([(3, [3, 1, 2]), (1, [2])]):
        names, places = by_hand(prompt, lengths)
        for q in range(6):
            for k in range(6):
                own = plan.logical[row, k] <= plan.logical[row, q]  # a causal model
                found = bool(plan.allow(own, torch.tensor(row), index[q], index[k]))
                if max(q, k) >= len(names):
                    assert found == (q == k)
                    continue
                related = names[k][0] in ("p", names[q][0])
                assert found == (related and places[k] <= places[q]), (names[q], names[k])


def test_implementation_is_put_back(tiny: Tiny) -> None:
    model, batch = load_model(tiny("idefics3")), mixed_batch(tiny("idefics3"))
    _, plan = one_row_a_prompt(batch)
    hooks = len(model.get_decoder()._forward_pre_hooks)
    seen = []

    def broken() -> None:
        with as_tree(model, plan):
            seen.append(
                (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation)
            )
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        broken()
    assert seen == [("cwdpo_tree_sdpa", "sdpa")]
    assert model.config.text_config._attn_implementation == "sdpa"
    assert len(model.get_decoder()._forward_pre_hooks) == hooks


def test_a_pass_that_ignores_the_plan_is_noticed(tiny: Tiny) -> None:
    model = load_model(tiny("idefics3"))
    _, plan = one_row_a_prompt(mixed_batch(tiny("idefics3")))
    with pytest.raises(TreeUnsupportedError, match="0 masks and 0 positions"), as_tree(model, plan):
        pass


def test_flash_attention_is_refused_with_advice(tiny: Tiny) -> None:
    model, batch = load_model(tiny("idefics3")), mixed_batch(tiny("idefics3"))
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(TreeUnsupportedError, match="attn_implementation: sdpa"):
        TreeEngine().logprobs(model, batch)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_all_layers_share_one_mask_that_changes_no_bit(
    name: str, autocast: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    results, kept = [], []
    for mask in (tree.additive_mask, lambda allowed, dtype: allowed):
        monkeypatch.setattr(tree, "additive_mask", mask)
        shapes: dict[int, torch.Size] = {}

        def keep(tensor: torch.Tensor, shapes: dict[int, torch.Size] = shapes) -> torch.Tensor:
            shapes[tensor.untyped_storage().data_ptr()] = tensor.shape
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), hooks:
            found = TreeEngine(attention="mask").logprobs(model, batch)
        results.append((found.token.detach(), gradients(model, weighted_loss(rows_of(found)))))
        kept.append(sum(len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3] for shape in shapes.values()))
    (token, by_name), (other, other_by_name) = results
    assert torch.equal(token, other)
    assert all(torch.equal(by_name[key], other_by_name[key]) for key in by_name)
    assert kept[0] <= len(set(getattr(model.config.text_config, "layer_types", None) or [0]))
    assert kept[0] < kept[1] or name == "gemma3"


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "idefics3"])
@torch.no_grad()
def test_rows_padded_as_on_a_gpu_give_the_same(name: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    expected = token_logprobs(model, batch)
    padded_length = layout.padded_length
    monkeypatch.setattr(layout, "padded_length", lambda length, device: padded_length(length, torch.device("cuda")))
    rows, plan = one_row_a_prompt(batch)
    assert rows.inputs["input_ids"].shape[1] == plan.branch.shape[1] == plan.shift.shape[1]
    assert plan.branch.shape[1] % 64 == 0
    for engine in (TreeEngine(), PlainEngine(), PlainEngine(padding_side="left")):
        assert gap(engine.logprobs(model, batch), expected) < 1e-5
