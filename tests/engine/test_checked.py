"""`auto` takes the fastest engine that is exact, says why, and never trains on wrong log-probs."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.naive_logprobs import gap, token_logprobs
from tiny import MORE_NAMES, NAMES
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import FeatureCache, make_engine, separate_engine
from cwdpo.engine import checked as choice
from cwdpo.engine.checked import check_engine, make_probe
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeEngine
from cwdpo.errors import ConfigError

Tiny = Callable[[str], Path]
EXPECTED = {name: "tree" for name in (*NAMES, *MORE_NAMES, "smolvlm")}
EXPECTED |= {"qwen3_5": "images_once", "lfm2_vl": "images_once"}


def image_batch(directory: Path) -> Batch:
    return make_batch([make_prompt(directory, 2), make_prompt(directory, 1, words=5)], [[6, 3], [1, 4, 4]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXPECTED)
def test_chooses_the_fastest_exact_engine(
    name: str, dtype: torch.dtype, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch, engine = load_model(tiny(name), dtype=dtype), image_batch(tiny(name)), make_engine("auto")
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="cwdpo"):
        found = engine.logprobs(model, batch)
        assert gap(found, token_logprobs(model, batch)) < (1e-5 if dtype == torch.float32 else 0.5)
    (made,) = json.loads(json.dumps(engine.report))["choices"]
    assert made["engine"] == EXPECTED[name]
    assert made["checks"][EXPECTED[name]]["leak"] == 0.0
    (record,) = (record for record in caplog.records if record.name.startswith("cwdpo"))
    assert record.levelname == ("INFO" if EXPECTED[name] == "tree" else "WARNING")
    if EXPECTED[name] != "tree":
        assert made["checks"]["tree"]["leak"] > 0.1
        assert "answers see what they must not" in record.getMessage()


def test_mllama_without_a_tree_falls_back_to_plain(tiny: Tiny) -> None:
    model, batch, engine = load_model(tiny("mllama")), image_batch(tiny("mllama")), make_engine("auto")
    model.config.text_config._attn_implementation = "paged|sdpa"
    engine._engines["plain"] = engine._engines["images_once"] = Fake(lambda token: token)  # type: ignore[attr-defined]
    engine.logprobs(model, batch)
    made = engine.report["choices"][0]
    assert made["engine"] == "plain"
    assert "takes no tree mask" in made["checks"]["tree"]["reason"]
    assert "no image features" in made["checks"]["images_once"]["reason"]


class Fake:
    """Log-probs that are a function of the token ids."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], precision: torch.dtype = torch.float32) -> None:
        self.change, self.precision = change, precision

    def logprobs(self, model: Any, batch: Batch, **_: Any) -> Any:
        ids = batch["answer_ids"].float()
        token = self.change(-ids / 100)
        return choice.AnswerLogprobs(token=token, mask=batch["answer_mask"], precision=self.precision)


def test_checked_once_a_kind_and_again_with_the_first_images(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine, seen = load_model(tiny("llava")), make_engine("auto"), []

    def check(*args: Any, **options: Any) -> Any:
        seen.append(args)
        return check_engine(*args, **options)

    monkeypatch.setattr(choice, "check_engine", check)
    text = make_batch([make_prompt(tiny("llava"), 0)], [[3, 2]])
    with torch.no_grad():
        for batch in (text, text, image_batch(tiny("llava")), text, image_batch(tiny("llava"))):
            engine.logprobs(model, batch)
    assert len(seen) == len(engine.report["choices"]) == 2


def test_what_one_engine_has_checked_another_takes_over(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its choice for the same kind of model and no other, and that kept features are wrong."""
    model, batch = load_model(tiny("llava")), image_batch(tiny("llava"))
    text = make_batch([make_prompt(tiny("llava"), 0)], [[3, 2]])
    first = make_engine("auto", features=FeatureCache(memory_mb=10))
    second = separate_engine(first, "auto", budget=None)
    with torch.no_grad():
        first.logprobs(model, batch)
        first.report["choices"][0]["engine"] = "images_once"  # so that it can be recognised
        first.features.refuse("wrong")  # type: ignore[attr-defined]
        monkeypatch.setattr(choice, "check_engine", None)
        found = second.logprobs(model, batch)
        assert gap(found, token_logprobs(model, batch)) < 1e-5
        assert (second.report["choices"], second.report["features"]["off"]) == ([], "wrong")
        assert second._chosen == {choice._kind(model, batch): "images_once"}  # type: ignore[attr-defined]
        monkeypatch.undo()
        second.logprobs(model, text)
        second.logprobs(model.to(torch.bfloat16), batch)
    assert [made["images"] for made in second.report["choices"]] == [False, True]
    assert len(first.report["choices"]) == 1


@pytest.mark.parametrize(("precision", "ok"), [(torch.float32, False), (torch.bfloat16, True)])
def test_rounding_is_forgiven_where_it_is_at_work(precision: torch.dtype, ok: bool, tiny: Tiny) -> None:
    batch = image_batch(tiny("llava"))
    off = Fake(lambda token: token + 0.004, precision)  # as bf16 rounds, and four times what float32 may
    with torch.no_grad():
        check = check_engine(off, load_model(tiny("llava")), batch, Fake(lambda token: token, precision))
    assert (check.ok, check.leak) == (ok, 0.0)
    assert check.gap == pytest.approx(0.004, rel=1e-3)


def test_tree_for_a_hybrid_is_an_error(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"does not work for Lfm2VlForConditionalGeneration \(.*engine: auto"):
        make_engine("tree").logprobs(load_model(tiny("lfm2_vl")), image_batch(tiny("lfm2_vl")))


def test_flash_attention_falls_back_with_advice(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    model, batch, engine = load_model(tiny("llava")), image_batch(tiny("llava")), make_engine("auto")
    monkey = model.config.text_config
    monkey._attn_implementation = "flash_attention_2"
    own = model.get_decoder().forward

    def with_sdpa(*args: Any, **kwargs: Any) -> Any:  # flash-attn itself is not needed to see the choice
        monkey._attn_implementation = "sdpa"
        try:
            return own(*args, **kwargs)
        finally:
            monkey._attn_implementation = "flash_attention_2"

    model.get_decoder().forward = with_sdpa
    with torch.no_grad():
        engine.logprobs(model, batch)
    assert engine.report["choices"][0]["engine"] == "images_once"
    assert "attn_implementation: sdpa" in caplog.text


def test_out_of_memory_is_no_reason_to_fall_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(choice, "check_engine", full)
    with pytest.raises(torch.OutOfMemoryError):
        make_engine("auto").logprobs(load_model(tiny("llava")), image_batch(tiny("llava")))


def test_rows_in_which_answers_see_their_future_are_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwdpo.engine.forward._ANSWER_TYPE", {})
    with pytest.raises(RuntimeError, match="token types of their own"):
        make_engine("auto").logprobs(load_model(tiny("paligemma")), image_batch(tiny("paligemma")))


def test_wrong_positions_are_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load_model(tiny("qwen2_vl")), image_batch(tiny("qwen2_vl"))
    assert check_engine(TreeEngine(), model, batch, PlainEngine()).ok
    monkeypatch.setattr("cwdpo.engine.tree._restart_positions", count_only)
    found = check_engine(TreeEngine(), model, batch, PlainEngine())
    assert (found.ok, found.leak) == (False, 0.0)
    assert "differ from plain rows" in found.reason


def count_only(module: Any, args: Any, kwargs: Any) -> None:
    from cwdpo.engine import tree as tree_attention

    tree_attention._current.get().positions += 1  # type: ignore[union-attr]


@pytest.mark.parametrize("lengths", [[[1]], [[1, 1]], [[2, 40]], [[30, 3, 5]]])
def test_probe_changes_only_what_it_says(lengths: list[list[int]], tiny: Tiny) -> None:
    prompts = [make_prompt(tiny("llava"), 0), make_prompt(tiny("llava"), 1)]
    before, after, blind = make_probe(make_batch(prompts, [[2], *lengths]))
    assert before["prompts"] == [prompts[1]]  # the one with an image
    differs = before["answer_ids"] != after["answer_ids"]
    assert differs[0].any()
    assert not (differs & blind).any()
    assert blind[1:].equal(before["answer_mask"][1:])
    assert blind[0].any()
    assert 4 <= before["answer_mask"].sum(dim=1).min() <= before["answer_mask"].sum(dim=1).max() <= 16


def test_check_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    model = load_model(tiny("llava")).train()
    tower = model.get_encoder(modality="image").eval()
    state = torch.random.get_rng_state()
    make_engine("auto").logprobs(model, image_batch(tiny("llava")))
    assert model.training
    assert not tower.training
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
