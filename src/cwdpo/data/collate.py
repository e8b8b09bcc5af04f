"""Rows to batches of prompts and answers; and how long rows are, estimated without encoding them."""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from cwdpo.batch import Batch, Role, hash_tensors, image_key, pad_answers
from cwdpo.data.arrow import SavedTable
from cwdpo.data.encode import Encoder
from cwdpo.data.formats import row_from_record
from cwdpo.data.image_roots import GivenRoots, ImageRoots, parse_roots
from cwdpo.data.images import open_image, random_crop
from cwdpo.data.rows import ImageSource, Row, StoredImage
from cwdpo.errors import ConfigError, DataError, shortened, what_is

_KEYS = {Role.CHOSEN: "chosen", Role.REJECTED: "rejected", Role.GENTLE: "gentle"}

_SAMPLE = 24
"""Rows that are encoded to learn how many tokens a character and a pixel become."""


class RowDataset(Dataset[tuple[int, Row]]):
    """Rows with their position, from rows already read or from records of any known format, read when asked for."""

    def __init__(
        self,
        rows: Sequence[Row | Mapping[str, Any]] | datasets.Dataset,
        *,
        image_root: GivenRoots = None,
        name: str = "train_dataset",
    ) -> None:
        """Wrap anything with a length and an index; a stream, or several splits, is a ``ConfigError``.

        Without an ``image_root`` relative paths start at the working directory, as they do for ``datasets``; ``name``
        is what messages call the data.
        """
        if isinstance(rows, Mapping):
            names = [str(key) for key in rows]
            advice = f"Give one of them: {name}=dataset[{names[0]!r}]." if names else "Give rows."
            raise ConfigError(
                f"{name} is a {type(rows).__name__}, with the splits {', '.join(names) or '(none)'}. {advice}"
            )
        if isinstance(rows, str | bytes | Path):
            raise ConfigError(
                f"{name} is the name {shortened(str(rows))!r}, and not rows. Load them, with "
                f"cwdpo.data.reading: {name}=read_rows({shortened(str(rows))!r})."
            )
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise ConfigError(
                f"{name} is {what_is(rows)}, which has no rows to count. Give one split, loaded whole: "
                "load_dataset(..., split='train') without streaming."
            )
        # in other formats than a transform's own, datasets would decode images itself, past our limits
        is_stored = isinstance(rows, datasets.Dataset) and rows.format["type"] != "custom"
        self._rows: Any = SavedTable(rows) if is_stored else rows
        self._roots = ImageRoots(Path.cwd(), anywhere=True) if image_root is None else parse_roots(image_root)
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, Row]:
        """The index and the row there; messages about a wrong record name the data set and the index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._rows[index]
        if isinstance(record, Row):
            return index, record
        return index, row_from_record(record, source=f"{self._name}[{index}]", roots=self._roots)


class AnswerCollator:
    """Encode rows and lay them out as a :class:`Batch`. Each image is opened and processed once for all answers.

    ``roles`` are the answers of each prompt, in this order; a row without one of them is passed on without it, unless
    it is among those ``required``. With ``crops`` a batch also has its prompts under crops of their images.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        roles: Sequence[Role] = (Role.CHOSEN, Role.REJECTED, Role.GENTLE),
        required: Collection[Role] = (),
        crops: bool = False,
    ) -> None:
        self.encoder = encoder
        self.roles, self.required, self.crops = tuple(roles), tuple(required), crops

    def __call__(self, items: Sequence[tuple[int, Row]]) -> Batch:
        """A batch of rows, with positions. A ``DataError`` names a row that lacks an answer or cannot be encoded."""
        batch = self._batch([(index, row, self._answers(row)) for index, row in items])
        pictured = [(index, row) for index, row in items if row.images] if self.crops else []
        if pictured:
            batch["cropped"] = self._batch(
                [(index, with_crops(row), [(Role.CHOSEN, row.chosen)]) for index, row in pictured]
            )
        return batch

    def _batch(self, items: Sequence[tuple[int, Row, Sequence[tuple[Role, str]]]]) -> Batch:
        """Rows with positions and the answers that take part."""
        prompts: list[dict[str, Tensor]] = []
        answers: list[list[int]] = []
        owners: list[int] = []
        roles: list[int] = []
        keys: list[str] = []
        for _, row, chosen in items:
            encoded = self.encoder.encode(row, [text for _, text in chosen])
            digest = prompt_digest(encoded.prompt)
            owners += [len(prompts)] * len(chosen)
            prompts.append(encoded.prompt)
            answers += encoded.answers
            roles += [int(role) for role, _ in chosen]
            keys += [answer_key(digest, ids) for ids in encoded.answers]
        ids, mask = pad_answers(answers)
        return Batch(
            row_index=np.array([index for index, *_ in items]),
            prompts=prompts,
            prompt_index=np.array(owners),
            roles=np.array(roles),
            lengths=np.array([len(ids) for ids in answers]),
            answer_ids=ids,
            answer_mask=mask,
            keys=keys,
            image_keys=[image_key(prompt) for prompt in prompts],
        )

    def _answers(self, row: Row) -> list[tuple[Role, str]]:
        """The row's answers that take part, in the order of the roles."""
        texts = {
            Role.CHOSEN: (row.chosen,),
            Role.REJECTED: row.rejected,
            Role.GENTLE: () if row.gentle is None else (row.gentle,),
        }
        found = [(role, text) for role in self.roles for text in texts[role]]
        missing = [_KEYS[role] for role in self.required if not texts[role]]
        if missing or not found:
            names = " or ".join(f"`{name}`" for name in missing or map(_KEYS.__getitem__, self.roles))
            raise DataError(f"{row.source}: the row has no {names}, which this stage trains on. Add it.")
        return found


def with_crops(row: Row) -> Row:
    """The row under a small crop of each of its images, the same at every call: a cached reference knows its answer."""
    opened = [open_image(image, source=row.source) for image in row.images]
    seeds = (xxhash.xxh3_128_hexdigest(image.tobytes()) for image in opened)
    return replace(row, images=tuple(random_crop(image, seed=seed) for image, seed in zip(opened, seeds, strict=True)))


def prompt_digest(prompt: Mapping[str, Tensor]) -> bytes:
    """Hash of everything the model is given of a prompt: names, types, shapes and content of its tensors."""
    return hash_tensors(sorted(prompt.items())).digest()


def answer_key(prompt: bytes, ids: Sequence[int]) -> str:
    """Content key of an answer: 32 hexadecimal digits, equal for equal prompts with equal answer tokens."""
    return xxhash.xxh3_128_hexdigest(prompt + torch.tensor(ids, dtype=torch.int64).numpy().tobytes())


def estimate_lengths(
    row_at: Callable[[int], Row], number: int, count_tokens: Callable[[Row], int], *, answers: bool = True
) -> list[int]:
    """Tokens of each of a number of rows, with or without its answers, by a linear rule fitted to a few rows that
    ``count_tokens`` counts exactly. Rows are asked for one at a time and not kept, as they may hold images.

        tokens = a + b * characters + c * images + d * pixels

    Good enough to put rows of similar length together, and for nothing else: a processor that bounds or rounds the
    sizes of images does not follow a linear rule. Images are opened for their size alone.
    """
    if not number:
        return []
    known: dict[Path, int] = {}  # of files that many rows share
    facts = np.empty((number, 4))
    for place in range(number):
        facts[place] = _facts(row_at(place), answers, known)
    by_size = np.lexsort(facts.T)
    sample = by_size[np.unique(np.linspace(0, number - 1, min(_SAMPLE, number)).astype(int))]
    exact = np.array([count_tokens(row_at(int(i))) for i in sample], dtype=np.float64)
    scale = np.maximum(facts.max(axis=0), 1.0)
    # a little of each coefficient's square keeps what the sample cannot separate from growing without bound
    design = np.vstack([facts[sample] / scale, 1e-3 * np.eye(facts.shape[1])])
    rule, *_ = np.linalg.lstsq(design, np.concatenate([exact, np.zeros(facts.shape[1])]), rcond=None)
    found: list[int] = np.maximum(np.rint(facts / scale @ rule), 1).astype(int).tolist()
    return found


def _facts(row: Row, answers: bool, known: dict[Path, int]) -> tuple[float, ...]:
    """1, characters, images and pixels of a row; those of files are looked up, or remembered, in ``known``."""
    texts = [row.chosen, *row.rejected, row.gentle or ""] if answers else []
    texts += [part for message in row.prompt for part in message.parts if isinstance(part, str)]
    for image in row.images:
        if isinstance(image, Path) and image not in known:
            known[image] = _pixels(image)
    pixels = sum(known[image] if isinstance(image, Path) else _pixels(image) for image in row.images)
    return 1.0, float(sum(map(len, texts))), float(len(row.images)), float(pixels)


def _pixels(image: ImageSource) -> int:
    """Width times height, from the file's header; 0 where it cannot be read, which encoding the row will report."""
    try:
        if isinstance(image, Image.Image):
            return image.width * image.height
        if isinstance(image, StoredImage):
            image = image.read()
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            return opened.width * opened.height
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return 0
