"""A merged checkpoint is compared with the adapters before anybody can take it for them."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import MORE_NAMES, NAMES
from torch import Tensor

from cwdpo.errors import UserError
from cwdpo.models import merging
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.merging import answer_prompts, check_merge, merge_adapter, sample_prompts
from cwdpo.models.saving import save_checkpoint

Tiny = Callable[[str], Path]


def shake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


@pytest.fixture
def tied(tiny: Tiny, tmp_path: Path) -> Path:
    """A Qwen2-VL whose output head is its input embeddings."""
    model: Any = load_policy(tiny("qwen2_vl"))
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = True
    model.tie_weights()
    return save_checkpoint(model, load_processor(tiny("qwen2_vl")), tmp_path / "tied")


def adapters_on(base: Path, out: Path, **settings: Any) -> Path:
    """Adapters that some other program trained: nobody asked whether they can be merged."""
    adapted = peft.get_peft_model(load_policy(base), peft.LoraConfig(r=4, **settings))
    shake(adapted)
    return save_checkpoint(adapted, load_processor(base), out)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_tied_embeddings_are_not_merged(target: str, tied: Path, tmp_path: Path) -> None:
    source = adapters_on(tied, tmp_path / "adapters", target_modules=[target, "q_proj"])
    with pytest.raises(
        UserError, match=r"on 3 prompts its log-probs differ by up to [0-9.]+ nats .*They train .*share"
    ):
        merge_adapter(source, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "tied"]


@pytest.mark.slow
def test_a_trained_copy_of_tied_embeddings_is_tied_no_more(tied: Path, tmp_path: Path) -> None:
    """Programs that follow the configuration would drop the output head."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    adapted: Any = peft.get_peft_model(load_policy(tied), config)
    copy = adapted.get_input_embeddings().modules_to_save["default"]
    copy.weight.data += 0.5 * torch.randn(copy.weight.shape, generator=torch.Generator().manual_seed(1))
    source = save_checkpoint(adapted, load_processor(tied), tmp_path / "adapters")
    merged = load_policy(merge_adapter(source, tmp_path / "merged"))
    assert merged.config.tie_word_embeddings is False
    assert merged.config.get_text_config().tie_word_embeddings is False
    assert torch.equal(merged.get_input_embeddings().weight, copy.weight)
    assert torch.equal(merged.get_output_embeddings().weight, adapted.get_output_embeddings().weight)
    assert not torch.equal(merged.get_output_embeddings().weight, copy.weight)


def test_on_weights_of_its_own_an_adapted_head_merges(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cwdpo")
    source = adapters_on(tiny("qwen2_vl"), tmp_path / "adapters", target_modules=["lm_head", "embed_tokens", "q_proj"])
    assert merge_adapter(source, tmp_path / "merged").is_dir()
    assert "log-probs of 3 prompts differ by at most" in caplog.text


def test_a_language_model_under_tied_embeddings_merges(tied: Path, tmp_path: Path) -> None:
    adapted = add_lora(load_policy(tied), r=4, alpha=8)
    shake(adapted)
    source = save_checkpoint(adapted, load_processor(tied), tmp_path / "adapters")
    assert merge_adapter(source, tmp_path / "merged").is_dir()


def test_weights_alone_take_another_type(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = adapters_on(tiny("qwen2_vl"), tmp_path / "adapters", target_modules=["q_proj"])
    asked = []

    def answer(model: Any, prompts: Any) -> list[Tensor]:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        asked.append({name: tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point()})
        return answer_prompts(model, prompts)

    monkeypatch.setattr(merging, "answer_prompts", answer)
    merged = load_policy(merge_adapter(source, tmp_path / "merged", dtype="float16"))  # the base is still known

    assert merged.dtype == torch.float16
    for types in asked:
        assert {kind for name, kind in types.items() if ".lora_" not in name and "freq" not in name} == {torch.float16}
        assert {kind for name, kind in types.items() if "freq" in name} == {torch.float32}
    assert len(asked) == 3


@pytest.mark.parametrize(("dtype", "is_said"), [("bfloat16", True), ("float32", False)])
def test_a_type_coarser_than_the_adapters_is_said(tiny: Tiny, tmp_path: Path, dtype: str, is_said: bool) -> None:
    source = adapters_on(tiny("qwen2_vl"), tmp_path / "adapters", target_modules=["q_proj"])
    said: list[str] = []
    merge_adapter(source, tmp_path / "merged", dtype=dtype, say=said.append)
    why = "they are in float32, and merged weights are rounded to bfloat16; `--dtype float32` avoids that"
    assert said[0].endswith(why) is is_said


def logprobs(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row).log_softmax(dim=-1)[None] for row in rows]


def test_float32_is_held_to_its_largest_gap() -> None:
    expected = logprobs([0.0, 1.0], [2.0, 0.0])
    unadapted = logprobs([1.0, 0.0], [0.0, 2.0])
    near, far = ([expected[0] + torch.tensor([0.0, gap]), expected[1]] for gap in (0.9e-3, 1.2e-3))
    check_merge(near, expected, unadapted, dtype=torch.float32)
    with pytest.raises(
        UserError, match=r"on 2 prompts its log-probs differ by up to 0\.0012 nats \(0\.0003 in the mean\)"
    ):
        check_merge(far, expected, unadapted, dtype=torch.float32)
    with pytest.raises(UserError, match=r"Train without these layers"):
        check_merge(far, expected, unadapted, dtype=torch.float32, tied=["lm_head"])
    with pytest.raises(UserError, match="up to nan nats"):
        check_merge([expected[0] * math.nan, expected[1]], expected, unadapted, dtype=torch.float32)


def test_sixteen_bits_are_held_to_the_mean_and_to_what_was_learned(caplog: pytest.LogCaptureFixture) -> None:
    expected = logprobs([0.0, 1.0, 2.0, 3.0])
    off = [expected[0] + torch.tensor([0.3, 0.0, 0.0, 0.0])]  # 0.075 in the mean
    check_merge(off, expected, [expected[0] + 0.16], dtype=torch.bfloat16)
    assert not caplog.text
    check_merge(off, expected, [expected[0] + 0.14], dtype=torch.bfloat16)
    assert "rounding moves log-probs by 0.075 nats in the mean, and the adapters by 0.14" in caplog.text
    with pytest.raises(UserError, match=r"rounding explains 0\.1 in the mean"):
        check_merge([expected[0] + 0.11], expected, expected, dtype=torch.bfloat16)


# the processor of mistral3 needs torchvision
@pytest.mark.parametrize("name", [name for name in [*NAMES, *MORE_NAMES] if name != "mistral3"])
def test_prompts_show_pictures_where_the_processor_takes_them(
    name: str, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    processor = load_processor(tiny(name))
    prompts = sample_prompts(processor)
    assert len(prompts) == 3
    shown = ["pixel_values" in prompt for prompt in prompts]
    assert shown[0] is False
    assert shown[1] is ("takes no picture" not in caplog.text)
    assert shown[1] or name in ("paligemma",)
    answers = answer_prompts(load_policy(tiny(name)), prompts)
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.shape[0] == prompt["input_ids"].shape[1]
        assert answer.exp().sum(dim=-1).numpy() == pytest.approx(1.0, abs=1e-4)
