"""Name what goes wrong in a run, from its readings alone. Floats only: no torch, no model."""

from cwdpo.diagnosis.history import Finding
from cwdpo.diagnosis.judging import Diagnosis, NotJudged, Recording, diagnose, examine, read_recording, title_of
from cwdpo.diagnosis.reading import words_of_reading
from cwdpo.diagnosis.thresholds import Thresholds

__all__ = ["Diagnosis", "Finding", "NotJudged", "Recording", "Thresholds"]
__all__ += ["diagnose", "examine", "read_recording", "title_of", "words_of_reading"]
