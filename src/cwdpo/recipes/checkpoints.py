"""Probes of checkpoints, outside any run."""

from pathlib import Path
from typing import Any

import torch

from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.engine import make_engine
from cwdpo.models.adapters import load_adapter
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.saving import named_base
from cwdpo.probes import ProbeSet, Reading, StartDistributions, choose_rows, measure, probe_rows
from cwdpo.recipes.stages import write_answers
from cwdpo.records import ProbeLine


def probe_checkpoints(
    model: str,
    data: Path,
    *,
    reference: str | None = None,
    num_rows: int = 32,
    seed: int = 0,
    image_root: Path | None = None,
    own_answers: bool = True,
) -> list[ProbeLine]:
    """Measure a probe set on a model, beside a reference if one is given. Only one of them is in memory at a time.

    Args:
        model: a checkpoint (adapters too) or a hub name.
        data: file of rows.
        reference: what the model is compared with; its own answers are asked about then.
        num_rows: most rows; more are sampled.
        seed: of the sample and of what is made of the rows.
        image_root: where relative image paths start.
        own_answers: let the first model answer too (the groups ``greedy`` and ``on_policy``).

    Returns:
        A line a group, as in ``probes.jsonl``, without stage and step.
    """
    rows = choose_rows(read_rows(data, image_root=image_root), num_rows, seed)
    start = StartDistributions(len(rows)) if reference is not None else None
    own: dict[str, list[str]] = {}
    first: Reading | None = None
    reading = Reading()
    for name in (reference, model):
        if name is None:
            continue
        policy, processor = load_checkpoint(name)
        if own_answers and not own:
            own["greedy"] = write_answers(policy, rows, processor=processor)
            own["on_policy"] = write_answers(policy, rows, processor=processor, temperature=1.0, seed=seed)
        limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
        encoder = Encoder(processor, model_max_length=limit)
        probes = ProbeSet(probe_rows(rows, seed=seed, **own), encoder)
        reading = measure(policy, probes, make_engine(), start=start)
        first = first or reading
    return reading.lines(first.means() if first is not None and reference is not None else None)


def load_checkpoint(name: str) -> tuple[Any, Any]:
    """A model to look at, on the GPU if there is one, and its processor.

    Args:
        name: a checkpoint directory, with a full model or with adapters, or a hub name.
    """
    directory = Path(name)
    if (directory / "adapter_config.json").is_file():
        base = load_policy(named_base(directory), freeze_vision=False)
        model: Any = load_adapter(base, directory, trainable=False)
    else:
        model = load_policy(name, freeze_vision=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_processor(name)
