"""The whole bench on a model of nothing, and what it says."""

import sys
from typing import Any

import pytest

from cwdpo.bench import run
from cwdpo.bench.run import BEST, FEATURES, SHIPPED, STRICT, Options, Result, run_bench
from cwdpo.bench.sizes import SIZES, ModelSize, Setting, VisionSize
from cwdpo.bench.table import closed_form_table, measured_table
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


def test_the_measurement_for_gpus_on_a_stand_in_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of `--device cuda` but the device."""
    built = run.build_model
    monkeypatch.setattr(run, "build_model", lambda *args, **options: built(*args, **options | {"device": "cpu"}))
    result = measure(device="cuda", dtype="bfloat16", steps=1, checkpointing=True)
    assert list(result.measurements) == [SHIPPED, "plain", "plain, cached reference", "tree", BEST, FEATURES]
    assert result.baseline == SHIPPED
    losses = [one.loss for one in result.measurements.values()]
    assert max(losses) - min(losses) < 0.05  # bfloat16 has three digits
    assert measured_table(result).splitlines()[0].endswith('bfloat16; ratios to "TRL"')


@pytest.mark.parametrize("engine", ["tree", "plain"])
def test_one_engine_alone(engine: Any) -> None:
    names = list(measure(engine=engine, steps=0).measurements)
    assert names[:2] == [SHIPPED, STRICT]
    assert {name.split(",")[0] for name in names[2:]} == {engine}


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match="pip install trl"):
        measure()


def test_closed_form_table_names_every_size() -> None:
    table = closed_form_table()
    assert table.count("| 72B, 1024 image tokens |") == 4
