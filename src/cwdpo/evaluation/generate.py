"""Answers of a model to prompts: batched generation for rows, for any processor of transformers."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from cwdpo.data.rows import Row
from cwdpo.evaluation.prompts import encode_prompts

logger = logging.getLogger(__name__)


def generate_answers(
    model: nn.Module,
    processor: Any,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Let the model answer every row's prompt.

    Special tokens other than the end token (image placeholders, turn markers) are forbidden: a policy can sample them,
    and an answer that holds one cannot be scored. What the model's own generation config says beside the sampling
    settings (its repetition penalty, say) stays in force.

    Args:
        model: a generative vision-language model; its train and eval modes are put back afterwards.
        processor: the model's processor; its padding side is put back afterwards.
        rows: only their prompts and images are read.
        batch_size: prompts in one call of ``generate``.
        max_new_tokens: longest answer; how many answers ran into it is logged as a warning.
        temperature: None decodes greedily; a number > 0 samples from the whole vocabulary (no top-k).
        top_p: sample only from the smallest set of tokens with this probability; needs a temperature.
        seed: the samples follow from it; torch's global random state is left as it was.

    Returns:
        One answer for each row, without special tokens or surrounding space.

    Raises:
        ValueError: for a temperature or top_p that cannot be meant.
    """
    config = _generation_config(model, processor, max_new_tokens, temperature, top_p)
    device = next(model.parameters()).device
    answers = [""] * len(rows)
    cut = 0
    with _eval_mode(model), _own_randomness(seed, device), torch.inference_mode():
        for indices in _batches(rows, batch_size):
            inputs = encode_prompts(processor, [rows[index] for index in indices]).to(device)
            ids = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]  # type: ignore[operator]
            ends = torch.isin(ids, torch.tensor(config.eos_token_id, device=device)).any(dim=1)
            cut += int((~ends).sum())
            for index, text in zip(indices, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
                answers[index] = text.strip()
    if cut:
        logger.warning("%d of %d answers were cut at max_new_tokens=%d; raise it", cut, len(rows), max_new_tokens)
    return answers


def _batches(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Positions of rows for each batch; rows with and without images apart, as no processor takes both at once."""
    for with_images in (True, False):
        indices = [index for index, row in enumerate(rows) if bool(row.images) is with_images]
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _generation_config(
    model: nn.Module, processor: Any, max_new_tokens: int, temperature: float | None, top_p: float | None
) -> GenerationConfig:
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature is {temperature}, but must be > 0; for greedy decoding write None")
    if top_p is not None and (temperature is None or not 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p} with temperature {temperature}; it needs a temperature and lies in (0, 1]")
    config = copy.deepcopy(model.generation_config)
    assert isinstance(config, GenerationConfig)
    tokenizer = processor.tokenizer
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    sampling = {"do_sample": temperature is not None, "temperature": temperature or 1.0, "top_p": top_p or 1.0}
    config.update(
        **sampling,
        top_k=0 if temperature is not None else 50,  # 50 is the inert default; greedy decoding warns of any other
        max_new_tokens=max_new_tokens,
        max_length=None,
        suppress_tokens=sorted(special - set(ends)) or None,
        use_cache=True,
    )
    return config


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is as it was (a frozen tower may be in eval mode during training)."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
