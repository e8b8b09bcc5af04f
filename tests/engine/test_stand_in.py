"""An image in every pass: nothing is read from it, and all weights have a gradient."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny.prompts import load_model, make_batch, make_prompt

from cwdpo.batch import Batch
from cwdpo.engine import make_engine, with_stand_in
from cwdpo.models.parts import outside_language


@pytest.fixture
def texts(tiny: Callable[[str], Path]) -> Batch:
    return make_batch([make_prompt(tiny("llava"), 0, words=3 + i, seed=i) for i in range(2)], [[4, 2], [3]])


@pytest.fixture
def stand_in(tiny: Callable[[str], Path]) -> Batch:
    return make_batch([make_prompt(tiny("llava"), 1, words=2, seed=7)], [[5, 3]])


@pytest.mark.parametrize("name", ["tree", "plain"])
def test_answers_are_the_same_and_weights_of_images_have_zeros(
    name: str, texts: Batch, stand_in: Batch, tiny: Callable[[str], Path]
) -> None:
    model = load_model(tiny("llava"))
    engine = make_engine(name)  # type: ignore[arg-type]
    alone = engine.logprobs(model, texts, want=["chosen_entropy"])
    found = with_stand_in(engine, stand_in).logprobs(model, texts, want=["chosen_entropy"])
    torch.testing.assert_close(found.token, alone.token, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy, alone.entropy, atol=1e-5, rtol=0)
    assert torch.equal(found.mask, alone.mask)
    gradients = []
    for token in (alone.token, found.token):
        model.zero_grad()
        (token * torch.linspace(1, 2, token.numel()).view_as(token)).sum().backward()
        gradients.append({key: weight.grad for key, weight in model.named_parameters()})
    images = [key for key, _ in outside_language(model)]
    with_images = [key for key in images if gradients[1][key] is not None]
    assert with_images
    for key in images:
        assert gradients[0][key] is None
    for key in with_images:
        assert not gradients[1][key].any()  # type: ignore[union-attr]
    for key, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][key], gradient, atol=1e-5, rtol=1e-4)


def test_it_stays_out_where_it_is_not_needed(texts: Batch, stand_in: Batch, tiny: Callable[[str], Path]) -> None:
    """In a batch with an image, and where nobody waits for a gradient or for weights."""
    model = load_model(tiny("llava"))
    engine = make_engine("plain")
    towers = []
    model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    with torch.no_grad():
        with_stand_in(engine, stand_in).logprobs(model, texts)
    assert not towers
    found = with_stand_in(engine, texts).logprobs(model, stand_in)
    assert torch.equal(found.token, engine.logprobs(model, stand_in).token)
    assert with_stand_in(engine, None) is engine
