"""The policy, sampled from a server that is given its adapter at every refresh."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from peft import PeftModel

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.negatives.endpoint import Endpoint
from cwdpo.negatives.sampling import Sampling
from cwdpo.negatives.serving import ServerSampler, swap_adapter
from cwdpo.trainers.refreshing import RefreshError


class ServedPolicy:
    """A sampler that first hands over the adapter; see :class:`cwdpo.negatives.sampling.Sampler`."""

    def __init__(self, model: Any, endpoint: Endpoint, sampling: Sampling, directory: Path) -> None:
        """Set up; nothing is sent yet.

        Args:
            model: the policy, with an adapter.
            endpoint: the server, which runs its base model.
            sampling: how to draw.
            directory: where adapters are put for the server to read.

        Raises:
            ConfigError: the policy has no adapter that could be handed over.
        """
        if not isinstance(model, PeftModel):
            raise ConfigError(
                "negatives.endpoint needs `model: {lora: ...}`: a server can be told to load an adapter, not a whole "
                "model. Add lora, or take the endpoint out."
            )
        self.model, self.endpoint, self.directory = model, endpoint, directory
        self._server = ServerSampler(endpoint, sampling)

    def hand_over(self, number: int, *, is_main: bool) -> None:
        """Give the server the adapter as it is now, under the name ``cwdpo-NUMBER``. All ranks call it.

        Raises:
            RefreshError: it could not be written or loaded.
        """
        name, error = f"cwdpo-{number:05d}", None
        if is_main:
            before, now = (self.directory / f"adapter-{n:05d}" for n in (number - 1, number))
            try:
                self.model.save_pretrained(str(now))
                swap_adapter(self.endpoint, name, now)
                shutil.rmtree(before, ignore_errors=True)
            except Exception as problem:  # the other ranks wait for an answer, and training can go on
                error = f"{type(problem).__name__}: {problem}"
        errors = [told for told in gather_object([error]) if told is not None]
        if errors:
            raise RefreshError(errors[0])
        self.endpoint.adapter = name

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """See :class:`cwdpo.negatives.serving.ServerSampler`."""
        return self._server.sample(rows, seed=seed)
