"""Sampling from a server in place of the model in memory; vLLM is told which adapter to load."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.generation import Generated
from cwdpo.negatives.conversation import messages_of
from cwdpo.negatives.endpoint import Endpoint, EndpointError
from cwdpo.negatives.sampling import Sampling

logger = logging.getLogger(__name__)


class ServerSampler:
    """Draws from an OpenAI-compatible server; see :class:`cwdpo.negatives.sampling.Sampler`."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling) -> None:
        self.endpoint, self.sampling = endpoint, sampling

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """``k`` answers a row; none for rows that the server failed for, which are counted in a warning.

        Raises:
            EndpointError: it failed for every row, or is dead.
        """
        found: list[list[Generated]] = [[] for _ in rows]
        missed = 0
        for place, answers in self.endpoint.map(lambda item: self._ask(item[1], seed + item[0]), enumerate(rows)):
            found[place] = answers or []
            missed += answers is None
        if missed:
            message = f"{self.endpoint.url} gave no answer for {missed} of {len(rows)} prompts"
            if missed == len(rows):
                raise EndpointError(f"{message}.")
            logger.warning("%s", message)
        return found

    def _ask(self, row: Row, seed: int) -> list[Generated]:
        how = self.sampling
        replies = self.endpoint.chat(
            messages_of(row),
            n=how.k,
            temperature=how.temperature,
            top_p=how.top_p,
            max_tokens=how.max_new_tokens,
            seed=seed % 2**31,
        )
        return [Generated(reply.text, reply.ended) for reply in replies]


def swap_adapter(endpoint: Endpoint, name: str, directory: Path) -> None:
    """Have vLLM serve an adapter, and ask for it from now on; the one before is unloaded.

    The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and see the directory.

    Raises:
        EndpointError: it refused.
    """
    endpoint.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(directory.resolve())})
    before, endpoint.adapter = endpoint.adapter, name
    if before is not None:
        try:
            endpoint.post("/unload_lora_adapter", {"lora_name": before})
        except EndpointError as error:
            logger.warning("the last adapter stays loaded: %s", error)
