"""How far a model gets on preference pairs without the right image: with none, with a grey one, with another row's."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from accelerate.utils import send_to_device
from PIL import Image

from cwdpo.batch import Role
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Message, Row
from cwdpo.engine import make_engine
from cwdpo.evaluation.audit.clues import MUCH, Pairs, Shortcut, Warned, percent
from cwdpo.evaluation.intervals import Estimate
from cwdpo.models.adapters import load_checkpoint
from cwdpo.models.parts import model_limits
from cwdpo.probes.measuring import undisturbed

View: TypeAlias = Literal["its image", "no image", "a grey image", "another row's image"]
"""What a model is shown beside the question."""

VIEWS: tuple[View, ...] = get_args(View)
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class BlindReading:
    """How often a model finds the chosen answer of a pair more likely, under one view; ties count half."""

    view: View
    by_total: Estimate
    """By log-prob of the whole answer, as DPO's reward is summed."""

    by_mean: Estimate
    """By log-prob per token; with no image, this is "the more fluent"."""


def measure_blind(
    model: str,
    rows: Sequence[Row],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[BlindReading], Callable[[str], int]]:
    """Compare the log-probs of both answers of each pair under every view.

    Args:
        model: a checkpoint (adapters too) or a hub name.
        rows: with rejected answers. Rows without an image count under ``its image`` and ``no image`` alone.
        batch_size: rows at one time.
        progress: called with rows done, all views counted, and of how many.

    Returns:
        A reading of each view that any row has, and the model's way to count the tokens of a text.
    """
    pairs = Pairs(rows)
    policy, processor = load_checkpoint(model)
    encoder = Encoder(processor, limits=model_limits(policy))
    collate = AnswerCollator(encoder, roles=(Role.CHOSEN, Role.REJECTED))
    engine = make_engine()
    readings = []
    done, total = 0, len(VIEWS) * len(pairs.rows)
    with undisturbed(policy) as device:
        for view in VIEWS:
            seen = [shown for place in range(len(pairs.rows)) if (shown := _seen(pairs.rows, place, view)) is not None]
            points: list[np.ndarray] = []
            for start in range(0, len(seen), batch_size):
                batch = send_to_device(collate(list(enumerate(seen[start : start + batch_size]))), device)
                scored = engine.logprobs(policy, batch)
                numbers = np.stack([scored.total.double().cpu().numpy(), scored.mean.double().cpu().numpy()])
                points += list(_points(numbers, batch["roles"], batch["prompt_index"]))
                done += len(seen[start : start + batch_size])
                progress(done, total)
            if seen:
                of_view, won = Pairs(seen), np.concatenate(points, axis=1)
                readings.append(BlindReading(view, of_view.share(won[0]), of_view.share(won[1])))
            done = total * (VIEWS.index(view) + 1) // len(VIEWS)
            progress(done, total)
    return readings, lambda text: len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def shortcuts_of(readings: Sequence[BlindReading]) -> list[Shortcut]:
    """The rules that these readings are, for the table of shortcuts: the answer with the higher sum, or mean, of its
    tokens' log-probs."""
    return [
        Shortcut(f"model with {reading.view}, {by}", won)
        for reading in readings
        for by, won in (("sum", reading.by_total), ("mean", reading.by_mean))
    ]


def warnings_of(readings: Sequence[BlindReading]) -> list[Warned]:
    """A warning where language alone gets far: the answer is found with no image, or with another row's."""
    by_view = {reading.view: reading for reading in readings}
    its_own = by_view.get("its image")
    found = []
    for view in ("no image", "another row's image"):
        reading = by_view.get(view)
        best = None if reading is None else max(reading.by_total, reading.by_mean, key=lambda one: one.low)
        if best is not None and its_own is not None and best.low > MUCH:
            found.append(
                Warned(
                    f"with {view}",
                    f"with {view} the model prefers the chosen answer in {percent(best)} of pairs (with its own image "
                    f"in {percent(its_own.by_total)} by the whole answer, {percent(its_own.by_mean)} per token).",
                    "The pairs can be won without looking. Add rejected answers that are as plausible, and wrong in "
                    "what the image shows: `cwdpo negatives gentle`, or `cwdpo negatives sample` with a judge. Reward "
                    "accuracy on such pairs does not show that the model sees.",
                )
            )
    return found


def _seen(rows: Sequence[Row], place: int, view: View) -> Row | None:
    """A row under a view; None where it has no such view."""
    row = rows[place]
    if view == "its image":
        return row
    if view == "no image":
        prompt = tuple(
            Message(message.role, tuple(part for part in message.parts if isinstance(part, str)))
            for message in row.prompt
        )
        return replace(row, prompt=prompt, images=())
    if not row.images:
        return None
    if view == "a grey image":
        return replace(row, images=tuple(_grey(image, row.source) for image in row.images))
    others = (rows[(place + step) % len(rows)] for step in range(1, len(rows)))
    other = next((one for one in others if len(one.images) == len(row.images) and one.images != row.images), None)
    return None if other is None else replace(row, images=other.images)


def _grey(image: ImageSource, source: str) -> bytes:
    """A grey image of the same size, as a file in memory."""
    file = io.BytesIO()
    Image.new("RGB", open_image(image, source=source).size, _GREY).save(file, format="PNG")
    return file.getvalue()


def _points(numbers: np.ndarray, roles: np.ndarray, prompt: np.ndarray) -> Iterator[np.ndarray]:
    """``(2, pairs)`` points of each prompt's pairs, by total and by mean, in the order of its rejected answers.

    Args:
        numbers: ``(2, answers)`` log-probs.
        roles: ``(answers,)`` of :class:`cwdpo.batch.Role`.
        prompt: ``(answers,)`` which prompt an answer belongs to.
    """
    for number in np.unique(prompt):
        own = prompt == number
        chosen, rejected = numbers[:, own & (roles == Role.CHOSEN)], numbers[:, own & (roles == Role.REJECTED)]
        yield (1 + np.sign(chosen - rejected)) / 2
