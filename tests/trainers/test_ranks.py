"""What several processes are refused, and how a sharded model answers."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.naive_logprobs import rows_of, token_logprobs, weighted_loss
from tiny.prompts import load_model, make_batch, make_prompt
from torch import distributed

from cwdpo.batch import has_images
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine import make_engine
from cwdpo.errors import ConfigError
from cwdpo.models.loading import load_processor
from cwdpo.trainers.arguments import CWDPOConfig
from cwdpo.trainers.sharding import (
    check_sharding,
    choose_stand_in,
    divides_gradients,
    divides_weights,
    fill_optimizer_state,
    fit_fsdp,
)

DIVIDED: list[dict[str, int]] = [{}, {"deepspeed": 2}, {"deepspeed": 3}, {"fsdp": 2}]


def accelerator(*, fsdp: int | None = None, deepspeed: int | None = None) -> Any:
    """What is looked at of accelerate's."""
    plugin = SimpleNamespace(
        fsdp_version=fsdp,
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
        transformer_cls_names_to_wrap=None,
    )
    state = SimpleNamespace(
        fsdp_plugin=fsdp and plugin, deepspeed_plugin=deepspeed and SimpleNamespace(zero_stage=deepspeed)
    )
    return SimpleNamespace(state=state)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    args = CWDPOConfig(output_dir=str(tmp_path))
    for plugins in ({}, {"deepspeed": 2}, {"fsdp": 2}, {"deepspeed": 3}):
        check_sharding(accelerator(**plugins), args)
    with pytest.raises(ConfigError, match="version: 2"):
        check_sharding(accelerator(fsdp=1), args)
    loads_on_one = accelerator(fsdp=2)
    loads_on_one.state.fsdp_plugin.cpu_ram_efficient_loading = True
    with pytest.raises(ConfigError, match="cpu_ram_efficient_loading: false"):
        check_sharding(loads_on_one, args)


@pytest.mark.parametrize("settings", [{"on_nonfinite": "skip"}, {"max_tokens_per_batch": 4096}])
def test_a_launcher_may_bring_deepspeed_that_no_setting_names(settings: dict[str, Any], tmp_path: Path) -> None:
    args = CWDPOConfig(output_dir=str(tmp_path), **settings)
    check_sharding(accelerator(fsdp=2), args)
    with pytest.raises(ConfigError, match="DeepSpeed") as refused:
        check_sharding(accelerator(deepspeed=1), args)
    assert refused.value.setting == next(iter(settings))


def test_what_is_divided() -> None:
    assert [divides_weights(accelerator(**each)) for each in DIVIDED] == [False, False, True, True]
    assert [divides_gradients(accelerator(**each)) for each in DIVIDED] == [False, True, True, True]


def collator(checkpoint: Path) -> AnswerCollator:
    return AnswerCollator(Encoder(load_processor(checkpoint)))


def test_a_row_stands_in_where_some_have_images(rows: list[Row], tiny: Callable[[str], Path]) -> None:
    collate = collator(tiny("llava"))
    pictured, texts = ([row for row in rows if bool(row.images) is has] for has in (True, False))
    assert pictured
    assert texts
    assert choose_stand_in([RowDataset(pictured)], collate) is None
    assert choose_stand_in([RowDataset(texts)], collate) is None
    for sets in ([rows], [pictured, texts], [texts, pictured]):
        found = choose_stand_in(map(RowDataset, sets), collate)
        assert found is not None
        assert len(found["prompts"]) == 1
        assert has_images(found)


def test_rows_that_may_not_share_a_pass_are_refused(rows: list[Row], tiny: Callable[[str], Path]) -> None:
    """mllama gives a prompt without images no cross-attention mask."""
    with pytest.raises(ConfigError, match="0 and 1 images, which cannot share"):
        choose_stand_in([RowDataset(rows)], collator(tiny("mllama")))


def test_fsdp_gathers_the_layers_that_the_model_has(tiny: Callable[[str], Path]) -> None:
    """LLaVA names the layers of every vision tower that it may have."""
    model, where = load_model(tiny("llava")), accelerator(fsdp=2)
    fit_fsdp(where, args := SimpleNamespace(activation_checkpointing=False), model)  # type: ignore[arg-type]
    names = where.state.fsdp_plugin.transformer_cls_names_to_wrap
    assert {"CLIPEncoderLayer", "LlamaDecoderLayer"} <= {*names} < {*model._no_split_modules}
    assert not args.activation_checkpointing
    where.state.fsdp_plugin.transformer_cls_names_to_wrap = ["LlamaDecoderLayer"]
    where.state.fsdp_plugin.activation_checkpointing = True
    fit_fsdp(where, args, model)  # type: ignore[arg-type]
    assert where.state.fsdp_plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    assert args.activation_checkpointing
    assert not where.state.fsdp_plugin.activation_checkpointing


def rank(number: int, store: Path, checkpoint: Path, result: Any) -> None:
    """One of two ranks of a model whose weights are divided: the largest gaps of log-probs and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=number, world_size=2)
    prompts = [make_prompt(checkpoint, 1 + i, words=3 + i, seed=10 * number + i) for i in range(2)]
    batch = make_batch(prompts, [[4, 2], [3, 5]])
    whole, model = load_model(checkpoint), load_model(checkpoint)
    expected = token_logprobs(whole, batch)
    weighted_loss(expected).backward()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    engine = make_engine("tree")
    found = rows_of(engine.logprobs(model, batch))
    weighted_loss(found).backward()
    gap = max((ours - theirs).abs().max().item() for ours, theirs in zip(found, expected, strict=True))
    gradients = []
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        mean = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        distributed.all_reduce(mean)
        if ours.grad is not None:
            gradients.append(((ours.grad.full_tensor() - mean / 2).abs().max().item(), mean.abs().max().item() / 2))
    largest = max(size for _, size in gradients)
    result.put((gap, max(error for error, _ in gradients) / largest, largest))
    distributed.barrier()  # so that neither leaves while the other still needs it
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_weights_divided_by_fsdp_answer_like_whole_ones(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    context = get_context("spawn")
    result = context.SimpleQueue()
    children = [context.Process(target=rank, args=(n, tmp_path / "store", tiny(name), result)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(180)
        assert child.exitcode == 0
    for gap, error, largest in (result.get(), result.get()):
        assert largest > 1e-4
        assert gap < 1e-5
        assert error < 1e-5


def test_a_live_reference_needs_whole_weights(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(2, reference="live")
    monkeypatch.setattr(type(trainer), "is_sharded", True)
    with pytest.raises(ConfigError, match="`reference: cached`"):
        trainer.measure_reference()


def test_a_weight_that_nothing_used_has_the_state_of_a_first_use() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizer = torch.optim.AdamW([used, unused], lr=0.1)
    fill_optimizer_state(optimizer)
    assert not optimizer.state
    used.grad = torch.ones(2, 3)
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[used].items()}
    fill_optimizer_state(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state[used].items())
    late = torch.nn.Parameter(torch.ones(2, 3))
    other = torch.optim.AdamW([late], lr=0.1)
    for weight in (unused, late):
        weight.grad = torch.full((2, 3), 0.5)
    used.grad = None
    optimizer.step()
    other.step()
    assert torch.equal(unused, late)
