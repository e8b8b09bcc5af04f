"""Log-probs of answers the naive way: each alone, unpadded, full logits from the model's own forward."""

from typing import Any

import torch
from torch import Tensor

from cwdpo.batch import AnswerLogprobs, Batch


def whole_distributions(model: Any, batch: Batch) -> list[Tensor]:
    """For each answer ``(length, V)`` log-probs over the vocabulary at each of its tokens."""
    found = []
    for a, owner in enumerate(batch["prompt_index"].tolist()):
        prompt = batch["prompts"][owner]
        ids = batch["answer_ids"][a][batch["answer_mask"][a]]
        inputs = {name: value for name, value in prompt.items() if name != "labels"}
        inputs["input_ids"] = torch.cat([prompt["input_ids"], ids[None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for name in ("mm_token_type_ids", "token_type_ids", "cross_attention_mask"):
            if name in prompt:
                tail = prompt[name][:, -1:].repeat_interleave(len(ids), dim=1)
                if model.config.model_type == "paligemma":
                    tail = torch.ones_like(tail)  # as its processor does for a suffix
                inputs[name] = torch.cat([prompt[name], tail], dim=1)
        logits = model(**inputs).logits[0].float()
        start = prompt["input_ids"].shape[1] - 1
        found.append(logits.log_softmax(dim=-1)[start : start + len(ids)])
    return found


def token_logprobs(model: Any, batch: Batch) -> list[Tensor]:
    """For each answer ``(length,)`` log-probs of its tokens."""
    return [
        rows.gather(1, batch["answer_ids"][a][batch["answer_mask"][a]][:, None])[:, 0]
        for a, rows in enumerate(whole_distributions(model, batch))
    ]


def gap(found: AnswerLogprobs, expected: list[Tensor]) -> float:
    """The largest difference of any token's log-prob, in nats; infinite where the tokens are not the same ones."""
    if found.mask.sum(dim=1).tolist() != [len(row) for row in expected] or found.token[~found.mask].any():
        return float("inf")
    return (found.token[found.mask] - torch.cat(expected)).abs().max().item()


def weighted_loss(logprobs: list[Tensor]) -> Tensor:
    """A scalar in which every token of every answer has its own weight, for gradients."""
    tokens = torch.cat(logprobs)
    return (tokens * torch.linspace(-1.0, 2.0, len(tokens))).sum()


def rows_of(found: AnswerLogprobs) -> list[Tensor]:
    """The engine's token log-probs as the oracle gives them."""
    return [token[mask] for token, mask in zip(found.token, found.mask, strict=True)]


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by name, of the parameters that get any."""
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def gradient_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any gradient entry, relative to the largest entry of all."""
    scale = max(value.abs().max().item() for value in expected.values())
    zero = torch.zeros(())
    return (
        max((found.get(name, zero) - expected.get(name, zero)).abs().max().item() for name in found | expected) / scale
    )
