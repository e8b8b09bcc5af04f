"""Images are encoded once, without gradient where nothing trains; kept features leave every number as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.naive_logprobs import gap, gradient_gap, gradients, rows_of, token_logprobs, weighted_loss
from tiny import AWKWARD_NAMES, MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import FeatureCache, make_engine
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine
from cwdpo.engine.vision import (
    FeatureStore,
    ImageFeatures,
    can_share_images,
    encode_frozen_without_grad,
    why_not_cacheable,
)
from cwdpo.memory import free_memory

Tiny = Callable[[str], Path]
EVERY = (*NAMES, *MORE_NAMES, *AWKWARD_NAMES)
SHARING = [name for name in EVERY if name != "mllama"]


def mixed_batch(directory: Path) -> Batch:
    kinds = (1, 2, 1 if directory.name == "paligemma" else 0, 1)
    prompts = [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(kinds)]
    return make_batch(prompts, [[4, 1, 7], [6, 2], [3], [2, 5, 5, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
def test_shared_images_equal_each_answer_alone(name: str, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    assert can_share_images(model)
    expected = token_logprobs(model, batch)
    found = PlainEngine(images_once=True).logprobs(model, batch)
    assert gap(found, expected) < 1e-5
    by_name = gradients(model, weighted_loss(expected))
    assert any("vis" in name for name in by_name)  # the tower trains, through all the rows that share a picture
    assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5


def test_mllama_cannot_share(tiny: Tiny) -> None:
    assert not can_share_images(load_model(tiny("mllama")))


def test_each_picture_is_encoded_once(tiny: Tiny) -> None:
    model, batch = load_model(tiny("llava")), mixed_batch(tiny("llava"))
    pictures: list[int] = []
    count = lambda module, args, kwargs: pictures.append(len((*args, *kwargs.values())[0]))  # noqa: E731
    model.get_encoder(modality="image").register_forward_pre_hook(count, with_kwargs=True)
    PlainEngine(images_once=True).logprobs(model, batch)
    PlainEngine().logprobs(model, batch)
    assert pictures == [1 + 2 + 1, 3 * 1 + 2 * 2 + 4 * 1]


def graph_in_tower(model: Any, engine: Any, batch: Batch) -> list[bool]:
    """Whether the tower's last hidden states carry a gradient in a step."""
    seen: list[bool] = []

    def look(module: Any, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(hidden.requires_grad)

    handle = model.get_encoder(modality="image").register_forward_hook(look)
    engine.logprobs(model, batch).token.sum().backward()
    handle.remove()
    return seen


@pytest.mark.parametrize("engine", [PlainEngine(), PlainEngine(images_once=True), TreeEngine()])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics3"])
def test_a_frozen_tower_keeps_no_graph(name: str, engine: Any, tiny: Tiny) -> None:
    model, batch = load_model(tiny(name)), mixed_batch(tiny(name))
    model.enable_input_require_grads()
    assert all(graph_in_tower(model, engine, batch))
    model.get_encoder(modality="image").requires_grad_(False)
    assert not any(graph_in_tower(model, engine, batch))
    assert torch.is_grad_enabled()


def test_qwen_mergers_train_on_frozen_blocks(tiny: Tiny) -> None:
    model, batch = load_model(tiny("qwen3_vl")), mixed_batch(tiny("qwen3_vl"))
    tower = model.get_encoder(modality="image")
    expected = gradients(model, weighted_loss(token_logprobs(model, batch)))
    for name, weight in tower.named_parameters():
        weight.requires_grad_("merger" in name)
    blocks: list[bool] = []
    tower.blocks[-1].register_forward_hook(lambda module, args, output: blocks.append(output.requires_grad))
    model.enable_input_require_grads()
    found = gradients(model, weighted_loss(rows_of(TreeEngine().logprobs(model, batch))))
    assert blocks == [False]
    frozen = {n for n in expected if ".visual." in n and "merger" not in n}
    assert not frozen & set(found)
    assert any("deepstack_merger" in n for n in found)
    assert gradient_gap(found, {n: v for n, v in expected.items() if n not in frozen}) < 1e-5


def test_a_tower_that_trains_in_part_is_left_alone(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    tower = model.get_encoder(modality="image").requires_grad_(False)
    next(iter(tower.parameters())).requires_grad_(True)
    assert all(graph_in_tower(model, TreeEngine(), mixed_batch(tiny("llava"))))


def test_grad_mode_survives_an_error_in_the_tower(tiny: Tiny) -> None:
    model = load_model(tiny("llava"))
    tower = model.get_encoder(modality="image").requires_grad_(False)
    with pytest.raises(AttributeError), encode_frozen_without_grad(model):
        tower(None)
    assert torch.is_grad_enabled()


EXACT = [name for name in (*NAMES, *MORE_NAMES, "smolvlm") if name != "mllama"]


def frozen(model: Any) -> Any:
    """Only the language model trains."""
    model.requires_grad_(False)
    for part in (model.get_decoder(), model.get_output_embeddings()):
        part.requires_grad_(True)
    return model


def count_encodings(model: Any) -> list[int]:
    calls: list[int] = []
    model.get_encoder(modality="image").register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tree", "images_once"])
@pytest.mark.parametrize("name", EXACT)
def test_same_numbers_and_gradients(name: str, kind: str, tiny: Tiny) -> None:
    model, batch = frozen(load_model(tiny(name))), mixed_batch(tiny(name))
    cache = FeatureCache()
    engine: Any = TreeEngine(features=cache) if kind == "tree" else PlainEngine(images_once=True, features=cache)
    expected = token_logprobs(model, batch)
    by_name = gradients(model, weighted_loss(expected))
    calls = count_encodings(model)
    for _ in range(2):  # encoded, then found
        found = engine.logprobs(model, batch)
        assert gap(found, expected) < 1e-5
        assert gradient_gap(gradients(model, weighted_loss(rows_of(found))), by_name) < 1e-5
    pictured = sum("pixel_values" in prompt for prompt in batch["prompts"])
    assert len(calls) == cache.report["computed"] == cache.report["found"] == pictured


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision", "idefics3"])
def test_the_last_bit_does_not_depend_on_what_was_met_before(name: str, tiny: Tiny) -> None:
    model, batch = frozen(load_model(tiny(name))), mixed_batch(tiny(name))
    fresh, used = TreeEngine(features=FeatureCache()), TreeEngine(features=FeatureCache())
    with torch.no_grad():
        for prompt in batch["prompts"]:
            used.logprobs(model, make_batch([prompt], [[2]]))
        assert torch.equal(fresh.logprobs(model, batch).token, used.logprobs(model, batch).token)


def test_lora_on_the_language_model_keeps_features_under_checkpointing(tiny: Tiny) -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    model: Any = get_peft_model(load_model(tiny("qwen3_vl")), config)
    batch = mixed_batch(tiny("qwen3_vl"))
    expected = gradients(model.eval(), weighted_loss(token_logprobs(model, batch)))
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    engine = TreeEngine(features=FeatureCache())
    calls = count_encodings(model.base_model.model)
    for _ in range(2):
        found = gradients(model, weighted_loss(rows_of(engine.logprobs(model, batch))))
        assert gradient_gap(found, expected) < 1e-5
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("name", "trains"),
    [
        ("llava", "multi_modal_projector"),
        ("llava", "vision_tower"),
        ("llava_onevision", "image_newline"),
        ("qwen2_5_vl", "visual.merger"),
        ("qwen3_vl", "deepstack_merger_list"),
    ],
)
def test_what_trains_is_never_kept(name: str, trains: str, tiny: Tiny) -> None:
    model, batch = frozen(load_model(tiny(name))), mixed_batch(tiny(name))
    next(weight for full, weight in model.named_parameters() if trains in full).requires_grad_(True)
    cache = FeatureCache()
    engine = make_engine("auto", features=cache)
    for _ in range(2):
        engine.logprobs(model, batch)
    assert cache.report["computed"] == cache.report["found"] == 0
    (reason,) = engine.report["features"]["not_used"].values()
    assert trains in reason
    assert reason.endswith(" trains")


def test_adapters_in_the_tower_are_noticed(tiny: Tiny) -> None:
    model: Any = get_peft_model(load_model(tiny("llava")), LoraConfig(target_modules="all-linear"))
    assert "lora" in str(why_not_cacheable(model.base_model.model))


def test_a_frozen_tower_drops_nothing_so_its_features_are_kept(tiny: Tiny) -> None:
    model, batch = frozen(load_model(tiny("llava"))), mixed_batch(tiny("llava"))
    expected = token_logprobs(model, batch)
    attentions = [module for module in model.model.vision_tower.modules() if hasattr(module, "dropout")]
    assert attentions
    for module in attentions:
        module.dropout = 0.5
    assert why_not_cacheable(model) is None
    cache = FeatureCache()
    engine = TreeEngine(features=cache)
    model.train()
    for _ in range(2):
        assert gap(engine.logprobs(model, batch), expected) < 1e-5
    assert (cache.report["computed"], cache.report["found"]) == (3, 3)


def test_another_tower_gets_features_of_its_own(tiny: Tiny) -> None:
    batch, cache = mixed_batch(tiny("llava")), FeatureCache()
    engine = TreeEngine(features=cache)
    one, other = (frozen(load_model(tiny("llava"))) for _ in range(2))
    with torch.no_grad():
        other.model.multi_modal_projector.linear_2.weight[0, 0] += 1.0
        for model in (one, other):
            assert gap(engine.logprobs(model, batch), token_logprobs(model, batch)) < 1e-5
        twin = frozen(load_model(tiny("llava")))
        engine.logprobs(twin, batch)
    assert (cache.report["computed"], cache.report["found"]) == (6, 3)


def test_a_tower_that_trained_in_between_is_another(tiny: Tiny) -> None:
    batch, cache = mixed_batch(tiny("llava")), FeatureCache()
    engine, model = TreeEngine(features=cache), frozen(load_model(tiny("llava")))
    with torch.no_grad():
        for _ in range(2):
            for _ in range(2):
                assert gap(engine.logprobs(model, batch), token_logprobs(model, batch)) < 1e-5
            model.model.multi_modal_projector.linear_2.weight[0, 0] += 1.0
    assert (cache.report["computed"], cache.report["found"]) == (6, 6)


def test_features_that_are_wrong_are_given_up(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model, batch = frozen(load_model(tiny("llava"))), mixed_batch(tiny("llava"))
    put = FeatureStore.put
    monkeypatch.setattr(FeatureStore, "put", lambda self, key, f: put(self, key, ImageFeatures(f.pooled * 1.5)))
    engine = make_engine("auto", features=FeatureCache())
    with torch.no_grad():
        assert gap(engine.logprobs(model, batch), token_logprobs(model, batch)) < 1e-5
    assert engine.report["choices"][0]["engine"] == "tree"
    assert "log-probs" in engine.report["features"]["off"]
    assert "not kept" in caplog.text


def features(value: float, *, tokens: int = 64) -> ImageFeatures:
    return ImageFeatures(torch.full((tokens, 4), value), (torch.full((tokens, 4), -value),), True, (True,))


def test_what_comes_first_stays() -> None:
    store = FeatureStore(memory=3 * features(0).num_bytes, directory=None, disk=0)
    store.put("large", features(9, tokens=64 * 4))
    for value in range(5):
        store.put(str(value), features(value))
    held = [key for key in ("large", *"01234") if store.get(key) is not None]
    assert held == ["0", "1", "2"]


def visit(cache: FeatureCache, model: Any, images: int, epochs: int) -> list[float]:
    """The hit rate of each epoch over that many images in random order."""
    rates = []
    for epoch in range(epochs):
        before = dict(cache.report)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch)).tolist()
        for image in order:
            look_up = cache.lookup_prompts(model, [{}], torch.device("cpu"), [f"image {image}"])
            assert look_up is not None
            (found,) = look_up([0], lambda _, image=image: features(image))  # type: ignore[misc]
            assert found.pooled[0, 0] == image
        rates.append((cache.report["found"] - before["found"]) / images)
    return rates


@pytest.mark.slow
def test_a_fifth_of_the_images_in_memory_gives_a_fifth_of_the_hits(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = frozen(load_model(tiny("llava")))
    monkeypatch.setattr("cwdpo.engine.vision.free_memory", lambda: 4 * 200 * features(0).num_bytes)
    cache = FeatureCache(images=1000)
    with caplog.at_level("INFO"):
        assert visit(cache, model, 1000, 4) == [0.0, 0.2, 0.2, 0.2]
        cache.log_reached()
    assert cache.report["expected_hit_rate"] == cache.report["hit_rate"] == 0.2
    assert "keep 20 % of 1000 images" in caplog.text
    assert "20 % of the images met before were found (20 % were expected)" in caplog.text


def test_files_keep_what_memory_does_not_hold(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = frozen(load_model(tiny("llava")))
    cache = FeatureCache(memory_mb=0, directory=tmp_path / "features", disk_mb="auto", images=40)
    assert visit(cache, model, 40, 3) == [0.0, 1.0, 1.0]
    assert cache.report["expected_hit_rate"] == cache.report["hit_rate"] == 1.0
    later = FeatureCache(memory_mb=0, directory=tmp_path / "features", disk_mb="auto", images=40)
    assert visit(later, model, 40, 1) == [1.0]
    needed = 40 * (features(0).num_bytes + 4096)
    for free, expected in ((4 * needed, 1.0), (4 * needed - 4, 0.0)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("cwdpo.engine.vision.shutil.disk_usage", lambda path, usage=usage: usage)
        full = FeatureCache(memory_mb=0, directory=tmp_path / str(free), disk_mb="auto", images=40)
        assert visit(full, model, 40, 2)[1] == expected


def test_a_quarter_of_the_free_memory_is_taken_by_all_processes_together(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = frozen(load_model(tiny("llava")))
    monkeypatch.setattr("cwdpo.engine.vision.free_memory", lambda: 80 * 2**20)
    for processes, expected in ((None, 20), ("4", 5)):
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        cache = FeatureCache(images=3)
        visit(cache, model, 3, 1)
        assert cache.report["memory_mb"] == expected


def test_a_container_may_have_less_memory_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "5000\n", "memory.current": "2000\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, **_: files[self.name])
    assert free_memory() == 3000
    files["memory.max"] = "max\n"
    assert free_memory() > 2**20


def test_what_a_gpu_takes_is_page_locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    locked: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: locked.append(self.shape) or self)
    for pin in (False, True):
        store = FeatureStore(memory=10 * features(0).num_bytes, directory=tmp_path, disk=10 * features(0).num_bytes)
        store.pin = pin
        store.put(str(pin), features(0))
        assert len(locked) == 2 * pin
    assert store.get("False") is not None  # from its file
    assert store.get("False") is not None
    assert len(locked) == 4


def test_files_serve_a_later_run_within_their_bound(tmp_path: Path) -> None:
    size = features(0).num_bytes
    store = FeatureStore(memory=0, directory=tmp_path, disk=int(2.7 * size))
    for value in range(3):
        store.put(f"tower/{value}", features(value))
    later = FeatureStore(memory=size, directory=tmp_path, disk=int(2.7 * size))
    found = [later.get(f"tower/{value}") for value in range(3)]
    assert found[2] is None  # there was no room
    for value in range(2):
        kept = found[value]
        assert kept is not None
        assert kept.stacked
        assert kept.listed == (True,)
        assert torch.equal(kept.pooled, features(value).pooled)
        assert torch.equal(kept.deep[0], features(value).deep[0])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_computed_again(damage: str, tmp_path: Path, caplog: Any) -> None:
    FeatureStore(memory=0, directory=tmp_path, disk=2**20).put("tower/0", features(1))
    (path,) = tmp_path.glob("*/*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content[:-100] if damage == "cut" else content)
    assert FeatureStore(memory=0, directory=tmp_path, disk=2**20).get("tower/0") is None
    assert "damaged" in caplog.text
    assert not path.exists()


def test_a_full_disk_stops_the_writing_only(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "tower").write_text("a file where a directory should be")
    store = FeatureStore(memory=2**20, directory=tmp_path, disk=2**20)
    store.put("tower/0", features(1))
    assert store.get("tower/0") is not None
    assert "no longer written" in caplog.text


def test_a_resumed_run_finds_its_features_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    model, batch = frozen(load_model(tiny("qwen3_vl"))), mixed_batch(tiny("qwen3_vl"))
    with torch.no_grad():
        first = TreeEngine(features=FeatureCache(directory=tmp_path, disk_mb=10)).logprobs(model, batch)
        cache = FeatureCache(directory=tmp_path, disk_mb=10)
        again = TreeEngine(features=cache).logprobs(frozen(load_model(tiny("qwen3_vl"))), batch)
    assert torch.equal(first.token, again.token)
    assert (cache.report["computed"], cache.report["found"]) == (0, 3)
