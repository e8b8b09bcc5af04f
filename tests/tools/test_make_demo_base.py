"""The shipped base model loads as any checkpoint does, and is as good (and as bad) as its note says."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.demo.plans import base_checkpoint
from cwdpo.demo.world import (
    PROMPT,
    draw_scene,
    grammar_words,
    off_topic_sentence,
    sample_scene,
    sample_style,
    write_caption,
)
from tools.make_demo_base import PretrainSettings, build_processor, main, measure


@pytest.mark.slow
def test_exactness_is_what_the_note_says() -> None:
    model = AutoModelForImageTextToText.from_pretrained(base_checkpoint(), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(base_checkpoint())
    note = json.loads((base_checkpoint() / "made.json").read_text())
    fresh = measure(model, processor, scenes=200, seed=123)
    for name in ("exact_greedy", "exact_sampled"):
        assert 0.4 < note[name] < 0.65
        assert fresh[name] == pytest.approx(note[name], abs=0.12)  # 3.4 standard errors


def test_the_checkpoint_is_small_and_whole() -> None:
    files = {path.name: path.stat().st_size for path in base_checkpoint().iterdir()}
    assert files["model.safetensors"] <= 1_200_000
    assert {"config.json", "generation_config.json", "tokenizer.json", "processor_config.json", "made.json"} <= set(
        files
    )
    assert {"chat_template.jinja", "tokenizer_config.json"} <= set(files)


def test_shipped_processor_is_what_the_code_builds() -> None:
    shipped, built = AutoProcessor.from_pretrained(base_checkpoint()), build_processor()
    assert shipped.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert shipped.chat_template == built.chat_template
    image = draw_scene(sample_scene(np.random.default_rng(0)), np.random.default_rng(0))
    pixels = [p.image_processor(image, return_tensors="pt")["pixel_values"] for p in (shipped, built)]
    assert torch.equal(*pixels)


def test_every_text_of_the_world_survives_the_tokenizer() -> None:
    encoder, tokenizer = Encoder(build_processor()), build_processor().tokenizer
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    image = draw_scene(scene, rng)
    row = Row(prompt=(Message("user", (ImageSlot(), PROMPT)),), chosen="", images=(image,), source="here")
    texts = [off_topic_sentence(rng) for _ in range(100)] + [" ".join(grammar_words())]
    texts += [write_caption(s, sample_style(s, rng)) for s in (sample_scene(rng) for _ in range(50))]
    encoded = encoder.encode(row, texts)
    assert encoded.image_tokens == 16
    for text, ids in zip(texts, encoded.answers, strict=True):
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(text.split()) + 1


@pytest.mark.slow
def test_pretraining_follows_from_its_seed(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--steps", "2", "--scenes", "16", "--batch-size", "4", "--measured-scenes", "2"]
    for name in ("a", "b"):
        main([str(tmp_path / name), *short])
    main([str(tmp_path / "c"), *short, "--seed", "8"])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c")]
    assert weights[0] == weights[1] != weights[2]
    note = json.loads((tmp_path / "a" / "made.json").read_text())
    assert note["settings"] | {"seed": 7} == note["settings"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a")])
    assert "exists already" in capsys.readouterr().err


def test_note_holds_the_default_settings() -> None:
    note = json.loads((base_checkpoint() / "made.json").read_text())
    assert PretrainSettings(**note["settings"]) == PretrainSettings()
