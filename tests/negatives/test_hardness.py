"""CHES by arithmetic on lists, and on a model by a forward pass of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.negatives.hardness import ches, length_normalised_ches, measure_hardness


def by_hand(chosen: list[list[float]], rejected: list[list[float]], normalise: bool) -> float:
    def total(states: list[list[float]]) -> list[float]:
        share = len(states) if normalise else 1
        return [sum(column) / share for column in zip(*states, strict=True)]

    w, loser = total(chosen), total(rejected)
    return sum(a * b for a, b in zip(w, loser, strict=True)) - sum(a * a for a in w)


CHOSEN, REJECTED = [[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], [[2.0, 1.0], [-1.0, 4.0]]


def test_ches() -> None:
    pair = torch.tensor(CHOSEN), torch.tensor(REJECTED)
    assert ches(*pair).item() == pytest.approx(by_hand(CHOSEN, REJECTED, False))
    assert length_normalised_ches(*pair).item() == pytest.approx(by_hand(CHOSEN, REJECTED, True))
    assert ches(pair[0], pair[0]).item() == pytest.approx(0)
    with pytest.raises(ValueError, match="one pair at a time"):
        ches(pair[0][None], pair[1][None])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_models_hardness_is_that_of_rows_alone(tiny: Callable[[str], Path], name: str) -> None:
    model, processor = load_policy(tiny(name), dtype="float32"), load_processor(tiny(name))
    image = Image.new("RGB", (32, 32), "red")
    first = Row(
        prompt=(Message("user", (ImageSlot(), "what is it")),),
        chosen="a red disc",
        rejected=("a blue disc", "no"),
        images=(image,),
    )
    second = Row(prompt=(Message("user", ("and this one here",)),), chosen="nothing at all", rejected=("a red disc",))
    found = measure_hardness(model, processor, [first, second])
    assert [len(of_row) for of_row in found] == [2, 1]
    for row, of_row in zip((first, second), found, strict=True):
        for text, hardness in zip(row.rejected, of_row, strict=True):
            encoded = Encoder(processor).encode(replace(row), [row.chosen, text])
            states, means = [], []
            for ids in encoded.answers:
                tokens = torch.tensor([ids])
                inputs = {k: v for k, v in encoded.prompt.items() if v.shape[:2] != encoded.prompt["input_ids"].shape}
                inputs["input_ids"] = torch.cat([encoded.prompt["input_ids"], tokens], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                for key, value in encoded.prompt.items():
                    if key not in inputs:
                        inputs[key] = torch.cat([value, value[:, -1:].expand(-1, len(ids))], dim=1)
                with torch.no_grad():
                    output = model.eval()(**inputs, output_hidden_states=True)
                states.append(output.hidden_states[-1][0, -len(ids) - 1 : -1].tolist())
                logprobs = output.logits[0, -len(ids) - 1 : -1].log_softmax(-1)
                means.append(sum(logprobs[i, token].item() for i, token in enumerate(ids)) / len(ids))
            assert hardness.lbar == pytest.approx(means[1], abs=1e-4)
            assert hardness.ches == pytest.approx(by_hand(states[0], states[1], True), rel=1e-3, abs=1e-3)
