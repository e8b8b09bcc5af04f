"""Name what goes wrong in a run, from its readings alone. Floats only: no torch, no model."""

from cwdpo.diagnosis.findings import Diagnosis, Finding, NotJudged, title_of
from cwdpo.diagnosis.judging import Recording, diagnose, examine, read_recording
from cwdpo.diagnosis.thresholds import Thresholds

__all__ = [
    "Diagnosis",
    "Finding",
    "NotJudged",
    "Recording",
    "Thresholds",
    "diagnose",
    "examine",
    "read_recording",
    "title_of",
]
