"""The pass before stage 2: once for every answer, in any order and any batch size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.rows import Row
from cwdpo.reference import ReferenceCache

Make = Callable[..., Any]


class CountingEngine:
    """Counts what the trainer asks of its engine."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.report = engine, engine.report
        self.answers: list[int] = []
        self.rows: list[int] = []
        self.tokens: list[int] = []

    def logprobs(self, model: Any, batch: Any, **want: Any) -> Any:
        self.answers.append(len(batch["keys"]))
        self.rows.append(len(batch["prompts"]))
        self.tokens.append(int(batch["answer_mask"].sum(dim=1).max()))
        return self.engine.logprobs(model, batch, **want)


def measured(make_trainer: Make, **settings: Any) -> Any:
    trainer = make_trainer(2, **settings)
    trainer.engine = CountingEngine(trainer.engine)
    trainer.measure_reference()
    return trainer


def entries(trainer: Any) -> dict[str, tuple[float, int]]:
    return dict(trainer.reference._entries)


def parts(trainer: Any) -> list[Path]:
    return sorted(Path(trainer.args.output_dir, "reference").glob("part-*.npz"))


@pytest.mark.slow
def test_a_second_start_computes_nothing(make_trainer: Make) -> None:
    first = measured(make_trainer)
    assert sum(first.engine.answers) == 3 * 16  # chosen, rejected, gentle
    second = measured(make_trainer)
    assert second.engine.answers == []
    assert entries(second) == entries(first)
    assert second.floor == first.floor
    assert len(parts(second)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_part_is_computed_again(damage: str, make_trainer: Make, caplog: Any) -> None:
    first = measured(make_trainer)
    (part,) = parts(first)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes({"cut": content[:-50], "flipped": content, "emptied": b""}[damage])
    second = measured(make_trainer)
    assert "damaged" in caplog.text
    assert sum(second.engine.answers) == 3 * 16
    assert entries(second) == entries(first)
    assert measured(make_trainer).engine.answers == []


def test_a_lost_part_does_not_cost_the_others(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, of_model="m")
    for key in ("a", "b", "c"):
        cache.add([key], [-1.0], [2])
        cache.save()
    (tmp_path / "part-000-00000.npz").write_bytes(b"")
    again = ReferenceCache(tmp_path, of_model="m")
    assert again.missing(["a", "b", "c"]) == [0]
    again.add(["a"], [-1.0], [2])
    again.save()
    assert ReferenceCache(tmp_path, of_model="m").missing(["a", "b", "c"]) == []


def test_only_new_answers_are_computed(make_trainer: Make, rows: list[Row]) -> None:
    first = measured(make_trainer)
    fresh = [replace(row, rejected=(*row.rejected, "A fresh one.")) if i < 2 else row for i, row in enumerate(rows)]
    second = measured(make_trainer, train_rows=fresh)
    assert sum(second.engine.answers) == 2
    old = entries(first)
    assert {key: value for key, value in entries(second).items() if key in old} == old


@pytest.mark.slow
def test_batch_size_and_order_do_not_matter(make_trainer: Make, rows: list[Row]) -> None:
    one = measured(make_trainer, out="one", reference_batch_size=1)
    five = measured(make_trainer, out="five", reference_batch_size=5, per_device_eval_batch_size=2)
    eight = measured(make_trainer, out="eight", train_rows=rows[::-1])  # the evaluation batch size
    assert one.engine.rows == [1] * 16
    assert five.engine.rows == [5, 5, 5, 1]
    assert eight.engine.rows == [8, 8]
    for other in (five, eight):
        assert entries(other).keys() == entries(one).keys()
        for key, (total, tokens) in entries(one).items():
            assert entries(other)[key] == (pytest.approx(total, abs=1e-4), tokens)
        assert other.floor == pytest.approx(one.floor, abs=1e-6)


def test_rows_of_similar_length_go_together(make_trainer: Make, rows: list[Row]) -> None:
    uneven = [replace(row, chosen=row.chosen + " and so on" * (i % 2 * 10)) for i, row in enumerate(rows)]
    trainer = measured(make_trainer, train_rows=uneven, reference_batch_size=4)
    first, second, third, fourth = trainer.engine.tokens
    assert min(first, second) > max(third, fourth) + 30
