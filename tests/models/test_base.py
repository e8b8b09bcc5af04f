"""Adapters know the base that they were trained on, whatever precision it is loaded in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cwdpo.errors import UserError
from cwdpo.models.adapters import _BASE_FILE, add_lora, base_fingerprint, load_adapter
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.saving import merge_adapter, save_checkpoint

Tiny = Callable[[str], Path]


@pytest.fixture
def adapters(tiny: Tiny, tmp_path: Path) -> Path:
    """Trained on the tiny llava in half precision."""
    model = add_lora(load_policy(tiny("llava"), dtype="bfloat16"), r=2, alpha=4)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data += 0.01
    return save_checkpoint(model, load_processor(tiny("llava")), tmp_path / "adapters")


@pytest.fixture
def sibling(tiny: Tiny, tmp_path: Path) -> Path:
    """The same class and sizes, but one weight is another."""
    model: Any = load_policy(tiny("llava"))
    weight = next(weight for name, weight in model.named_parameters() if "language_model" in name and weight.dim() > 1)
    weight.data *= 1.5
    return save_checkpoint(model, load_processor(tiny("llava")), tmp_path / "sibling")


def test_a_base_is_the_same_in_any_precision_and_under_adapters(tiny: Tiny) -> None:
    found = {base_fingerprint(load_policy(tiny("llava"), dtype=dtype)) for dtype in ("auto", "float32", "bfloat16")}
    assert len(found) == 1
    adapted = add_lora(load_policy(tiny("llava")), r=2, alpha=4)
    assert base_fingerprint(adapted) in found
    half = base_fingerprint(load_policy(tiny("llava"), dtype="float16"))
    assert base_fingerprint(load_policy(tiny("llava")), through=torch.float16) == half


def test_every_weight_counts_and_no_name_does() -> None:
    one, renamed, other = nn.ModuleDict({"a": nn.Linear(300, 200)}), nn.ModuleDict(), nn.ModuleDict()
    renamed["b"] = nn.Linear(300, 200)
    renamed["b"].load_state_dict(one["a"].state_dict())
    assert base_fingerprint(one) == base_fingerprint(renamed)
    other["a"] = nn.Linear(300, 200)
    other["a"].load_state_dict(one["a"].state_dict())
    with torch.no_grad():
        other["a"].bias[7] += 1
    assert base_fingerprint(one) != base_fingerprint(other)
    turned = nn.ModuleDict({"a": nn.Linear(200, 300)})
    turned["a"].weight.data = one["a"].weight.data.reshape(300, 200)
    turned["a"].bias.data = one["a"].bias.data
    assert base_fingerprint(one) != base_fingerprint(turned)


def test_a_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a weight is, a few thousand of its values are hashed."""
    sizes = []
    monkeypatch.setattr(
        "cwdpo.models.adapters.hash_tensors",
        lambda tensors: sizes.append(tensors[0][1].numel()) or __import__("xxhash").xxh3_128(),
    )
    base_fingerprint(nn.Linear(1000, 999))
    assert sizes[0] <= 4096
    assert sizes == [999_000 // 244 + 1, 999]


def test_adapters_go_into_their_base_only(adapters: Path, sibling: Path, tiny: Tiny, tmp_path: Path) -> None:
    merged = merge_adapter(adapters, tmp_path / "merged")  # loaded in float32, trained in bfloat16
    assert load_policy(merged)
    with pytest.raises(UserError, match=r"were trained on .*llava, and this base is another llava model, with other"):
        merge_adapter(adapters, tmp_path / "wrong", base=sibling)
    with pytest.raises(UserError, match=r"\(llava\), and this base is a qwen2_5_vl model\. .*--any-base"):
        merge_adapter(adapters, tmp_path / "wrong", base=tiny("qwen2_5_vl"))
    with pytest.raises(UserError, match="another llava model"):
        load_adapter(load_policy(sibling), adapters)
    assert not (tmp_path / "wrong").exists()
    assert merge_adapter(adapters, tmp_path / "wanted", base=sibling, any_base=True).is_dir()
    assert merge_adapter(adapters, tmp_path / "half", dtype="bfloat16").is_dir()


def test_adapters_of_others_are_told_of(
    adapters: Path, sibling: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (adapters / _BASE_FILE).unlink()
    merge_adapter(adapters, tmp_path / "one")
    assert "does not say" not in caplog.text
    merge_adapter(adapters, tmp_path / "two", base=sibling)
    assert f"{adapters} does not say which weights it was trained on, so {sibling} is not compared" in caplog.text


def test_a_quantised_base_is_known_by_its_kind(adapters: Path, sibling: Path, tiny: Tiny, tmp_path: Path) -> None:
    said = json.loads((adapters / _BASE_FILE).read_text())
    (adapters / _BASE_FILE).write_text(json.dumps(said | {"fingerprint": None}))
    assert merge_adapter(adapters, tmp_path / "one", base=sibling).is_dir()
    with pytest.raises(UserError, match="qwen2_5_vl"):
        merge_adapter(adapters, tmp_path / "two", base=tiny("qwen2_5_vl"))


def test_nothing_is_merged_into_the_adapters_own_directory(adapters: Path) -> None:
    before = sorted(path.name for path in adapters.iterdir())
    for inside in (adapters / "merged", adapters / ".." / adapters.name / "a" / "b"):
        with pytest.raises(UserError, match=r"lies in .*Name a directory outside it"):
            merge_adapter(adapters, inside)
    assert sorted(path.name for path in adapters.iterdir()) == before
