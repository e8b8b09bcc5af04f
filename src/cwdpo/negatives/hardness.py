"""How hard a model finds a negative: its lbar, its CHES similarity to the right answer, and its weight in a run."""

from collections.abc import Callable, Sequence

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.config.recipe import Recipe
from cwdpo.cooling import cooling_weight
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine.forward import answer_type, capture_head_input
from cwdpo.engine.layout import one_row_an_answer
from cwdpo.engine.plain import PlainEngine
from cwdpo.models.parts import bare_model
from cwdpo.negatives.filtering import Hardness


def measure_hardness(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Row], *, batch_size: int = 8
) -> list[list[Hardness]]:
    """lbar and length-normalised CHES of every negative, row by row. The model's train and eval modes are put back."""
    collate = AnswerCollator(Encoder(processor), roles=(Role.CHOSEN, Role.REJECTED))
    found: list[list[Hardness]] = []
    with torch.no_grad(), eval_mode(model):
        for start in range(0, len(rows), batch_size):
            batch = send_to_device(collate(list(enumerate(rows[start : start + batch_size]))), model.device)
            means = PlainEngine().logprobs(model, batch).mean.tolist()
            # in the same order: a prompt's answers stand together
            lbars = (mean for mean, role in zip(means, batch["roles"], strict=True) if role != Role.CHOSEN)
            found += [[Hardness(next(lbars), ches) for ches in of_prompt] for of_prompt in batch_ches(model, batch)]
    return found


def weigh_as(recipe: Recipe) -> Callable[[float], float] | None:
    """w_c of an answer by its lbar in nats per token, in a run whose floor is a number by now; None in others."""
    cooling = None if recipe.stage2 is None else recipe.stage2.cooling
    if cooling is None or cooling.constant is not None or isinstance(cooling.floor, str):
        return None
    floor, temperature = float(cooling.floor), cooling.temperature
    return lambda lbar: cooling_weight(torch.tensor(lbar), floor, temperature=temperature).item()


def ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Centred hidden embedding similarity: how much pushing y_l down drags y_w along.

        CHES(x, y_w, y_l) = <S_w, S_l> - ||S_w||^2,   S = sum_t h(x, y_<t)        arXiv 2410.08847, definition 2

    The larger, the more alike the two are to the model, and the likelier that DPO lowers y_w too.

    Args:
        chosen: ``(T_w, d)`` hidden states of the last layer at the positions that predict y_w's tokens.
        rejected: ``(T_l, d)`` the same of y_l. The result is ``()``.

    Example:
        >>> import torch
        >>> ches(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))  # 3 - 5
        tensor(-2.)
    """
    if chosen.ndim != 2 or rejected.ndim != 2 or chosen.shape[1] != rejected.shape[1]:
        raise ValueError(
            f"expected two (T, d) tensors of hidden states, got {tuple(chosen.shape)} and {tuple(rejected.shape)}. "
            "Call it for one pair at a time."
        )
    of_chosen, of_rejected = chosen.double().sum(dim=0), rejected.double().sum(dim=0)
    return (of_chosen @ of_rejected - of_chosen @ of_chosen).float()


def length_normalised_ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""CHES without its preference for long answers: ``<S_w/T_w, S_l/T_l> - ||S_w/T_w||^2`` (arXiv 2410.08847, app. A).
    Arguments and result as in :func:`ches`."""
    return ches(chosen.double().mean(dim=0, keepdim=True), rejected.double().mean(dim=0, keepdim=True))


def batch_ches(model: nn.Module, batch: Batch) -> list[list[float]]:
    """Length-normalised CHES of every prompt's negatives to its one chosen answer, in the batch's order. The model may
    be wrapped, and is in eval mode."""
    bare = bare_model(model)
    layout = one_row_an_answer(batch, answer_type=answer_type(bare))
    with capture_head_input(bare.get_output_embeddings()) as captured:
        model(**layout.inputs, use_cache=False, logits_to_keep=layout.keep)
    (hidden,) = captured.hidden  # the last layer's, at the positions that predict the answers' tokens
    states = torch.split(layout.in_order(hidden), batch["lengths"].tolist())  # (T, d) for each answer
    found: list[list[float]] = [[] for _ in batch["prompts"]]
    chosen: dict[int, Tensor] = {}
    for state, owner, role in zip(states, batch["prompt_index"].tolist(), batch["roles"].tolist(), strict=True):
        if role == Role.CHOSEN:
            chosen[owner] = state
        else:
            found[owner].append(length_normalised_ches(chosen[owner], state).item())
    return found
