"""Probes: a fixed set of held-out prompts with many answers each, measured again and again while a model learns."""

from cwdpo.probes.probe_set import GROUPS, ProbeRow, ProbeSet, choose_rows, probe_rows
from cwdpo.probes.reading import Reading, StartDistributions, measure

__all__ = ["GROUPS", "ProbeRow", "ProbeSet", "Reading", "StartDistributions", "choose_rows", "measure", "probe_rows"]
