"""The cached reference: its parts on disk, whose they are, and what it knows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cwdpo.errors import UserError
from cwdpo.negatives.candidates import Candidate, Refresh
from cwdpo.on_policy.pool import NegativePool
from cwdpo.reference import ReferenceCache
from cwdpo.trainers import reference_pass
from cwdpo.trainers.reference_pass import ReferencePass


def batch_of(*keys: str) -> Any:
    """Answers of rows 5, 6 and so on, one each."""
    return {
        "keys": list(keys),
        "row_index": np.arange(5, 5 + len(keys)),
        "prompt_index": np.arange(len(keys)),
        "answer_ids": torch.zeros(len(keys), 1),
    }


def test_an_unknown_answer_is_the_users_to_explain() -> None:
    cache = ReferenceCache.in_memory()
    cache.add(["a"], [-1.0], [2])
    with pytest.raises(UserError, match=r"row 6 .*random transform.*`reference: live`"):
        cache.totals(batch_of("a", "b"))


def test_parts_without_their_header_are_no_models(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, of_model="m")
    cache.add(["a"], [-1.0], [2])
    cache.save()
    (tmp_path / "cache.json").unlink()
    for model in ("m", "another"):
        with pytest.raises(UserError, match=r"have no cache\.json, so that it is not known .* Delete that directory"):
            ReferenceCache(tmp_path, of_model=model)
    (tmp_path / "part-000-00000.npz").unlink()
    assert len(ReferenceCache(tmp_path, of_model="another")) == 0


def test_a_pool_takes_the_place_of_the_one_before_and_of_no_rows_answer(tmp_path: Path) -> None:
    def pool(number: int, *keys: str) -> NegativePool:
        found = [Candidate(0, "r", key, ids=[1], key=key, reference_logprob=-10.0 * number) for key in keys]
        return NegativePool(Refresh(number=number, step=0, epoch=0.0, seed=0, details={}, error=None, candidates=found))

    cache = ReferenceCache(tmp_path, of_model="m")
    cache.add(["own"], [-1.0], [2])
    pool(1, "own", "old", "both").add_to(cache)
    assert cache.totals(batch_of("own", "old", "both")).tolist() == [-1.0, -10.0, -10.0]
    pool(2, "new", "both").add_to(cache)
    assert cache.totals(batch_of("own", "new", "both")).tolist() == [-1.0, -20.0, -20.0]
    with pytest.raises(UserError, match="row 5"):
        cache.totals(batch_of("old"))
    cache.save()
    assert len(ReferenceCache(tmp_path, of_model="m")) == 1


def test_ranks_that_see_different_directories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(directory: str, rank: int, key: str) -> ReferenceCache:
        made = ReferenceCache(tmp_path / directory, of_model="m", rank=rank)
        made.add([key], [-1.0], [2])
        made.save()
        return made

    def share(*ranks: ReferenceCache) -> None:
        for each in ranks:
            each.reload()
        monkeypatch.setattr(reference_pass, "gather_object", lambda _: [each.digest() for each in ranks])
        accelerator = SimpleNamespace(wait_for_everyone=lambda: None, num_processes=2)
        trainer: Any = SimpleNamespace(encoder=None, accelerator=accelerator)
        ReferencePass(trainer, ranks[0], batch_size=1, progress=lambda *_: None)._share()

    share(cache("shared", 0, "a"), cache("shared", 1, "b"))
    with pytest.raises(UserError, match=r"ranks do not see the same directory .*`output_dir`"):
        share(cache("one", 0, "a"), cache("other", 1, "b"))
    share(ReferenceCache.in_memory(), ReferenceCache.in_memory())


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
