"""Ask a model about images, one question at a time, beside the model that it was tuned from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from torch import nn
from transformers import ProcessorMixin

from cwdpo.contents import IMAGES, kind_of, refusal
from cwdpo.data.images import verify_image
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import UserError
from cwdpo.evaluation.run import started_from
from cwdpo.generation import generate_answers
from cwdpo.models.adapters import load_checkpoint
from cwdpo.models.naming import find_checkpoint
from cwdpo.records import RunDirectory


class Model(NamedTuple):
    """A model to ask, and its processor."""

    policy: nn.Module
    processor: ProcessorMixin
    without_adapters: bool = False
    """Whether its adapters are switched off for an answer: so one model in memory is both tuned and base."""


@dataclass
class Chat:
    """Models that answer the same questions, by what they are called; and the images that are asked about."""

    models: Mapping[str, Model]
    max_new_tokens: int = 256
    temperature: float | None = None
    """None takes the most likely tokens."""

    seed: int = 0
    images: list[Path] = field(default_factory=list)

    def show(self, paths: list[Path], *, source: str = "--image") -> None:
        """Ask about these images from now on; a UserError, which names the ``source``, where one cannot be read."""
        check_images(paths, source=source)
        self.images = paths

    def ask(self, question: str) -> Iterator[tuple[str, str]]:
        """Each model's answer to a question about the images, with its name. Questions do not know of each other."""
        parts: tuple[str | ImageSlot, ...] = (*(ImageSlot() for _ in self.images), question)
        row = Row(prompt=(Message("user", parts),), chosen="", images=tuple(self.images))
        for name, model in self.models.items():
            yield name, self._answer(model, row)

    def _answer(self, model: Model, row: Row) -> str:
        if model.without_adapters:
            assert isinstance(model.policy, PeftModel)
            with model.policy.disable_adapter():
                return self._answer(model._replace(without_adapters=False), row)
        (answer,) = generate_answers(
            model.policy,
            model.processor,
            [row],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            warn_of_cut=False,
        )
        return answer


def check_images(paths: Sequence[Path], *, source: str) -> None:
    """A UserError, which begins with the ``source``, for the first path that is not an image that can be read."""
    for path in paths:
        if not path.is_file() or kind_of(path) not in ("an image", "a file"):
            raise UserError(f"{source}: {refusal(path, IMAGES)}")
        verify_image(path, source=source)


def load_models(name: str, *, with_base: bool, base: str | None = None) -> dict[str, Model]:
    """A run's last stage, a checkpoint or a hub model as ``tuned``, and what it was tuned from as ``base``.

    The base of adapters is the same model without them. A UserError where there is no base to be found.
    """
    directory = Path(name)
    source = find_checkpoint(name)
    if with_base and base is None and not (Path(source) / "adapter_config.json").is_file():
        base = started_from(directory) if RunDirectory(directory).recipe.is_file() else None
        if base is None:
            raise UserError(f"{name} does not say what it was tuned from. Give it: --against MODEL.")
    policy, processor = load_checkpoint(source)
    models = {}
    if base is not None:
        models["base"] = Model(*load_checkpoint(find_checkpoint(base)))
    elif with_base:
        models["base"] = Model(policy, processor, without_adapters=True)
    return {**models, "tuned": Model(policy, processor)}
