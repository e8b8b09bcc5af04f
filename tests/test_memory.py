"""Passes are as large as there is room for, and give what larger ones would have given."""

import logging
from collections.abc import Sequence

import pytest
import torch

from cwdpo.memory import FittingPasses


def test_what_has_no_room_is_done_in_halves_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def work(portion: Sequence[int]) -> tuple[list[int], float]:
        tried.append(len(portion))
        drawn = torch.rand(()).item()
        if len(portion) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(portion), drawn

    passes = FittingPasses("answers")
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO, logger="cwdpo"):
        found = passes.run(work, range(13))
    assert tried == [13, 6, 3, 3, 3, 3, 1]
    assert [portion for portion, _ in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]
    torch.manual_seed(5)
    assert [drawn for _, drawn in found] == [torch.rand(()).item() for _ in found]  # as if none had failed
    assert [record.getMessage() for record in caplog.records] == [
        "13 answers at one time have no room: 6 from now on",
        "6 answers at one time have no room: 3 from now on",
    ]
    tried.clear()
    passes.run(work, range(4))
    assert tried == [3, 1]


def test_one_item_without_room_is_an_error() -> None:
    def work(portion: Sequence[int]) -> None:
        raise torch.OutOfMemoryError(f"no room for {len(portion)}")

    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        FittingPasses("answers").run(work, range(8))


def test_nothing_to_do_and_all_at_one_time() -> None:
    assert FittingPasses("answers").run(len, []) == []
    assert FittingPasses("answers").run(len, range(100)) == [100]
