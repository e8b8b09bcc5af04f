"""The whole bench on a model of nothing, and what it says."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from cwdpo.bench import run
from cwdpo.bench.contestants import SIZES, Contestant, ModelSize, Setting, VisionSize
from cwdpo.bench.run import (
    BEST,
    FEATURES,
    FLEX,
    SHIPPED,
    STRICT,
    Options,
    Result,
    measured_table,
    run_bench,
)
from cwdpo.engine import attention as tree_attention
from cwdpo.errors import UserError

STAND_IN = ModelSize(
    vision=VisionSize(depth=2, full_attention=(1,), width=32, mlp_width=64, heads=2),
    depth=2,
    width=64,
    mlp_width=128,
    heads=4,
    kv_heads=2,
    vocabulary=1000,
    tied=True,
    lora_rank=2,
)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "3b", STAND_IN)
    monkeypatch.setitem(run.SETTINGS, "ii", Setting(image_side=2, shortest=3, longest=8))


def measure(**options: Any) -> Result:
    return run_bench(Options(setting="ii", size="3b", **options), say=lambda line: None)


@pytest.mark.bench
@pytest.mark.parametrize("lora", [True, False])
def test_every_contestant_has_the_same_loss_and_the_tree_the_least_to_do(lora: bool) -> None:
    result = measure(lora=lora, steps=2)
    measured = result.measurements
    kept = [FEATURES] if lora else []
    assert list(measured) == [SHIPPED, STRICT, "plain", "plain, cached reference", "tree", BEST, *kept]
    loss = measured[SHIPPED].loss
    assert abs(loss - 0.6931472) > 1e-4  # of a policy that differs from its reference
    for one in measured.values():
        assert one.loss == pytest.approx(loss, abs=2e-6)
        assert len(one.seconds) == 2
        assert min(one.seconds) > 0
    assert measured[STRICT].flops < measured[SHIPPED].flops
    for value in ("flops", "saved_bytes", "peak_bytes"):
        assert getattr(measured[BEST], value) < 0.8 * getattr(measured[STRICT], value)
    assert result.reference_pass is not None
    # what the live reference costs is what the pass before training costs
    extra = measured["tree"].flops - measured[BEST].flops
    assert result.reference_pass.flops == pytest.approx(extra, rel=0.1)
    assert "paid over 1 epoch: FLOPs 0." in measured_table(result)


@pytest.mark.bench
def test_the_measurement_for_gpus_on_a_stand_in_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of `--device cuda` but the device."""
    built = run.build_model
    monkeypatch.setattr(run, "build_model", lambda *args, **options: built(*args, **options | {"device": "cpu"}))
    monkeypatch.setattr(tree_attention, "flex_kernel", lambda: dense_stand_in)  # the real one has no backward here
    result = measure(device="cuda", dtype="bfloat16", steps=1, checkpointing=True)
    assert result.measurements[FLEX].flops > result.measurements[BEST].flops  # whole blocks of 128 tokens, few here
    assert list(result.measurements) == [SHIPPED, "plain", "plain, cached reference", "tree", BEST, FEATURES, FLEX]
    assert result.baseline == SHIPPED
    losses = [one.loss for one in result.measurements.values()]
    assert max(losses) - min(losses) < 0.05  # bfloat16 has three digits
    assert measured_table(result).splitlines()[0].endswith('bfloat16; ratios to "TRL"')


def dense_stand_in(query: Any, key: Any, value: Any, *, block_mask: Any, scale: float | None) -> Any:
    index = torch.arange(query.shape[2])
    rows = torch.arange(query.shape[0])[:, None, None, None]
    mask = block_mask.mask_mod(rows, torch.tensor(0), index[None, None, :, None], index[None, None, None, :])
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


class Recorder(nn.Module):
    """Notes where it is sent."""

    def __init__(self, sent: list[str]) -> None:
        super().__init__()
        self.sent = sent

    def to(self, device: Any) -> "Recorder":
        self.sent.append(str(device))
        return self


@pytest.mark.parametrize(("device", "expected"), [("cuda", ["cuda"] * 2 + ["cpu"] * 2), ("cpu", [])])
def test_only_who_is_measured_is_on_the_gpu(device: str, expected: list[str]) -> None:
    contestant = Contestant.__new__(Contestant)
    sent: list[str] = []
    reference = SimpleNamespace(model=Recorder(sent))
    contestant.trainer = SimpleNamespace(model=Recorder(sent), ref_model=None, reference=reference)
    contestant.device = torch.device(device)
    with contestant.at_work():
        assert sent == expected[:2]
    assert sent == expected


@pytest.mark.bench
def test_targets_stand_beside_what_was_measured() -> None:
    result = measure(steps=1, checkpointing=True)
    flops, time = result.targets
    base, best = result.measurements[STRICT], result.measurements[BEST]
    assert (flops.limit, flops.ratio) == (0.35, best.flops / base.flops)
    assert time.ratio == best.seconds[0] / base.seconds[0]
    table = measured_table(result)
    assert f"| FLOPs, {BEST} | 0.35 | {flops.ratio:.3f} | {'pass' if flops.met else 'miss'} |" in table
    assert not replace(flops, ratio=0.3501).met
    assert replace(flops, ratio=0.35).met


@pytest.mark.bench
@pytest.mark.parametrize("engine", ["tree", "plain"])
def test_one_engine_alone(engine: Any) -> None:
    names = list(measure(engine=engine, steps=0).measurements)
    assert names[:2] == [SHIPPED, STRICT]
    assert {name.split(",")[0] for name in names[2:]} == {engine}


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match="pip install trl"):
        measure()
