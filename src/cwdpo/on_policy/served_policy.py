"""The policy, sampled from a server that is given its adapter at every refresh."""

import logging
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import xxhash
from peft import PeftModel
from torch import nn

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated, Sampling
from cwdpo.negatives.server import (
    Endpoint,
    RefusalError,
    ServerSampler,
    load_adapter,
    load_again,
    unload_adapter,
    unload_left_over,
)
from cwdpo.on_policy.refresh import RefreshError, on_all_ranks

logger = logging.getLogger(__name__)


class ServedPolicy:
    """A sampler that first hands over the adapter; see :class:`cwdpo.generation.Sampler`."""

    def __init__(self, model: nn.Module, endpoint: Endpoint, sampling: Sampling, directory: Path) -> None:
        """Set up; nothing is sent yet. The server runs the model's base, and reads adapters from the directory."""
        if not isinstance(model, PeftModel):
            raise ConfigError(
                "negatives.endpoint needs `model: {lora: ...}`: a server can load an adapter, not a whole model. Add "
                "lora, or take the endpoint out.",
                setting="negatives.endpoint",
            )
        self.model, self.endpoint, self.directory = model, endpoint, directory
        self._server = ServerSampler(endpoint, sampling)
        self._run = f"cwdpo-{_hash(platform.node(), directory.resolve())}-"
        # a name is never used twice: a server keeps adapters, and what it computed for them, by name
        self._start = f"{self._run}{_hash(time.time_ns(), os.getpid())}-"
        self._has_begun = False

    def hand_over(self, number: int, *, is_main: bool) -> None:
        """Give the server the adapter as it is now, under a name of its own. All ranks call it."""
        try:
            names = on_all_ranks(lambda: self._serve(number) if is_main else None)
        except RefreshError:
            if is_main:
                self._remove_directories()
                self._has_begun = False  # it may have been loaded after all
            raise
        self.endpoint.adapter = next(name for name in names if name is not None)
        self._loaded = self._path(number)

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """See :class:`cwdpo.negatives.server.ServerSampler`; a server that was restarted gets the adapter again."""
        try:
            return self._server.sample(rows, seed=seed)
        except RefusalError as error:
            if error.status != 404 or self.endpoint.adapter is None:
                raise
            logger.warning("%s does not know the adapter any more; it is loaded again", self.endpoint.url)
            load_again(self.endpoint, self._loaded)
            return self._server.sample(rows, seed=seed)

    def close(self, *, is_main: bool) -> None:
        """Take the adapter from the server and the disk. Never raises: it also runs after errors."""
        if is_main:
            unload_adapter(self.endpoint, retries=0)
            self._remove_directories()
        self.endpoint.adapter = None

    def _serve(self, number: int) -> str:
        unload_adapter(self.endpoint)
        self._remove_directories()
        if not self._has_begun:
            unload_left_over(self.endpoint, self._run)
            self._has_begun = True
        name, path = f"{self._start}{number:05d}", self._path(number)
        self.model.save_pretrained(str(path))
        load_adapter(self.endpoint, name, path)
        return name

    def _path(self, number: int) -> Path:
        return self.directory / f"adapter-{number:05d}"

    def _remove_directories(self) -> None:
        for left in self.directory.glob("adapter-*"):
            shutil.rmtree(left, ignore_errors=True)


def _hash(*parts: object) -> str:
    return xxhash.xxh3_64_hexdigest("\n".join(map(str, parts)).encode())[:8]
