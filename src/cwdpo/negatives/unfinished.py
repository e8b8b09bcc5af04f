"""Long work on a file of rows that may break off: what is done is kept beside the output, and done once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from cwdpo.data.reading import resolve_root
from cwdpo.errors import UserError
from cwdpo.records.files import append_jsonl, read_jsonl

_BLOCK = 2**20


class Unfinished:
    """Results by row number in ``OUT.partial``, until the output can be written whole."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Take up what an earlier call left.

        Args:
            out: the file to be.
            settings: what the results follow from, JSON types only; another call must have the same.

        Raises:
            UserError: the earlier call was another one.
        """
        self.path = out.with_name(f"{out.name}.partial")
        self.done: dict[int, dict[str, Any]] = {}
        lines = read_jsonl(self.path).objects
        if not lines:
            append_jsonl(self.path, [{"settings": settings}])
        elif lines[0].get("settings") != settings:
            raise UserError(
                f"{self.path}: was left by a call with other settings or other data. Repeat that call to finish it, or "
                "delete the file to begin anew."
            )
        for line in lines[1:]:
            if isinstance(line.get("number"), int):
                self.done[line["number"]] = line["result"]

    def add(self, number: int, result: Mapping[str, Any]) -> None:
        """Keep one row's result, at once on disk."""
        self.done[number] = dict(result)
        append_jsonl(self.path, [{"number": number, "result": result}])

    def close(self) -> None:
        """Forget it, once the output is written."""
        self.path.unlink(missing_ok=True)


def what_was_read(data: Path, image_root: Path | None) -> dict[str, Any]:
    """What tells a data set from one with other rows or pictures under the same name: a hash of its content."""
    content = xxhash.xxh3_128()
    for file in sorted(path for path in data.rglob("*") if path.is_file()) if data.is_dir() else [data]:
        content.update(str(file.relative_to(data)).encode("utf-8", "surrogateescape"))
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                content.update(block)
    return {"data": content.hexdigest(), "image_root": str(resolve_root(data, image_root).resolve())}
