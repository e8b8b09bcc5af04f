"""Probes: a fixed set of held-out prompts with many answers each, measured again and again while a model learns."""

from cwdpo.data.reading import choose_rows
from cwdpo.probes.measuring import Reading, StartDistributions, measure
from cwdpo.probes.probe_set import ProbeRow, ProbeSet, own_answers, probe_rows
from cwdpo.probes.size import ProbeSize

__all__ = [
    "ProbeRow",
    "ProbeSet",
    "ProbeSize",
    "Reading",
    "StartDistributions",
    "choose_rows",
    "measure",
    "own_answers",
    "probe_rows",
]
