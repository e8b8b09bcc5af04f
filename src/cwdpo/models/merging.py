"""Merge adapters into a plain checkpoint, and compare the two before the checkpoint takes its place."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.batch import FLOAT32_GAP, HALF_MEAN_GAP
from cwdpo.errors import UserError
from cwdpo.models.adapters import adapted_tied_layers, load_adapter, named_base, read_base
from cwdpo.models.loading import load_policy, load_processor, some
from cwdpo.models.parts import cast_images
from cwdpo.models.saving import save_checkpoint
from cwdpo.records import check_place

logger = logging.getLogger(__name__)

_QUESTIONS = (("Name three colours.", 0), ("What is in the picture?", 1), ("Which of the two is larger, and why?", 2))
"""What the two models are asked, and with how many pictures."""


def merge_adapter(
    checkpoint_dir: str | Path,
    out_dir: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    any_base: bool = False,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Merge adapters into their base model and write a plain checkpoint with the same logits.

    ``out_dir`` must be new or empty, and not lie in ``checkpoint_dir``. The ``base`` is by default the one that the
    adapters name; ``any_base`` takes one that they were not trained on, as long as they fit. Where ``dtype`` has 16
    bits, the merge rounds each weight once.

    Before it takes its place, the checkpoint is loaded and asked a few prompts, with and without pictures; the largest
    difference is said. A UserError where that is more than rounding explains; nothing is left then.
    """
    source, target = Path(checkpoint_dir), Path(out_dir)
    check_place(target, is_directory=True)
    if not (source / "adapter_config.json").is_file():
        raise UserError(
            f"{source} has no adapter_config.json, so there is nothing to merge. Name the directory that holds the "
            "adapters; a full checkpoint can be used as it is."
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies in {source}, which the merged model is made from. Name a directory outside it.")
    if base is not None and not any_base and not read_base(source):
        logger.warning("%s does not say which weights it was trained on, so %s is not compared with them", source, base)
    base = base or named_base(source)
    model = load_policy(base, freeze_vision=False, trust_remote_code=trust_remote_code)  # compared as it was saved
    adapted = load_adapter(model, source, trainable=False, any_base=any_base)
    if dtype != "auto":
        for name, weight in adapted.named_parameters():  # no buffers: frequencies of positions stay exact
            weight.data = weight.data if ".lora_" in name else weight.data.to(getattr(torch, dtype))
    # transformers and PEFT write the tokenizer and the processor with the adapters, if they are given them
    own_processor = any((source / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    processor = load_processor(source if own_processor else base, trust_remote_code=trust_remote_code)
    prompts = sample_prompts(processor)
    expected, unadapted = answer_prompts(adapted, prompts), _without_adapters(adapted, prompts)
    tied = adapted_tied_layers(adapted)
    trained_in = next((weight.dtype for name, weight in adapted.named_parameters() if ".lora_" in name), adapted.dtype)
    merged: Any = adapted.merge_and_unload()
    _say_if_untied(merged)

    def compare(draft: Path) -> None:
        merged.to("meta")  # it is on the disk: no third copy in memory
        found = load_policy(draft, freeze_vision=False, trust_remote_code=trust_remote_code)
        largest = check_merge(answer_prompts(found, prompts), expected, unadapted, dtype=found.dtype, tied=tied)
        why = _why_rounded(found.dtype, trained_in)
        say(f"log-probs of {len(prompts)} prompts differ by at most {largest:.2g} nats from those with adapters{why}")

    return save_checkpoint(merged, processor, target, check=compare)


def _why_rounded(merged: torch.dtype, trained_in: torch.dtype) -> str:
    """Why a merge is not exact and what avoids that, where its type is coarser than the adapters'."""
    if torch.finfo(merged).eps <= torch.finfo(trained_in).eps:
        return ""
    coarse, fine = (str(dtype).removeprefix("torch.") for dtype in (merged, trained_in))
    return f": they are in {fine}, and merged weights are rounded to {coarse}; `--dtype {fine}` avoids that"


def _say_if_untied(merged: PreTrainedModel) -> None:
    """Where the embeddings were trained as a copy (``modules_to_save``), they are tied no more, and the configuration
    must say so: a program that ties by it, such as vLLM, would drop the output head."""
    head = merged.get_output_embeddings()
    if head is not None and head.weight is not merged.get_input_embeddings().weight:
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = False


def check_merge(
    merged: Sequence[Tensor],
    expected: Sequence[Tensor],
    unadapted: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    tied: Collection[str] = (),
) -> float:
    """Compare log-probs of a merged model with those that it should have: the largest difference, nats. A UserError
    where rounding does not explain it.

    Args:
        merged: ``(tokens, vocabulary)`` log-probs of each prompt under the merged model.
        expected: the same under the adapters.
        unadapted: the same under the base without them.
        dtype: of the merged weights.
        tied: adapted layers that share their weights with others, see :func:`adapted_tied_layers`.
    """
    gaps = torch.cat([(ours - theirs).abs().flatten() for ours, theirs in zip(merged, expected, strict=True)])
    effects = torch.cat([(ours - theirs).abs().flatten() for ours, theirs in zip(unadapted, expected, strict=True)])
    largest, mean, effect = gaps.max().item(), gaps.mean().item(), effects.mean().item()
    exact = dtype == torch.float32
    if not (largest <= FLOAT32_GAP if exact else mean <= HALF_MEAN_GAP):  # NaN too
        why = (
            f"They train {some(tied)}, whose weights other layers share, so a merge changes those too. Train without "
            "these layers (`target_modules: language`)"
            if tied
            else "Use them unmerged (`PeftModel.from_pretrained`, or vLLM with --enable-lora)"
        )
        raise UserError(
            f"the merged model would not be the one with adapters: on {len(merged)} prompts its log-probs differ by up "
            f"to {largest:.3g} nats ({mean:.3g} in the mean), and rounding explains "
            f"{FLOAT32_GAP if exact else HALF_MEAN_GAP:g}{'' if exact else ' in the mean'}. Nothing was written. {why}."
        )
    if mean > effect / 2 and not exact:
        logger.warning(
            "in %s, rounding moves log-probs by %.2g nats in the mean, and the adapters by %.2g: much of what they "
            "learned is lost in the merge. Use them unmerged, or merge with `--dtype float32`.",
            str(dtype).removeprefix("torch."),
            mean,
            effect,
        )
    return largest


def sample_prompts(processor: ProcessorMixin) -> list[dict[str, Tensor]]:
    """A few prompts in the processor's own form, with pictures where it takes them; the same at every call."""
    found, refused = [], []
    for number, (question, images) in enumerate(_QUESTIONS):
        pictures = [Image.linear_gradient("L").rotate(90 * i).resize((56, 56)).convert("RGB") for i in range(images)]
        content: Any = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        try:
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=[pictures] if pictures else None, text=[text], return_tensors="pt")
        except (jinja2.TemplateError, ValueError, TypeError, IndexError, KeyError, RuntimeError, OSError):
            refused.append(number)
            inputs = processor.tokenizer(question, return_tensors="pt")
        found.append({name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"})
    if 1 in refused:
        logger.warning("%s takes no picture here: merged models are compared on text alone", type(processor).__name__)
    return found


@torch.no_grad()
def answer_prompts(model: nn.Module, prompts: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """``(tokens, vocabulary)`` log-probs of each prompt, float32."""
    model.eval()
    asked: Any = model
    return [asked(**cast_images(model, prompt)).logits[0].float().log_softmax(dim=-1) for prompt in prompts]


def _without_adapters(model: PeftModel, prompts: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    with model.disable_adapter():
        return answer_prompts(model, prompts)
