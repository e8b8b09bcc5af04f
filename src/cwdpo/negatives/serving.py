"""Sampling from a server in place of the model in memory; vLLM is told which adapter to load."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.generation import Generated
from cwdpo.negatives.conversation import messages_of
from cwdpo.negatives.endpoint import Endpoint
from cwdpo.negatives.refusals import EndpointError, RefusalError
from cwdpo.negatives.sampling import Sampling

logger = logging.getLogger(__name__)

_ENOUGH = 16
_NEARLY_ALL = 0.9


class ServerSampler:
    """Draws from an OpenAI-compatible server; see :class:`cwdpo.negatives.sampling.Sampler`."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling) -> None:
        self.endpoint, self.sampling = endpoint, sampling
        self._answered = self._alike = 0
        self._has_warned = False

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
        self._look_for_repetition(found)
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
            neutral=True,
        )
        return [Generated(reply.text, reply.ended) for reply in replies]

    def _look_for_repetition(self, found: Sequence[Sequence[Generated]]) -> None:
        """Warn once of a server that says the same thing ``k`` times to nearly every prompt."""
        several = [{answer.text for answer in of_row} for of_row in found if len(of_row) > 1]
        self._answered += len(several)
        self._alike += sum(len(texts) == 1 for texts in several)
        if self._answered >= _ENOUGH and self._alike >= _NEARLY_ALL * self._answered and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s gave %d answers that are all alike to %d of %d prompts. Unless the model is this sure of itself, "
                "the server does not sample: see whether it heeds temperature, n and seed.",
                self.endpoint.url,
                self.sampling.k,
                self._alike,
                self._answered,
            )


def load_adapter(endpoint: Endpoint, name: str, directory: Path) -> None:
    """Have vLLM serve an adapter, and ask for it from now on; the one before is unloaded first.

    The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and see the directory. An
    adapter that it has under this name already is another one, and is replaced.

    Raises:
        EndpointError: it refused.
    """
    unload_adapter(endpoint)
    try:
        _load(endpoint, name, directory)
    except RefusalError as error:
        if not _is_loaded_already(error):
            raise
        # not `load_inplace`: older servers do not know it, and the name would go on standing for cached prompts
        endpoint.post("/unload_lora_adapter", {"lora_name": name})
        _load(endpoint, name, directory)
    endpoint.adapter = name


def load_again(endpoint: Endpoint, directory: Path) -> None:
    """Have a server that was restarted serve the adapter that is asked for; another process may have done so."""
    assert endpoint.adapter is not None
    try:
        _load(endpoint, endpoint.adapter, directory)
    except RefusalError as error:
        if not _is_loaded_already(error):
            raise


def unload_adapter(endpoint: Endpoint, *, retries: int | None = None) -> None:
    """Have vLLM forget the adapter that is asked for, if there is one; that it is unknown there is no error."""
    name, endpoint.adapter = endpoint.adapter, None
    if name is not None:
        _unload(endpoint, name, retries=retries)


def unload_left_over(endpoint: Endpoint, prefix: str) -> None:
    """Have vLLM forget what an earlier process, killed before it could clean up, left loaded."""
    for name in endpoint.models():
        if name.startswith(prefix):
            _unload(endpoint, name)


def _load(endpoint: Endpoint, name: str, directory: Path) -> None:
    try:
        endpoint.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(directory.resolve())})
    except RefusalError as error:
        if error.status != 404:
            raise
        advice = (
            f"It must see the directory {directory.resolve()}."
            if name in error.text or str(directory.resolve()) in error.text
            else "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and check the URL, which ends "
            "in /v1."
        )
        message = f"{endpoint.url} cannot load the adapter: HTTP 404 {error.text[:200]!r}. {advice}"
        raise RefusalError(message, status=error.status, text=error.text, hopeless=True) from error


def _unload(endpoint: Endpoint, name: str, *, retries: int | None = None) -> None:
    try:
        endpoint.post("/unload_lora_adapter", {"lora_name": name}, retries=retries)
    except EndpointError as error:
        if not isinstance(error, RefusalError) or error.status != 404:
            logger.warning("the adapter %s stays loaded: %s", name, error)


def _is_loaded_already(error: RefusalError) -> bool:
    return error.status == 400 and "already been loaded" in error.text
