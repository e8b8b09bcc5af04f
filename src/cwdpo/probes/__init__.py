"""Probes: a fixed set of held-out prompts with many answers each, measured again and again while a model learns."""

from cwdpo.probes.answers import GROUPS, ProbeRow, choose_rows, probe_rows
from cwdpo.probes.distributions import StartDistributions
from cwdpo.probes.probe_set import ProbeSet
from cwdpo.probes.reading import Reading, measure

__all__ = ["GROUPS", "ProbeRow", "ProbeSet", "Reading", "StartDistributions", "choose_rows", "measure", "probe_rows"]
