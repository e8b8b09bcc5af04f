"""A prompt that is read once gives each answer the tokens of plain ``generate``, on every family that has a cache."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AWKWARD_NAMES, MORE_NAMES, NAMES
from tiny.prompts import load_model, make_prompt
from torch import Tensor
from transformers import GenerationConfig

from cwdpo.decoding import decode, why_not_shared
from cwdpo.engine import FeatureCache
from cwdpo.engine.layout import prompts_alone
from cwdpo.errors import UserError
from cwdpo.memory import FittingPasses
from cwdpo.models.adapters import add_lora

Tiny = Callable[[str], Path]
OWNERS = [0, 0, 0, 1, 2, 2]
LENGTH = 10


def prompts_of(directory: Path) -> list[dict[str, Tensor]]:
    """Two images, one, and none where the family can mix them in one pass."""
    last = 1 if directory.name in ("paligemma", "mllama") else 0
    counts = (1, 1, 1) if directory.name == "mllama" else (2, 1, last)
    return [make_prompt(directory, images, words=3 + i, seed=i) for i, images in enumerate(counts)]


def config(model: Any, ends: Sequence[int] = (), **settings: Any) -> GenerationConfig:
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0} | settings
    made = GenerationConfig(eos_token_id=list(ends) or [10**6], **settings)
    model.generation_config = made  # which generate would fill in from
    return made


def plainly(model: Any, prompts: Sequence[dict[str, Tensor]], owners: Sequence[int], how: GenerationConfig) -> Tensor:
    inputs = prompts_alone([prompts[owner] for owner in owners])
    ids: Tensor = model.generate(**inputs, generation_config=how)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *MORE_NAMES, *AWKWARD_NAMES])
@torch.no_grad()
def test_every_answer_has_the_tokens_of_plain_generate(name: str, tiny: Tiny) -> None:
    model, prompts = load_model(tiny(name)), prompts_of(tiny(name))
    for settings in ({}, {"do_sample": True, "top_k": 0}):
        torch.manual_seed(3)
        endless = plainly(model, prompts, OWNERS, config(model, **settings))
        ends = [endless[1, 2].item(), endless[3, 5].item()]  # rows end at these steps, or earlier, or not at all
        how = config(model, ends, **settings)
        torch.manual_seed(3)
        expected = plainly(model, prompts, OWNERS, how)
        torch.manual_seed(3)
        passes = count_rows(model)
        found = decode(model, prompts, OWNERS, how)
        assert torch.equal(found, expected)
        ended = torch.isin(expected, torch.tensor(ends)).cumsum(dim=1) > 0
        going_on = (~ended).sum(dim=0).tolist()[: LENGTH - 1]
        assert passes == [len(prompts), *filter(None, going_on)]  # each prompt once, and no row that has ended


def count_rows(model: Any) -> list[int]:
    """The rows of each forward pass from now on."""
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "idefics3"])
@torch.no_grad()
def test_kept_features_stand_in_for_pixels(name: str, tiny: Tiny) -> None:
    model, prompts = load_model(tiny(name)), prompts_of(tiny(name))
    for part in (model.model.get_encoder(modality="image"), getattr(model.model, "multi_modal_projector", None)):
        if part is not None:
            part.requires_grad_(False)
    model.requires_grad_(False)
    expected = decode(model, prompts, OWNERS, config(model))
    features = FeatureCache()
    for computed in (2, 2):  # of the two prompts with images; the second time none
        assert torch.equal(decode(model, prompts, OWNERS, config(model), features=features), expected)
        assert features.report["computed"] == computed
    assert features.report["found"] == 2


@torch.no_grad()
def test_an_adapter_answers_too(tiny: Tiny) -> None:
    model: Any = add_lora(load_model(tiny("llava")), r=4, alpha=8).eval()
    for parameter in model.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    prompts, how = prompts_of(tiny("llava")), config(model.get_base_model())
    assert torch.equal(decode(model, prompts, OWNERS, how), plainly(model, prompts, OWNERS, how))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"use_cache": False}, "the cache none"),
        ({"cache_implementation": "static"}, "the cache static"),
        ({"encoder_repetition_penalty": 1.5}, "sets encoder_repetition_penalty"),
    ],
)
@torch.no_grad()
def test_what_cannot_share_prompts_is_decoded_plainly(
    settings: dict[str, Any], reason: str, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model, prompts = load_model(tiny("llava")), prompts_of(tiny("llava"))
    how = config(model, **settings)
    assert reason in (why_not_shared(model, how) or "")
    expected = plainly(model, prompts, OWNERS, how)
    with caplog.at_level(logging.INFO, logger="cwdpo"):
        found = decode(model, prompts, OWNERS, how)
    assert torch.equal(found, expected)
    assert caplog.text.count(reason) == 1
    passes = count_rows(model)
    decode(model, prompts, OWNERS, config(model))  # by another config the prompts are shared again
    assert passes[0] == len(prompts)


@torch.no_grad()
def test_a_model_without_a_usual_cache_is_decoded_plainly(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = load_model(tiny("llava")), prompts_of(tiny("llava"))
    monkeypatch.setattr(type(model), "_supports_default_dynamic_cache", classmethod(lambda cls: False))
    how = config(model)
    expected = plainly(model, prompts, OWNERS, how)
    with caplog.at_level(logging.INFO, logger="cwdpo"):
        for _ in range(2):
            assert torch.equal(decode(model, prompts, OWNERS, how), expected)
    assert caplog.text.count("keeps no key-value cache") == 1


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 0}])
@torch.no_grad()
def test_answers_without_room_are_decoded_in_halves(
    settings: dict[str, Any], tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model, prompts = load_model(tiny("llava")), prompts_of(tiny("llava"))
    ends = [plainly(model, prompts, OWNERS, config(model))[0, 3].item()]  # so that portions differ in length
    how = config(model, ends, **settings)
    torch.manual_seed(3)
    expected = [decode(model, prompts[:1], [0, 0, 0], how), decode(model, prompts[1:], [0, 1, 1], how)]
    model.register_forward_pre_hook(_no_room_for_more_than(3), with_kwargs=True)
    passes = FittingPasses("answers")
    with caplog.at_level(logging.WARNING, logger="cwdpo"):
        for _ in range(2):
            torch.manual_seed(3)
            found = decode(model, prompts, OWNERS, how, passes=passes)
            for ids, of_portion in zip((found[:3], found[3:]), expected, strict=True):
                length = of_portion.shape[1]
                assert torch.equal(ids[:, :length], of_portion)
                assert (ids[:, length:] == 0).all()
    assert [record.getMessage() for record in caplog.records] == ["6 answers at one time have no room: 3 from now on"]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 0}, {"num_beams": 2}])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@torch.no_grad()
def test_logits_that_are_not_numbers_are_an_error_whichever_token_they_come_at(
    settings: dict[str, Any], wrong: float, tiny: Tiny
) -> None:
    model, prompts = load_model(tiny("llava")), prompts_of(tiny("llava"))
    passes = count_rows(model)
    model.get_output_embeddings().register_forward_hook(
        lambda head, args, logits: logits.index_fill(-1, torch.tensor([7]), wrong) if len(passes) == 3 else None
    )
    with pytest.raises(UserError, match=r"not numbers \(NaN\): its weights are broken. Take another checkpoint\.$"):
        decode(model, prompts, OWNERS, config(model, **settings))


def _no_room_for_more_than(most: int) -> Callable[..., None]:
    def hook(module: object, args: object, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return hook
