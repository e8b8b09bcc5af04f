"""What tests of on-policy negatives share: samplers with a script, and a record of what training saw."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from cwdpo.batch import Role
from cwdpo.data.rows import Row
from cwdpo.generation import Generated

STEPS: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
SAMPLING = {"max_new_tokens": 12, "k": 2, "temperature": 1.0, "batch_size": 8}


class Scripted:
    """A sampler that writes what its script says, ``n`` counting its calls."""

    def __init__(self, write: Callable[[Row, int], list[str]]) -> None:
        self.write, self.calls = write, 0

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        self.calls += 1
        return [[Generated(text, True) for text in self.write(row, self.calls)] for row in rows]


class Record(TrainerCallback):
    """Remembers the batches that the loss saw, by step."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Any]] = []

    def watch(self, trainer: Any) -> Any:
        inner = trainer.batch_loss

        def spy(model: Any, batch: Any, **kwargs: Any) -> Any:
            if model.training:
                self.batches.append((trainer.state.global_step, batch))
            return inner(model, batch, **kwargs)

        trainer.batch_loss = spy
        return trainer

    def rejected(self, trainer: Any) -> list[tuple[int, int, str]]:
        """``(step, row, text)`` of every rejected answer seen."""
        tokenizer = trainer.processing_class.tokenizer
        found = []
        for step, batch in self.batches:
            for i, role in enumerate(batch["roles"].tolist()):
                if role == Role.REJECTED:
                    row = int(batch["row_index"][batch["prompt_index"][i]])
                    ids = batch["answer_ids"][i][batch["answer_mask"][i]].tolist()
                    found.append((step, row, tokenizer.decode(ids, skip_special_tokens=True).strip()))
        return found


def scripted(trainer: Any, write: Callable[[Row, int], list[str]]) -> Scripted:
    sampler = Scripted(write)
    trainer.on_policy._sampler = sampler
    return sampler


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("power cut")
