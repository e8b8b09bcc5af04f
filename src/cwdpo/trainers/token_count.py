"""How many tokens a run has trained on, kept across interruptions."""

from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TokenCount(TrainerCallback, ExportableState):
    """A counter that the Trainer saves with each checkpoint and sets back on resuming."""

    def __init__(self) -> None:
        self.before = 0
        """Tokens on all ranks up to the last log line or checkpoint."""
        self._here = 0

    def add(self, tokens: int) -> None:
        """Count tokens of this rank."""
        self._here += tokens

    def total(self) -> int:
        """Tokens on all ranks. Every rank must call it."""
        self.before += sum(gather_object([self._here]))
        self._here = 0
        return self.before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the count of a resumed run."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        self.before = int(saved["attributes"]["before"]) if isinstance(saved, dict) else 0
        self._here = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring ranks together before a checkpoint, which only rank 0 writes."""
        if control.should_save:
            self.total()

    def state(self) -> dict[str, Any]:
        """See ``ExportableState``."""
        return {"args": {}, "attributes": {"before": self.before}}
