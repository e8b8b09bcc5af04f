"""A tiny model, rows with pictures and a probe set of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import disc_data
from support.stage_trainers import make_trainer, sixteen_rows

from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.probes import ProbeSet, probe_rows

__all__ = ["loaded", "make_trainer", "probe_set", "rows", "sixteen_rows"]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Six rows, one without an image, one with paraphrases, one without a gentle negative."""
    records = disc_data.records(6, text_only_every=5)
    records[1] |= {"longer": "In the picture there is a green disc on grey.", "shorter": "A green disc."}
    del records[2]["gentle"]
    return read_rows(disc_data.write(tmp_path_factory.mktemp("probes"), records))


@pytest.fixture
def loaded(tiny: Callable[[str], Path]) -> Callable[..., tuple[Any, Any]]:
    """``loaded("llava", scale=4.0)``: a model whose predictions are far from even, and its processor."""

    def load(name: str = "llava", *, scale: float = 6.0) -> tuple[Any, Any]:
        model = load_policy(tiny(name), dtype="float32", freeze_vision=False)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(scale)
        return model, load_processor(tiny(name))

    return load


@pytest.fixture
def probe_set(rows: list[Row]) -> Callable[..., ProbeSet]:
    """``probe_set(processor)``, with a made-up greedy answer to each row."""

    def make(processor: Any, **options: Any) -> ProbeSet:
        groups = options.pop("groups", None)
        greedy = [f"greedy {i}" for i in range(len(rows))]
        made = probe_rows(rows, seed=3, greedy=greedy, **({"groups": groups} if groups else {}))
        return ProbeSet(made, Encoder(processor, max_length=options.pop("max_length", None)), **options)

    return make
