"""Measure models outside training: held-out answers beside a reference, and a probe set on checkpoints."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Role, eval_mode, on_device, places_of
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, make_engine
from cwdpo.metrics import jensen_shannon, token_ece, total_variation
from cwdpo.models.adapters import load_checkpoint
from cwdpo.models.parts import model_limits
from cwdpo.probes import ProbeSet, Reading, StartDistributions, choose_rows, measure, own_answers, probe_rows
from cwdpo.probes.measuring import wanted
from cwdpo.records import ProbeLine
from cwdpo.reference import LiveReference

_DETAILS: tuple[Detail, ...] = ("entropy", "confidence", "hit")


NUM_ROWS = 32
"""Rows of a probe, unless another number is asked for."""


def probe_checkpoints(
    model: str,
    data: Path,
    *,
    reference: str | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    image_root: GivenRoots = None,
    with_own_answers: bool = True,
) -> list[ProbeLine]:
    """Measure a probe set on a model, beside a reference if one is given. Only one of them is in memory at a time.
    Gives a line a group, as in ``probes.jsonl``, without stage and step.

    Args:
        model: a checkpoint (adapters too) or a hub name.
        data: file of rows.
        reference: what the model is compared with; its own answers are measured then.
        num_rows: most rows; more are sampled. None takes up to :data:`NUM_ROWS`.
        seed: of the sample and of what is made of the rows.
        image_root: where relative image paths start.
        with_own_answers: let the first model answer too (the groups ``greedy`` and ``on_policy``).
    """
    found = read_rows(data, image_root=image_root)
    rows = choose_rows(found, num_rows or NUM_ROWS, seed, asked=num_rows is not None)
    start = StartDistributions(len(rows)) if reference is not None else None
    own: dict[str, list[str]] = {}
    readings: list[Reading] = []
    for name in (model,) if reference is None else (reference, model):
        policy, processor = load_checkpoint(name)
        if with_own_answers and not own:
            own["greedy"] = own_answers(policy, rows, processor=processor)
            own["on_policy"] = own_answers(policy, rows, processor=processor, temperature=1.0, seed=seed)
        encoder = Encoder(processor, limits=model_limits(policy))
        probes = ProbeSet(
            probe_rows(rows, seed=seed, greedy=own.get("greedy"), on_policy=own.get("on_policy")), encoder
        )
        readings.append(measure(policy, probes, make_engine(), start=start))
    return readings[-1].lines(None if reference is None else readings[0].means())


def evaluate_rows(
    model: PreTrainedModel,
    reference: LiveReference,
    processor: ProcessorMixin,
    rows: Sequence[Row],
    engine: Engine,
    *,
    batch_size: int = 16,
) -> dict[str, float]:
    """Evaluate all answers of held-out rows, ``batch_size`` rows at a time, with :func:`evaluate_answers`; every row
    has a chosen answer, and rejected and gentle ones count where there are any."""
    collate = AnswerCollator(Encoder(processor))
    numbered = list(enumerate(rows))
    batches = (collate(numbered[start : start + batch_size]) for start in range(0, len(rows), batch_size))
    return evaluate_answers(model, reference, (send_to_device(batch, model.device) for batch in batches), engine)


@torch.no_grad()
def evaluate_answers(
    model: nn.Module, reference: LiveReference, batches: Iterable[Batch], engine: Engine
) -> dict[str, float]:
    """Score held-out answers with the policy, in eval mode that is put back afterwards, and with its reference.

    The batches are on the model's device, and small: whole distributions over the vocabulary are held for each.

    Returns:
        For each of ``chosen``, ``rejected`` and ``gentle`` that occurs, means over its answers:

        - ``logps/GROUP``: log pi(y|x), nats; ``logps_mean/GROUP``: lbar, nats per token;
        - ``delta_total/GROUP`` and ``delta/GROUP``: the same two minus the reference's;
        - ``n/GROUP``: the number of answers.

        Over the tokens of chosen answers: ``ece``, ``accuracy`` (share of tokens that are the likeliest one),
        ``entropy``, ``js`` (both in nats) and ``tv``. Where prompts have both chosen and rejected answers,
        ``reward_accuracy``: share of such pairs in which the chosen answer's delta_total is the higher one.
    """
    answers: defaultdict[str, list[Tensor]] = defaultdict(list)
    tokens: defaultdict[str, list[Tensor]] = defaultdict(list)
    with eval_mode(model):
        for batch in batches:
            policy = engine.logprobs(model, batch, want=(*_DETAILS, "distribution"))
            start = reference.logprobs(batch, want=["distribution"])
            of_answers = {
                "logps": policy.total,
                "logps_mean": policy.mean,
                "delta_total": policy.total - start.total,
                "delta": policy.mean - start.mean,
            }
            for role in Role:
                of_role = on_device(places_of(batch, role), policy.token.device)
                for name, values in of_answers.items():
                    answers[f"{name}/{role.name.lower()}"].append(values[of_role].cpu())
            answers["reward_accuracy"].append(_pairs_won(policy.total - start.total, batch).cpu())
            of_role = on_device(places_of(batch, Role.CHOSEN), policy.token.device)
            chosen = policy.mask & torch.zeros_like(policy.mask).index_fill(0, of_role, True)
            for name, values in _token_values(policy, start).items():
                tokens[name].append(values[chosen].cpu())
    return _averages(answers, tokens)


def _token_values(policy: AnswerLogprobs, start: AnswerLogprobs) -> dict[str, Tensor]:
    """``(A, T)`` values by name."""
    values = {name: wanted(policy, name) for name in _DETAILS}
    now, before = wanted(policy, "distribution"), wanted(start, "distribution")
    return values | {"tv": total_variation(now, before), "js": jensen_shannon(now, before)}


def _pairs_won(delta: Tensor, batch: Batch) -> Tensor:
    """One value for each pair of a chosen and a rejected answer to the same prompt: 1 won, 0 lost, 0.5 equal."""
    prompt = batch["prompt_index"]
    chosen, rejected = (places_of(batch, role) for role in (Role.CHOSEN, Role.REJECTED))
    first, second = np.nonzero(prompt[chosen][:, None] == prompt[rejected][None])
    better, worse = (delta[on_device(each, delta.device)] for each in (chosen[first], rejected[second]))
    return (torch.sign(better - worse) + 1) / 2


def _averages(answers: dict[str, list[Tensor]], tokens: dict[str, list[Tensor]]) -> dict[str, float]:
    joined = {name: torch.cat(parts) for name, parts in answers.items()}
    if not len(joined.get("logps/chosen", ())):
        raise ValueError("no chosen answer to evaluate; give batches that hold at least one.")
    means = {name: values.double().mean().item() for name, values in joined.items() if len(values)}
    for group in (role.name.lower() for role in Role):
        if num_answers := len(joined[f"logps/{group}"]):
            means[f"n/{group}"] = float(num_answers)
    by_token = {name: torch.cat(parts) for name, parts in tokens.items()}
    means["ece"] = token_ece(by_token["confidence"], by_token["hit"]).item()
    means["accuracy"] = by_token["hit"].double().mean().item()
    return means | {name: by_token[name].double().mean().item() for name in ("entropy", "tv", "js")}
