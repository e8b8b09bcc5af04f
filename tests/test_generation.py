"""Generation on every tested class: what must not matter does not, and nothing is left behind."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import cwdpo.generation
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.decoding import decode
from cwdpo.generation import generate_answers
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy, load_processor

CLASSES = ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3"]


def row(text: str, *colours: str) -> Row:
    images = tuple(Image.new("RGB", (32, 32), colour) for colour in colours)
    return Row(prompt=(Message("user", (*(ImageSlot() for _ in images), text)),), chosen="yes", images=images)


ROWS = [row("what is it", "red"), row("say something long about nothing"), row("and what is this thing here", "blue")]


@pytest.fixture
def llava(tiny: Callable[[str], Path]) -> tuple[Any, Any]:
    path = tiny("llava")
    return load_policy(path, dtype="float32"), load_processor(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_batching_does_not_change_greedy_answers(tiny: Callable[[str], Path], name: str) -> None:
    model, processor = load_policy(tiny(name), dtype="float32"), load_processor(tiny(name))
    rows = [ROWS[0], ROWS[2], row("what", "green")]
    together = generate_answers(model, processor, rows, max_new_tokens=6)
    alone = generate_answers(model, processor, rows, max_new_tokens=6, batch_size=1)
    assert together == alone
    assert all(together)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_rows_with_and_without_images_mix(tiny: Callable[[str], Path], name: str) -> None:
    model, processor = load_policy(tiny(name), dtype="float32"), load_processor(tiny(name))
    alone = [generate_answers(model, processor, [one], max_new_tokens=6)[0] for one in ROWS]
    assert generate_answers(model, processor, ROWS, max_new_tokens=6) == alone


def test_prompts_that_cannot_share_a_pass_are_answered_apart(tiny: Callable[[str], Path]) -> None:
    """Mllama attends to all images of its row, so that prompts with 0, 1 and 2 of them stand in passes of their own."""
    model, processor = load_policy(tiny("mllama"), dtype="float32"), load_processor(tiny("mllama"))
    rows = [row("what"), row("what is it", "red"), row("and this thing"), row("which", "red", "blue"), ROWS[2]]
    alone = [generate_answers(model, processor, [one], max_new_tokens=6)[0] for one in rows]
    assert len(set(alone)) > 2
    assert generate_answers(model, processor, rows, max_new_tokens=6) == alone
    drawn = generate_answers(model, processor, rows, max_new_tokens=6, temperature=1.0, seed=3)
    assert generate_answers(model, processor, rows, max_new_tokens=6, temperature=1.0, seed=3) == drawn


def test_an_answer_has_the_think_block_that_its_prompt_began(llava: tuple[Any, Any]) -> None:
    model, processor = llava[0], copy.deepcopy(llava[1])
    processor.chat_template = processor.chat_template.replace("ASSISTANT:", "ASSISTANT:<think>\n")
    thinking = replace(ROWS[0], chosen="<think>Hm.</think>Red.")
    found = generate_answers(model, processor, [thinking, ROWS[0]], max_new_tokens=4, warn_of_cut=False)
    assert [text.startswith("<think>\n") for text in found] == [True, False]


@pytest.mark.parametrize("name", CLASSES)
def test_special_tokens_are_never_sampled(
    tiny: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_policy(tiny(name), dtype="float32"), load_processor(tiny(name))
    drawn: list[int] = []

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        ids = decode(*args, **kwargs)
        drawn.extend(ids.flatten().tolist())
        return ids

    monkeypatch.setattr(cwdpo.generation, "decode", spy)
    generate_answers(model, processor, ROWS[:1] * 64, max_new_tokens=20, temperature=1e4)  # as good as uniform
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, *(own if isinstance(own, list) else [own])}
    assert len(set(drawn)) > 40
    assert set(drawn) & special <= ends


def test_samples_follow_from_the_seed_alone(llava: tuple[Any, Any]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate_answers(*llava, ROWS, max_new_tokens=8, temperature=1.0, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert generate_answers(*llava, ROWS, max_new_tokens=8, temperature=1.0, seed=5) == first
    assert generate_answers(*llava, ROWS, max_new_tokens=8, temperature=1.0, seed=6) != first


def test_a_tiny_nucleus_is_greedy(llava: tuple[Any, Any]) -> None:
    greedy = generate_answers(*llava, ROWS, max_new_tokens=8)
    assert generate_answers(*llava, ROWS, max_new_tokens=8, temperature=1.0, top_p=1e-6) == greedy


MEDDLING: dict[str, Any] = {
    "repetition_penalty": 0.01,
    "no_repeat_ngram_size": 1,
    "min_p": 0.9,
    "top_h": 0.1,
    "top_k": 2,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.9,
    "min_new_tokens": 7,
    "bad_words_ids": [[n] for n in range(20, 60)],
    "begin_suppress_tokens": list(range(60, 260)),
    "sequence_bias": [[[n], 50.0] for n in range(100, 103)],
    "exponential_decay_length_penalty": (1, 3.0),
    "num_return_sequences": 2,
}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("setting", [*MEDDLING, "all"])
def test_samples_are_the_models_own_whatever_its_generation_config_says(
    llava: tuple[Any, Any], setting: str, lora: bool
) -> None:
    model, processor = llava
    model = add_lora(model, r=4, alpha=8) if lora else model
    plain = generate_answers(model, processor, ROWS, max_new_tokens=8, temperature=1.0, seed=5)
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=True, **(MEDDLING if setting == "all" else {setting: MEDDLING[setting]}))
    owners = [module for module in model.modules() if hasattr(module, "generation_config")]
    for module in owners:
        module.generation_config = config
    before = config.to_dict()
    assert generate_answers(model, processor, ROWS, max_new_tokens=8, temperature=1.0, seed=5) == plain
    assert all(module.generation_config is config for module in owners)
    assert config.to_dict() == before


def test_greedy_answers_keep_the_checkpoints_penalty(llava: tuple[Any, Any]) -> None:
    plain = generate_answers(*llava, ROWS, max_new_tokens=8)
    llava[0].generation_config.repetition_penalty = 5.0
    assert generate_answers(*llava, ROWS, max_new_tokens=8) != plain


def test_model_and_processor_are_left_as_they_were(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    model.train()
    model.model.vision_tower.eval()
    processor.tokenizer.padding_side = "right"
    before = [module.training for module in model.modules()], model.generation_config.to_dict()
    generate_answers(model, processor, ROWS, max_new_tokens=2, temperature=0.5)
    assert ([module.training for module in model.modules()], model.generation_config.to_dict()) == before
    assert processor.tokenizer.padding_side == "right"


def test_cut_answers_are_told(llava: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        generate_answers(*llava, ROWS, max_new_tokens=1)
    assert "3 of 3 answers were cut at max_new_tokens=1" in caplog.text


def test_no_rows_no_answers(llava: tuple[Any, Any]) -> None:
    assert generate_answers(*llava, []) == []


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"temperature": 0.0}, "write None"),
        ({"top_p": 0.9}, "needs a temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
    ],
)
def test_settings_that_cannot_be_meant(llava: tuple[Any, Any], settings: dict[str, float], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        generate_answers(*llava, ROWS, **settings)
