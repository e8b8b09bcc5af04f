"""The model, the rows and the processor are what the sizes and the settings say."""

import pytest
from bench.steps import TINY
from PIL import Image

from cwdpo.batch import Role
from cwdpo.bench.contestants import SETTINGS, SIZES, build_processor, make_rows
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.encode import Encoder


@pytest.mark.parametrize("name", ["ii", "i256"])
def test_rows_have_the_settings_lengths(name: str) -> None:
    setting, size = SETTINGS[name], SIZES["small"]
    processor = build_processor(size.vision)
    rows = make_rows(setting, size.vision)
    assert isinstance(rows[0]["images"][0], Image.Image)
    collator = AnswerCollator(Encoder(processor), roles=(Role.CHOSEN, Role.REJECTED))
    dataset = RowDataset(rows)
    batch = collator([dataset[i] for i in range(len(dataset))])
    assert [prompt["input_ids"].shape[1] for prompt in batch["prompts"]] == [setting.image_tokens + 32] * 2
    assert int((batch["prompts"][0]["input_ids"] == processor.image_token_id).sum()) == setting.image_tokens
    lengths = batch["answer_mask"].sum(dim=1)
    assert lengths.shape == (4,)
    assert setting.shortest <= int(lengths.min()) <= int(lengths.max()) <= setting.longest
    assert int(batch["answer_ids"].max()) < TINY.vocabulary
