"""Candidates for negatives and the refreshes that sampled them, kept on disk so that a run can be repeated exactly."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cwdpo.errors import UserError
from cwdpo.negatives.filtering import hardness_reason, threshold
from cwdpo.records import read_jsonl, write_text

_FORMAT = 2
_READABLE = (1, 2)
"""Format 1 has samples alone, as without a curriculum, under the same names."""


@dataclass(slots=True)
class Candidate:
    """A sampled answer, or with a curriculum a row's own negative. With a ``reason`` it was dropped."""

    row: int
    """Position of its row in the training data."""

    id: str
    text: str
    reason: str | None = None
    ids: list[int] | None = None
    """Its tokens through the end token."""

    key: str | None = None
    """Content key, see :class:`cwdpo.batch.Batch`."""

    reference_logprob: float | None = None
    """log pi_ref(y|x), nats; None where the reference runs at every step."""

    ches: float | None = None
    """Length-normalised CHES similarity to its row's right answer under the policy, where it was needed."""

    lbar: float | None = None
    """Mean log-prob under the policy at the refresh, nats per token, where it was needed."""

    source: Literal["on_policy", "dataset"] = "on_policy"
    """A row's own negative is only measured: its tokens and its reference are those of the data set."""


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """One sampling of the training prompts."""

    number: int
    """From 1 on."""

    step: int
    """Optimiser steps the policy had made."""

    epoch: int
    seed: int
    """Of the run; see ``sampling_seed`` of :mod:`cwdpo.on_policy.refresh` for what follows from it."""

    details: dict[str, Any] = field(default_factory=dict)
    """Who and when: model, time, seconds, settings. Nothing in training depends on it."""

    error: str | None = None
    """What went wrong; then there are no candidates, and training continued with the refresh before."""

    candidates: Sequence[Candidate] = ()

    def counts(self) -> dict[str, int]:
        """How many samples were kept, how many dropped for which reason, and how many own negatives are here."""
        return dict(Counter("dataset" if c.source == "dataset" else c.reason or "kept" for c in self.candidates))


def drop_easy(candidates: Sequence[Candidate], rule: float | str) -> float | None:
    """Give the reason ``too_easy`` to negatives below a floor of lbar.

    Those that are still kept need an ``lbar``. The rule is nats per token, or ``quantile:q`` of the kept ones' lbar;
    returned is the floor in nats per token, None where nothing was kept.
    """
    return _drop(candidates, "lbar", rule)


def drop_similar(candidates: Sequence[Candidate], rule: float | str) -> float | None:
    """Give the reason ``too_similar`` to negatives above a ceiling of CHES; as :func:`drop_easy`, by ``ches``."""
    return _drop(candidates, "ches", rule)


def _drop(candidates: Sequence[Candidate], name: Literal["lbar", "ches"], rule: float | str) -> float | None:
    kept = [candidate for candidate in candidates if candidate.reason is None]
    for candidate in kept:
        if getattr(candidate, name) is None:
            raise ValueError(f"the candidate {candidate.text!r} has no {name}; measure it before filtering by it")
    limit = threshold([getattr(candidate, name) for candidate in kept], rule) if kept else None
    floor, ceiling = (limit, None) if name == "lbar" else (None, limit)
    for candidate in kept:
        candidate.reason = hardness_reason(lbar=candidate.lbar, floor=floor, ches=candidate.ches, ceiling=ceiling)
    return limit


def refresh_path(directory: Path, number: int) -> Path:
    """``refresh-00003.jsonl``."""
    return directory / f"refresh-{number:05d}.jsonl"


def write_refresh(directory: Path, refresh: Refresh) -> None:
    """Write a refresh: a line about it, then a line a candidate; whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    header = {f.name: getattr(refresh, f.name) for f in dataclasses.fields(refresh) if f.name != "candidates"}
    lines = [{"format": _FORMAT, **header, "counts": refresh.counts()}]
    lines += [dataclasses.asdict(candidate) for candidate in refresh.candidates]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(refresh_path(directory, refresh.number), text)


def read_refreshes(directory: Path) -> list[Refresh]:
    """Every refresh in a directory, oldest first; a damaged file is a UserError."""
    return [read_refresh(path) for path in sorted(directory.glob("refresh-*.jsonl"))]


def read_refresh(path: Path) -> Refresh:
    """One refresh; a damaged file is a UserError, as the run could not continue as it began."""
    lines = read_jsonl(path)
    try:
        header, *rest = lines.objects
        if lines.skipped:
            raise ValueError("lines are missing")
        version = header.pop("format")
        if version not in _READABLE:
            raise ValueError(f"its format is {version}, and this version reads {' and '.join(map(str, _READABLE))}")
        counts = header.pop("counts")
        refresh = Refresh(**header, candidates=[Candidate(**line) for line in rest])
        if refresh.counts() != counts:
            raise ValueError("lines are missing")
        return refresh
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a whole record of sampled negatives ({error}), so the run cannot continue as it began. "
            "Restore the file, or start the run again in another --output_dir."
        ) from error


def summed_up(refreshes: Sequence[Refresh]) -> dict[str, Any]:
    """All refreshes of a stage: their number, those that failed, seconds, and samples by ``kept`` or why not."""
    sampled = [c for refresh in refreshes for c in refresh.candidates if c.source == "on_policy"]
    return {
        "refreshes": len(refreshes),
        "failed": sum(refresh.error is not None for refresh in refreshes),
        "seconds": round(sum(float(refresh.details.get("seconds", 0.0)) for refresh in refreshes), 2),
        "samples": dict(Counter(candidate.reason or "kept" for candidate in sampled)),
    }


def remove_after(directory: Path, step: int) -> None:
    """Remove what was sampled after a step, as the resumed run will sample it again."""
    for path in sorted(directory.glob("refresh-*.jsonl"), reverse=True):
        header = read_jsonl(path).objects[:1]
        if header and int(header[0].get("step", -1)) > step:
            path.unlink()
