"""Checkpoints are whole or not there; merged equals adapted; restored equals saved, bit by bit."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from cwdpo.errors import UserError
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.merging import merge_adapter
from cwdpo.models.parts import fingerprint
from cwdpo.models.saving import restore_weights, save_checkpoint

Tiny = Callable[[str], Path]
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "idefics3"]


def shake(model: torch.nn.Module, *, only: str = "", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if only in key:
            weight.data += torch.randn(weight.shape, generator=generator) * 0.1


def inputs(processor: Any, images: int) -> dict[str, torch.Tensor]:
    pictures = [Image.radial_gradient("L").resize((40 + 8 * i, 30)).convert("RGB") for i in range(images)]
    parts = [{"type": "image"}] * images + [{"type": "text", "text": "What is in the picture?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return dict(processor(images=pictures or None, text=text, return_tensors="pt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_checkpoint_answers_as_before(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model, processor = load_policy(tiny(name)).eval(), load_processor(tiny(name))
    shake(model)
    assert save_checkpoint(model, processor, tmp_path / "saved") == tmp_path / "saved"
    again, its_processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "saved"),
        load_processor(tmp_path / "saved"),
    )
    logits = []
    for images in (0, 1, 3):
        batch = inputs(its_processor, images)
        logits.append(again(**batch).logits[0, -1])
        assert torch.equal(logits[-1], model(**inputs(processor, images)).logits[0, -1])
        # greedy tokens are the likeliest ones of a plain forward pass, so generation sees the images too
        tokens = again.generate(**batch, max_new_tokens=3, do_sample=False)
        assert tokens[0, batch["input_ids"].shape[1]] == logits[-1].argmax()
    assert not torch.equal(logits[1], logits[2])
    assert os.listdir(tmp_path) == ["saved"]


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Path:
    return save_checkpoint(load_policy(tiny("llava")), load_processor(tiny("llava")), tmp_path / "saved")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_saving_replaces_the_old_checkpoint(saved: Path) -> None:
    model = load_policy(saved)
    shake(model)
    (saved / "stale.bin").write_text("of an older save")
    save_checkpoint(model, load_processor(saved), saved)
    assert fingerprint(load_policy(saved)) == fingerprint(model)
    assert not (saved / "stale.bin").exists()


class Failing:
    """A processor that cannot be saved."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save_pretrained(self, directory: str) -> None:
        (Path(directory) / "half.json").write_text("{")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "untouched. Free some space"),
        (Exception("No space left on device (os error 28)"), UserError, "untouched. Free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, "untouched. Check the disk"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (TypeError("a mistake of ours"), TypeError, "a mistake"),
    ],
)
def test_failing_keeps_the_old_checkpoint(
    error: BaseException, raised: type[BaseException], match: str | None, saved: Path
) -> None:
    before = contents(saved)
    model = load_policy(saved)
    shake(model)
    with pytest.raises(raised, match=match):
        save_checkpoint(model, Failing(error), saved)  # type: ignore[arg-type]
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["saved"]


def test_failing_to_swap_brings_the_old_checkpoint_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = contents(saved), Path.rename

    def fail_on_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises(UserError, match="Input/output error"):
        save_checkpoint(load_policy(saved), load_processor(saved), saved)
    assert contents(saved) == before


FULL_DISK = """
import resource, signal, sys
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.saving import save_checkpoint
model, processor = load_policy(sys.argv[1]), load_processor(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the weights do not fit
save_checkpoint(model, processor, sys.argv[1])
"""


@pytest.mark.slow
def test_weights_that_do_not_fit_keep_the_old_checkpoint(saved: Path) -> None:
    before = contents(saved)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, saved], capture_output=True, text=True, timeout=120)
    assert "could not be written" in done.stderr
    assert "untouched" in done.stderr
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["saved"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_equals_adapted(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = add_lora(load_policy(tiny(name)), r=4, alpha=8, target_modules="all-linear").eval()
    shake(model, only="lora_")
    processor = load_processor(tiny(name))
    save_checkpoint(model, processor, tmp_path / "adapters")
    merged = load_policy(merge_adapter(tmp_path / "adapters", tmp_path / "merged")).eval()
    assert not any("lora" in key for key in merged.state_dict())
    batch = inputs(load_processor(tmp_path / "merged"), 1)
    expected = model(**batch).logits
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=0)
    with model.disable_adapter():
        assert (model(**batch).logits - expected).abs().max() > 1e-2


def test_merging_refuses_what_it_cannot_do(saved: Path, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        merge_adapter(saved, tmp_path / "merged")
    adapters = tmp_path / "adapters"
    add_lora(load_policy(tiny("llava")), r=2, alpha=4).save_pretrained(adapters)
    before = contents(saved)
    with pytest.raises(UserError, match="exists already"):
        merge_adapter(adapters, saved)
    assert contents(saved) == before
    with pytest.raises(UserError, match="there is no directory"):
        merge_adapter(adapters, tmp_path / "merged", base=tmp_path / "gone")
    for named, match in (("/gone", "was /gone, which is gone"), (None, "do not name their base")):
        settings = json.loads((adapters / "adapter_config.json").read_text())
        (adapters / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": named}))
        with pytest.raises(UserError, match=match):
            merge_adapter(adapters, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_restored_weights_are_the_saved_ones(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = load_policy(tiny(name))
    shake(model, seed=1)
    model.save_pretrained(tmp_path)
    other = load_policy(tiny(name))
    where = {key: weight.data_ptr() for key, weight in other.named_parameters()}
    assert fingerprint(other) != fingerprint(model)
    restore_weights(other, tmp_path)
    saved, restored = model.state_dict(), other.state_dict()
    assert saved.keys() == restored.keys()
    assert all(torch.equal(saved[key], restored[key]) for key in saved)
    assert fingerprint(other) == fingerprint(model)
    assert {key: weight.data_ptr() for key, weight in other.named_parameters()} == where  # an optimizer holds them


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_the_trainers_own_reloading_loses_weights(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """The reason for restore_weights. If this fails, transformers#43701 is fixed and it may go."""
    model = load_policy(tiny(name))
    shake(model, seed=1)
    model.save_pretrained(tmp_path)
    other = load_policy(tiny(name))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    saved, reloaded = model.state_dict(), other.state_dict()
    assert not all(torch.equal(saved[key], reloaded[key]) for key in saved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_restoring_rounds_nothing(dtype: str, tiny: Tiny, tmp_path: Path) -> None:
    model = load_policy(tiny("idefics3"), dtype=dtype)
    shake(model, seed=1)
    model.save_pretrained(tmp_path)
    other = load_policy(tiny("idefics3"), dtype=dtype)
    restore_weights(other, tmp_path)
    assert fingerprint(other) == fingerprint(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_restored_adapters_are_the_saved_ones(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = add_lora(load_policy(tiny(name)), r=2, alpha=4)
    shake(model, only="lora_")
    model.save_pretrained(tmp_path)
    other = add_lora(load_policy(tiny(name)), r=2, alpha=4)
    assert fingerprint(other) != fingerprint(model)
    restore_weights(other, tmp_path)
    assert fingerprint(other) == fingerprint(model)
    bare = load_policy(tiny(name))
    with pytest.raises(UserError, match="has adapters"):
        restore_weights(bare, tmp_path)
    with pytest.raises(UserError, match="no adapters"):
        restore_weights(other, tiny(name))


def test_restoring_something_else_is_refused(saved: Path, tiny: Tiny) -> None:
    model = load_policy(saved)
    before = fingerprint(model)
    weights = load_file(saved / "model.safetensors")
    key = next(key for key in weights if key.endswith("up_proj.weight"))

    def refused(changed: dict[str, torch.Tensor], match: str) -> None:
        save_file(changed, saved / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=match):
            restore_weights(model, saved)
        assert fingerprint(model) == before

    refused({name: value for name, value in weights.items() if name != key}, "lacks 1 weights")
    refused({**weights, "spare.weight": torch.zeros(1)}, "beyond the model's")
    refused({**weights, key: torch.zeros(3)}, "another shape")
