"""Adapters go where they are meant to and nowhere else, and know the base that they were trained on."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cwdpo.errors import ConfigError, UserError
from cwdpo.models import adapters
from cwdpo.models.adapters import (
    _BASE_FILE,
    add_lora,
    base_fingerprint,
    load_adapter,
    lora_targets,
    named_base,
    quantization_config,
)
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.merging import merge_adapter
from cwdpo.models.parts import part_sizes
from cwdpo.models.saving import save_checkpoint

Tiny = Callable[[str], Path]

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "idefics3"]
LINEAR_PER_LAYER = {
    *(f"self_attn.{kind}_proj" for kind in "qkvo"),
    *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
}
VISION = ("model.visual.", "model.vision_tower.", "model.vision_model.")


@pytest.mark.parametrize("name", FAMILIES)
def test_language_is_every_linear_layer_of_the_language_model(name: str, tiny: Tiny) -> None:
    decoder = "model.text_model" if name == "idefics3" else "model.language_model"
    expected = {f"{decoder}.layers.{layer}.{kind}" for layer in range(2) for kind in LINEAR_PER_LAYER}
    assert set(lora_targets(load_policy(tiny(name)), "language")) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_takes_the_tower_only_if_it_is_not_frozen(name: str, tiny: Tiny) -> None:
    model = load_policy(tiny(name))
    linear = {key for key, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert set(lora_targets(model, "all-linear", freeze_vision=False)) == linear
    frozen = set(lora_targets(model, "all-linear"))
    assert frozen == {key for key in linear if not key.startswith(VISION)}
    assert frozen < linear


def test_names_and_patterns(tiny: Tiny) -> None:
    model = load_policy(tiny("llava"))
    layer = "model.language_model.layers.{}.self_attn.q_proj"
    with pytest.raises(ConfigError, match="hits the vision tower"):
        lora_targets(model, ["q_proj"])
    assert len(lora_targets(model, ["q_proj"], freeze_vision=False)) == 4
    assert lora_targets(model, r".*language_model.*q_proj") == [layer.format(0), layer.format(1)]
    assert lora_targets(model, [layer.format(1)]) == [layer.format(1)]


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (["q_prj"], "Did you mean `q_proj`"),
        ("gate_projs", "Did you mean `gate_proj`"),
        ("zzz", "Layers are called"),
        ("(", "not a regular expression"),
    ],
)
def test_nothing_hit_is_refused(target: Any, match: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=match):
        lora_targets(load_policy(tiny("llava")), target)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("target", ["language", "all-linear"])
def test_fresh_adapters_change_nothing_and_alone_train(name: str, target: str, tiny: Tiny) -> None:
    ids = torch.arange(10, 40)[None]
    model = load_policy(tiny(name)).eval()
    targets = lora_targets(model, target)
    before = model(input_ids=ids).logits
    adapted = add_lora(model, r=2, alpha=4, target_modules=target).eval()
    assert torch.equal(adapted(input_ids=ids).logits, before)
    sizes = {size.part: size for size in part_sizes(adapted)}
    assert all(size.trainable == (size.total if part == "adapters" else 0) for part, size in sizes.items())
    trained = {key.split(".lora_")[0] for key, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained == {f"base_model.model.{key}" for key in targets}


def shake(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("trainable", [True, False])
def test_saved_adapters_load_whole(trainable: bool, tiny: Tiny, tmp_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    adapted = add_lora(load_policy(tiny("qwen2_5_vl")), r=2, alpha=4).eval()
    shake(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = load_adapter(load_policy(tiny("qwen2_5_vl")), tmp_path, trainable=trainable).eval()
    assert torch.equal(loaded(input_ids=ids).logits, adapted(input_ids=ids).logits)
    assert not torch.equal(loaded(input_ids=ids).logits, load_policy(tiny("qwen2_5_vl")).eval()(input_ids=ids).logits)
    assert any(weight.requires_grad for weight in loaded.parameters()) == trainable


def test_incomplete_or_foreign_adapters_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapters"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    add_lora(load_policy(tiny("llava")), r=2, alpha=4).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    lost = weights.pop(next(iter(weights)))
    save_file(weights, file)
    with pytest.raises(UserError, match="lacks 1 adapter weights"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    save_file({**weights, "base_model.model.other.lora_A.weight": lost}, file)
    with pytest.raises(UserError, match="lacks 1 adapter weights"):
        load_adapter(load_policy(tiny("llava")), tmp_path)
    file.write_bytes(b"12345678")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(load_policy(tiny("llava")), tmp_path)


def test_quantization_needs_its_library_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA GPU"):  # a package that cannot be used here is not asked for
        quantization_config()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        quantization_config()
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())
    monkeypatch.setattr("transformers.utils.quantization_config.BitsAndBytesConfig.post_init", lambda self: None)
    four, eight = quantization_config(4, "fp4", False), quantization_config(8)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "fp4", False)
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Path:
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


@pytest.mark.parametrize(
    "added",
    [
        peft.LoraConfig(target_modules=["q_proj"], use_dora=True, trainable_token_indices={"embed_tokens": [1, 2]}),
        peft.LoraConfig(target_modules=["embed_tokens"], modules_to_save=["lm_head"]),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        peft.VeraConfig(target_modules=["q_proj"]),
        peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8),
    ],
    ids=lambda config: type(config).__name__,
)
def test_adapters_of_every_kind_leave_their_base_as_it_is(added: Any, tiny: Tiny) -> None:
    model = load_policy(tiny("llava"))
    before = base_fingerprint(model)
    assert base_fingerprint(peft.get_peft_model(model, added)) == before


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


@pytest.mark.slow
def test_adapters_go_into_their_base_only(trained: Path, sibling: Path, tiny: Tiny, tmp_path: Path) -> None:
    merged = merge_adapter(trained, tmp_path / "merged")  # loaded in float32, trained in bfloat16
    assert load_policy(merged)
    with pytest.raises(UserError, match=r"were trained on .*llava, and this base is another llava model, with other"):
        merge_adapter(trained, tmp_path / "wrong", base=sibling)
    with pytest.raises(UserError, match=r"\(llava\), and this base is a qwen2_5_vl model\. .*--any-base"):
        merge_adapter(trained, tmp_path / "wrong", base=tiny("qwen2_5_vl"))
    with pytest.raises(UserError, match="another llava model"):
        load_adapter(load_policy(sibling), trained)
    assert not (tmp_path / "wrong").exists()
    assert merge_adapter(trained, tmp_path / "wanted", base=sibling, any_base=True).is_dir()
    assert merge_adapter(trained, tmp_path / "half", dtype="bfloat16").is_dir()


@pytest.mark.parametrize("base", [None, "/moved/away"])
def test_how_a_base_is_named_fits_every_command(trained: Path, tmp_path: Path, base: str | None) -> None:
    file = trained / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(UserError) as refused:
        named_base(trained)
    assert f"into {file}, as `base_model_name_or_path`" in str(refused.value)
    assert f"`cwdpo merge {trained} --base MODEL --out DIR`" in str(refused.value)


def test_others_adapters_are_taken_with_a_warning(
    trained: Path, sibling: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (trained / _BASE_FILE).unlink()
    merge_adapter(trained, tmp_path / "one")
    assert "does not say" not in caplog.text
    merge_adapter(trained, tmp_path / "two", base=sibling)
    assert f"{trained} does not say which weights it was trained on, so {sibling} is not compared" in caplog.text


def test_a_quantised_base_is_known_by_its_kind(trained: Path, sibling: Path, tiny: Tiny, tmp_path: Path) -> None:
    said = json.loads((trained / _BASE_FILE).read_text())
    (trained / _BASE_FILE).write_text(json.dumps(said | {"fingerprint": None}))
    assert merge_adapter(trained, tmp_path / "one", base=sibling).is_dir()
    with pytest.raises(UserError, match="qwen2_5_vl"):
        merge_adapter(trained, tmp_path / "two", base=tiny("qwen2_5_vl"))


def test_nothing_is_merged_into_the_adapters_own_directory(trained: Path) -> None:
    before = sorted(path.name for path in trained.iterdir())
    for inside in (trained / "merged", trained / ".." / trained.name / "a" / "b"):
        with pytest.raises(UserError, match=r"lies in .*Name a directory outside it"):
            merge_adapter(trained, inside)
    assert sorted(path.name for path in trained.iterdir()) == before


def test_adapters_are_put_in_without_a_notice_of_other_libraries(tiny: Callable[[str], Path]) -> None:
    model = load_policy(tiny("llava"))

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        add_lora(model, r=2, alpha=4)
