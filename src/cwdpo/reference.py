"""The reference of stage 2: log pi_ref of every answer, from a cache on disk or from a model beside the policy.

In the cache, an entry's key is a hash of everything the model would see (prompt tokens, image tensors as the processor
made them, answer tokens; see ``Batch.keys``), so another processor, row or picture is simply not found. The directory
also holds the fingerprint of the model that computed it, and refuses to serve any other.
"""

import json
import logging
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail, eval_mode
from cwdpo.engine import Engine
from cwdpo.errors import UserError
from cwdpo.models.loading import one_line
from cwdpo.records import put_in_place

logger = logging.getLogger(__name__)

_FORMAT = 2
_UNREADABLE = (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RuntimeError)
"""What numpy and zipfile raise of a file that is not what was written."""


class Reference(Protocol):
    """log pi_ref of every answer in a batch."""

    def totals(self, batch: Batch) -> Tensor:
        """``(A,)`` log pi_ref(y|x), summed over tokens, without gradient."""
        ...


class LiveReference(Protocol):
    """A model beside the policy, which can be asked about any answer at any time."""

    def logprobs(self, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`; without gradient."""
        ...

    def totals(self, batch: Batch) -> Tensor:
        return self.logprobs(batch).total


class ReferenceCache:
    """``key -> (log pi_ref, number of tokens)``, in part files that are written whole or not at all."""

    def __init__(self, directory: Path | None, *, of_model: str, computed_in: str = "", rank: int = 0) -> None:
        """Open the cache of a directory, or begin one; an error where it holds what was computed otherwise.

        Args:
            directory: where the parts lie; None keeps everything in memory.
            of_model: fingerprint of the model whose log-probs these are (see :func:`cwdpo.models.parts.fingerprint`).
            computed_in: precision and device; other roundings would make the rewards of step 0 differ from 0.
            rank: this process; each writes parts of its own.
        """
        self.directory, self.of_model, self.rank = directory, of_model, rank
        self._entries: dict[str, tuple[float, int]] = {}
        self._others: dict[str, float] = {}
        self._unsaved: dict[str, tuple[float, int]] = {}
        self._next_part: int | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            header = {"format": _FORMAT, "model": of_model, "computed_in": computed_in}
            _check_header(directory, header, rank)
            self.reload()

    @classmethod
    def in_memory(cls) -> "ReferenceCache":
        """A cache that no file backs."""
        return cls(None, of_model="")

    def reload(self) -> None:
        """Read all parts, those of other ranks too."""
        for part in sorted(self.directory.glob("part-*.npz")) if self.directory else []:
            self._entries |= _read_part(part)

    def __len__(self) -> int:
        return len(self._entries)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The positions of the keys that are not here."""
        return [i for i, key in enumerate(keys) if key not in self._entries]

    def add(self, keys: Sequence[str], totals: Sequence[float], num_tokens: Sequence[int]) -> None:
        """Remember log pi_ref(y|x) and the token count of some answers; on disk only at :meth:`save`."""
        new = dict(zip(keys, zip(totals, num_tokens, strict=True), strict=True))
        self._entries |= new
        self._unsaved |= new

    def answer_for_others(self, keys: Sequence[str], totals: Sequence[float]) -> None:
        """Know log pi_ref(y|x) of some answers until the next call; never on disk, as another file holds them."""
        self._others = dict(zip(keys, totals, strict=True))

    def digest(self) -> str:
        """Equal for caches that have the same answers."""
        return xxhash.xxh3_128_hexdigest("".join(sorted(self._entries)).encode())

    def save(self) -> None:
        """Write what was added since the last save as one more part."""
        if not self._unsaved or self.directory is None:
            return
        if self._next_part is None:  # looked for once, so that a save costs the same however many parts there are
            parts = self.directory.glob(f"part-{self.rank:03d}-*.npz")  # a damaged one may have left a gap
            self._next_part = max((int(part.stem.rsplit("-", 1)[1]) for part in parts), default=-1) + 1
        part = self.directory / f"part-{self.rank:03d}-{self._next_part:05d}.npz"
        self._next_part += 1
        written = part.with_suffix(".partial")
        with written.open("wb") as file:
            totals, counts = zip(*self._unsaved.values(), strict=True)
            np.savez(
                file,
                keys=np.array(list(self._unsaved), dtype="S32"),
                totals=np.array(totals, dtype=np.float64),
                num_tokens=np.array(counts, dtype=np.int64),
            )
        put_in_place(written, part)
        self._unsaved = {}

    def totals(self, batch: Batch) -> Tensor:
        """``(A,)`` log pi_ref(y|x) of every answer in the batch; a UserError names the row of one that is not here."""
        totals = [self._total(key) for key in batch["keys"]]
        if None in totals:
            row = batch["row_index"][batch["prompt_index"][totals.index(None)]]
            raise UserError(
                f"row {row} has an answer whose reference log-prob is not known: the row is not as it was before "
                "training began, when those of all answers were computed. Either it changes from one access to the "
                "next (`dataset.with_transform` with a random transform), or the rows were changed since. "
                "Write `reference: live` for stage 2 (CWDPOConfig(reference='live')), or give rows that stay the same."
            )
        return torch.tensor(totals, dtype=torch.float32).to(batch["answer_ids"].device, non_blocking=True)

    def _total(self, key: str) -> float | None:
        entry = self._entries.get(key)
        return self._others.get(key) if entry is None else entry[0]

    def means(self, keys: Sequence[str]) -> Tensor:
        """``(n,)`` lbar of the answers with these keys, nats per token."""
        entries = [self._entries[key] for key in keys]
        return torch.tensor([total / n for total, n in entries], dtype=torch.float64)


class FrozenCopy(LiveReference):
    """A second model in memory, for full fine-tuning."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model, self.engine = model.eval().requires_grad_(False), engine

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        return self.engine.logprobs(self.model, batch, want=want)


class StartingAdapter(LiveReference):
    """The policy with what trains set back to where stage 2 began. The base model is shared, so it costs the memory of
    one more adapter."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model, self.engine = model, engine
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._start = {name: p.detach().clone() for name, p in self._trainable.items()}

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        with eval_mode(self.model), self._set_back():
            return self.engine.logprobs(self.model, batch, want=want)

    @contextmanager
    def _set_back(self) -> Iterator[None]:
        # The storage is exchanged, not the values: autograd graphs that hold the policy's weights stay valid.
        now = {name: p.data for name, p in self._trainable.items()}
        for name, p in self._trainable.items():
            if self._start[name].device != p.device:  # the model has moved since
                self._start[name] = self._start[name].to(p.device)
            p.data = self._start[name]
        torch.clear_autocast_cache()  # it knows casts by the parameter, and not by what is in it
        try:
            yield
        finally:
            for name, p in self._trainable.items():
                p.data = now[name]
            torch.clear_autocast_cache()


def _check_header(directory: Path, header: Mapping[str, Any], rank: int) -> None:
    path = directory / "cache.json"
    if not path.exists() and not any(directory.glob("part-*.npz")):
        written = path.with_suffix(f".partial{rank}")
        written.write_text(json.dumps(header) + "\n")
        put_in_place(written, path)
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if found == header:
        return
    why = "belong to another model than the one stage 2 starts from now"
    if not isinstance(found, dict):
        header_is = "a damaged" if path.exists() else "no"
        why = f"have {header_is} {path.name}, so that it is not known which model they belong to"
    elif found.get("model") == header["model"]:
        why = f"were computed in {found.get('computed_in')}, and this run computes in {header['computed_in']}"
    raise UserError(
        f"{directory}: these reference log-probs {why}, so they cannot be used. Delete that directory to compute them "
        "again, or write `reference: live` for stage 2 (CWDPOConfig(reference='live'))."
    )


def _read_part(part: Path) -> dict[str, tuple[float, int]]:
    try:
        # np.load leaves a file of its own open where the container is damaged; the container checks each array's CRC
        with part.open("rb") as file, np.load(file) as arrays:
            keys, totals, counts = arrays["keys"], arrays["totals"], arrays["num_tokens"]
        return {k.decode(): (t, n) for k, t, n in zip(keys, totals.tolist(), counts.tolist(), strict=True)}
    except _UNREADABLE as error:
        logger.warning("%s is damaged (%s); its answers are computed again", part, one_line(error))
        part.unlink(missing_ok=True)  # another rank may have been faster
        return {}
