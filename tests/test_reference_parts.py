"""The cached reference on disk: a save costs the same however many parts there are."""

from pathlib import Path
from typing import Any

import pytest

from cwdpo.reference import ReferenceCache


def test_parts_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for session in range(2):
        cache = ReferenceCache(tmp_path, of_model="m")
        looked: list[str] = []
        glob = Path.glob

        def spy(self: Path, pattern: str, looked: list[str] = looked, glob: Any = glob) -> Any:
            looked.append(pattern)
            return glob(self, pattern)

        monkeypatch.setattr(Path, "glob", spy)
        for number in range(3):
            cache.add([f"{session}{number}".ljust(32, "a")], [-1.0], [2])
            cache.save()
        monkeypatch.undo()
        assert looked == ["part-000-*.npz"]
    assert len(list(tmp_path.glob("part-000-*.npz"))) == 6
    assert len(ReferenceCache(tmp_path, of_model="m")) == 6
