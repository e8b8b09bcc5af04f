"""Prompts of a refresh that worker processes encode while the model samples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy.scripted_sampling import SAMPLING, Scripted

from cwdpo.data.collate import RowDataset
from cwdpo.data.encode import EncodedMemory, Encoder
from cwdpo.data.rows import Row
from cwdpo.models.loading import load_processor
from cwdpo.on_policy.refresh import encoded_ahead
from cwdpo.reference import FrozenCopy

Make = Callable[..., Any]


def test_workers_give_what_the_encoder_gives(tiny: Callable[[str], Path], sixteen_rows: list[Row]) -> None:
    encoder = Encoder(load_processor(tiny("llava")))
    damaged = replace(sixteen_rows[1], images=(Path("nowhere.png"),))
    rows = RowDataset([sixteen_rows[0], damaged, sixteen_rows[2], replace(sixteen_rows[3], images=())])
    portions = [(2, 0), (1,), (3,)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = list(encoded_ahead(encoder, rows, portions, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(encoded_ahead(encoder, rows, portions, workers=0)) == [[], [], []]
    (two, none, zero), expected = found, [encoder.encode_prompt(rows[i][1]) for i in portions[0]]
    assert none == zero == []
    assert [place for place, _ in two] == [0, 1]
    for (_, (frame, tensors)), (own_frame, own) in zip(two, expected, strict=True):
        assert frame == own_frame
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[name], own[name]) for name in own)


@pytest.mark.slow
def test_a_refresh_is_the_same_and_opens_no_image_itself(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, found = [], []
    encode_prompt = Encoder.encode_prompt

    def counted(self: Encoder, row: Row) -> Any:
        opened.extend(row.images)
        return encode_prompt(self, row)

    for workers in (0, 2):
        trainer = make_trainer(2, on_policy=dict(SAMPLING), out=str(workers), dataloader_num_workers=workers)
        trainer.on_policy._refresher.reference = FrozenCopy(trainer.model, trainer.engine)
        monkeypatch.setattr(Encoder, "encode_prompt", counted)
        opened.clear()
        sampler = Scripted(lambda row, call: ["a green ring", f"two discs of row {row.source[-1]}"])
        candidates, failures = trainer.on_policy._refresher.run(1, share=1.0, sampler=sampler)
        monkeypatch.undo()
        found.append([(one.row, one.text, one.key, one.ids, one.reference_logprob) for one in candidates])
        assert not failures
        assert bool(opened) == (workers == 0)
    assert found[0] == found[1] != []


def test_what_was_encoded_for_training_is_not_encoded_again(
    tiny: Callable[[str], Path], sixteen_rows: list[Row]
) -> None:
    encoder = Encoder(load_processor(tiny("llava")), memory=EncodedMemory())
    rows = RowDataset(sixteen_rows[:2])
    before = encoder.encode(sixteen_rows[0]).prompt
    with encoder.remembering():
        assert encoder.encode(sixteen_rows[0]).prompt is before
    (known,) = encoded_ahead(encoder, rows, [(0, 1)], workers=1)
    assert [place for place, _ in known] == [1]
