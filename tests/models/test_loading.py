"""Loading: all weights or one clear line, no dropout, the right parts frozen; processors also without torchvision."""

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import NAMES, build
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2VLProcessor,
)
from transformers.utils import is_torchvision_available

from cwdpo.errors import UserError
from cwdpo.models import loading
from cwdpo.models.loading import load_config, load_policy, load_processor
from cwdpo.models.naming import local_directory
from cwdpo.models.parts import part_sizes, vision_tower

Tiny = Callable[[str], Path]

PROJECTOR = {
    "qwen2_vl": ["visual.merger"],
    "qwen2_5_vl": ["visual.merger"],
    "qwen3_vl": ["visual.merger", "visual.deepstack_merger_list"],
    "llava": ["multi_modal_projector"],
    "idefics3": ["connector"],
}


@pytest.mark.parametrize("name", PROJECTOR)
def test_only_the_vision_tower_freezes(name: str, tiny: Tiny) -> None:
    model = load_policy(tiny(name))
    tower = ("model.visual.", "model.vision_tower.", "model.vision_model.")
    projector = tuple(f"model.{part}." for part in PROJECTOR[name])
    for weight_name, weight in model.named_parameters():
        frozen = weight_name.startswith(tower) and not weight_name.startswith(projector)
        assert weight.requires_grad != frozen, weight_name
    assert any(weight_name.startswith(projector) for weight_name, _ in model.named_parameters())
    assert all(weight.requires_grad for weight in load_policy(tiny(name), freeze_vision=False).parameters())


@pytest.mark.parametrize("name", PROJECTOR)
def test_parts_add_up(name: str, tiny: Tiny) -> None:
    model = load_policy(tiny(name))
    sizes = {size.part: size for size in part_sizes(model)}
    assert list(sizes) == ["vision tower", "projector", "language model"]
    assert sizes["vision tower"].trainable == 0
    assert sizes["projector"].trainable == sizes["projector"].total > 0
    stored = sum(tensor.numel() for tensor in load_file(tiny(name) / "model.safetensors").values())
    assert sum(size.total for size in sizes.values()) == stored
    head = model.get_output_embeddings().weight.numel()
    assert sizes["language model"].total == head + sum(w.numel() for w in model.get_decoder().parameters())


def test_dropout_is_off_in_settings_and_modules(tmp_path: Path) -> None:
    directory = build("llava", tmp_path / "llava")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    config["vision_config"]["attention_dropout"] = 0.5
    (directory / "config.json").write_text(json.dumps(config))
    model = load_policy(directory).train()
    assert model.config.text_config.attention_dropout == 0
    assert vision_tower(model).config.attention_dropout == 0
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_dtype_is_as_asked(tiny: Tiny) -> None:
    assert load_policy(tiny("llava"), dtype="bfloat16").dtype == torch.bfloat16
    assert load_policy(tiny("llava"), attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("name", NAMES)
def test_attention_of_each_part(name: str, tiny: Tiny) -> None:
    model = load_policy(tiny(name), attn_implementation={"text": "sdpa", "vision": "eager"})
    tower: Any = vision_tower(model)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert tower.config._attn_implementation == "eager"
    assert model.get_decoder().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("weights", ["bfloat16", "torch.float16", "float32", "None"])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_flash_attention_for_the_tower_alone_where_it_can_run(
    weights: str, installed: bool, gpu: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = loading.attention_of_parts(load_config(str(tiny("llava"))), "auto", weights=weights)
    can = installed and gpu and weights.endswith("float16")
    assert found == ({"text_config": "sdpa", "vision_config": "flash_attention_2"} if can else None)


def test_attention_of_a_part_that_is_not_there(tiny: Tiny) -> None:
    config = load_config(str(tiny("llava")))
    with pytest.raises(UserError, match=r"names audio, but llava has no such part"):
        loading.attention_of_parts(config, {"audio": "sdpa"}, weights="float32")


def test_tied_output_head_is_not_missing(tmp_path: Path) -> None:
    model = load_policy(build("qwen2_vl", tmp_path / "source"))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    tied = load_policy(tmp_path / "tied")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def refused(directory: Path | str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_policy(directory)
    assert "\n" not in str(caught.value)


def spoil(directory: Path, how: str) -> None:
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    if how == "missing":
        weights.unlink()
    elif how == "shard":
        weights.rename(directory / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" if how == "pointer" else content[:-9])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("missing", "has no weights: there is no model.safetensors."),
        ("shard", "has no weights: there is no model-00002-of-00002.safetensors."),
        ("pointer", "model.safetensors is a Git LFS pointer, not the file itself. Fetch that: `git lfs pull`."),
        ("cut", "model.safetensors is damaged "),
    ],
)
def test_weights_are_checked_without_being_read(llava: Path, how: str, expected: str) -> None:
    loading.check_weights(llava)
    spoil(llava, how)
    with pytest.raises(UserError) as caught:
        loading.check_weights(llava)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("flash", "is not supported. Did you mean flash_attention_2?"),
        ("sdpaa", "is not supported. Leave it out, or write sdpa, which needs nothing else."),
    ],
)
def test_attention_is_checked_on_an_outline(tiny: Tiny, wanted: str, expected: str) -> None:
    for load in (loading.load_outline, load_policy):
        with pytest.raises(UserError) as caught:
            load(tiny("llava"), attn_implementation=wanted)
        assert str(caught.value).startswith(f"model.attn_implementation is '{wanted}', which cannot be used: Specified")
        assert str(caught.value).endswith(expected)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return build("llava", tmp_path / "llava")


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


KEY = "language_model.model.layers.0.mlp.up_proj.weight"


def test_missing_weight_is_refused(llava: Path) -> None:
    edit_weights(llava, lambda weights: weights.pop(KEY))
    refused(llava, "lacks 1 of the model's weights: .*up_proj.weight")


def test_wrong_shape_is_refused(llava: Path) -> None:
    edit_weights(llava, lambda weights: weights.update({KEY: torch.zeros(3)}))
    refused(llava, r"wrong shape for 1 .*up_proj.weight \(3,\) for \(96, 48\)")


def test_surplus_weight_is_told(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(llava, lambda weights: weights.update({"spare.weight": torch.zeros(3)}))
    with caplog.at_level(logging.WARNING, "cwdpo"):
        load_policy(llava)
    assert "spare.weight" in caplog.text


def test_a_refusal_is_the_only_message(llava: Path) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.add_handler(handler)
    try:
        edit_weights(llava, lambda weights: weights.pop(KEY))
        refused(llava, "lacks 1")
    finally:
        transformers.utils.logging.remove_handler(handler)
    assert not records
    assert transformers.utils.logging.get_verbosity() == before


def test_unreachable_hub_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/no-such-model", "neither a directory here nor a hub model")


def test_other_things_in_place_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for name in ("gguf/m-Q4.gguf", "pipeline/model_index.json", "run/recipe.yaml", "above/qwen/config.json", "cache/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    for name, words in {
        "gguf": "gguf is a folder of GGUF files, and a model is needed. GGUF is not trained on",
        "gguf/m-Q4.gguf": "is a GGUF file, and a model is needed. GGUF is not trained on: write the original model",
        "pipeline": "is a diffusion pipeline, and a model is needed. It makes images.",
        "run": f"Train it first: `cwdpo train {tmp_path}/run/recipe.yaml`.",
        "above": f"Did you mean {tmp_path}/above/qwen?",
        "cache": "cache is a directory, and a model is needed. Write a model's directory (with config.json)",
        "pipelin": "neither a directory here nor a hub model that can be reached. Did you mean pipeline?",
        "./pipelin": "there is no directory pipelin. Did you mean pipeline?",
        "gpt-4o": "gpt-4o is neither a directory here nor a hub model that can be reached. Write a model's directory",
        "Qwen/Qwen 3B": "A hub name has letters, digits, - _ and . only",
        "Qwen/Qwen3": "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or",
        "https://huggingface.co/Qwen/Qwen3-VL/tree/main": "Give the hub name: Qwen/Qwen3-VL.",
    }.items():
        refused(name, re.escape(words))


def test_a_slip_in_a_path_of_two_parts_does_not_go_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / "llava").mkdir(parents=True)
    monkeypatch.setattr("cwdpo.models.loading.AutoConfig.from_pretrained", reach)
    refused("m/llavva", "there is no directory m/llavva, though m is one. Did you mean m/llava?")
    refused("m/qwen or so", "there is no directory m/qwen or so, though m is one. Write a model's directory")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert local_directory("m/llavva") is None  # a hub model that was downloaded


def test_quantised_weights_load_onto_the_processs_gpu(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(source: str, **options: Any) -> None:
        seen.update(options)
        raise OSError("far enough")

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", record)
    settings = BitsAndBytesConfig()
    with pytest.raises(UserError, match="far enough"):
        load_policy(tiny("llava"), quantization=settings)
    assert seen["quantization_config"] is settings
    assert seen["device_map"] == {"": 0}


def test_truncated_weights_are_refused(llava: Path) -> None:
    content = (llava / "model.safetensors").read_bytes()
    (llava / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(llava, "damaged")


def test_no_weights_are_refused(llava: Path) -> None:
    (llava / "model.safetensors").unlink()
    refused(llava, "has no weights: there is no model.safetensors")


def test_missing_directory_and_file_are_refused(llava: Path) -> None:
    refused(llava / "nowhere", "there is no directory")
    refused(str(llava / "nowhere"), "there is no directory")
    refused(llava / "config.json", f"is a file of a model, and a model is needed. Write its directory: {llava}.")


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is an empty directory, and a model is needed")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "cwdpo merge")


def test_text_model_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=16)).save_pretrained(tmp_path)
    refused(tmp_path, "llama model, which does not read images")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ('{"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}', "trust_remote_code: true"),
        ('{"model_type": "other"}', "does not recognize"),
        ('{"model_type', "not a valid JSON"),
    ],
)
def test_unknown_or_broken_config_is_refused(config: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "code.py").write_text("raise SystemExit('remote code ran')")
    refused(tmp_path, match)


needs_torchvision_missing = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")


def encode(processor: Any) -> dict[str, torch.Tensor]:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    parts = [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return dict(processor(images=[image], text=text, return_tensors="pt"))


@pytest.mark.parametrize("name", [*NAMES, "llava_onevision", "internvl", "gemma3", "mllama"])
def test_saved_and_loaded_again_it_encodes_the_same(name: str, tiny: Tiny, tmp_path: Path) -> None:
    processor = load_processor(tiny(name))
    assert processor.tokenizer.pad_token_id is not None
    assert processor.tokenizer.padding_side == AutoTokenizer.from_pretrained(tiny(name)).padding_side
    processor.save_pretrained(tmp_path)
    before, after = encode(processor), encode(load_processor(str(tmp_path)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_where_auto_processor_works_it_is_used(name: str, tiny: Tiny) -> None:
    assert type(load_processor(tiny(name))) is type(AutoProcessor.from_pretrained(tiny(name)))


@needs_torchvision_missing
@pytest.mark.parametrize(
    ("name", "kept"),
    [("qwen2_vl", "preprocessor_config.json"), ("qwen3_vl", "video_preprocessor_config.json")],
)
def test_file_with_video_settings_survives_byte_for_byte(name: str, kept: str, tiny: Tiny, tmp_path: Path) -> None:
    source = (tiny(name) / kept).read_bytes()
    load_processor(tiny(name)).save_pretrained(tmp_path / "first")
    load_processor(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / kept).read_bytes() == source
    # a full load reads the section of processor_config.json first, so there must be none
    assert "video_processor" not in json.loads((tmp_path / "second" / "processor_config.json").read_text())


@needs_torchvision_missing
def test_section_with_video_settings_survives_byte_for_byte(tiny: Tiny, tmp_path: Path) -> None:
    def section(directory: Path) -> str:
        settings = json.loads((directory / "processor_config.json").read_text())
        return json.dumps(settings["video_processor"], sort_keys=True)

    load_processor(tiny("qwen2_5_vl")).save_pretrained(tmp_path / "first")
    load_processor(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert section(tmp_path / "second") == section(tiny("qwen2_5_vl"))
    assert json.loads(section(tmp_path / "second"))["video_processor_type"] == "Qwen2VLVideoProcessor"


@needs_torchvision_missing
def test_one_that_needs_torchvision_for_images_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="pip install torchvision"):
        load_processor(tiny("mistral3"))


@needs_torchvision_missing
def test_class_is_the_checkpoints_own_and_survives_pickling(tiny: Tiny, tmp_path: Path) -> None:
    processor = load_processor(tiny("qwen2_vl"))
    assert isinstance(processor, Qwen2VLProcessor)
    assert type(processor).__name__ == "Qwen2VLProcessor"
    copy = pickle.loads(pickle.dumps(processor))  # data loader workers do this
    copy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Qwen2VLProcessor"
    assert (tmp_path / "preprocessor_config.json").exists()
    assert torch.equal(encode(copy)["pixel_values"], encode(processor)["pixel_values"])


def test_missing_pad_token_becomes_the_end_token(tmp_path: Path) -> None:
    directory = build("llava", tmp_path / "llava")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_processor(directory).tokenizer.pad_token == "</s>"


def test_a_tokenizer_alone_is_no_processor(tiny: Tiny, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(tiny("llava")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="instead of a processor"):
        load_processor(tmp_path)


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/dir", Path("nowhere")])
def test_missing_directory_is_named(missing: str | Path) -> None:
    with pytest.raises(UserError, match="there is no directory"):
        load_processor(missing)
