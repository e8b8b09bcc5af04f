"""Which answers a probe set asks about, exactly."""

import dataclasses
import io
import random
from typing import get_args

import pytest
from PIL import Image

from cwdpo.config import recipe
from cwdpo.data.rows import Row
from cwdpo.diagnosis.signs import SIGNS
from cwdpo.probes import choose_rows, probe_rows
from cwdpo.probes.probe_set import ProbeAnswer, shuffled_words
from cwdpo.records import PROBE_GROUPS, SIGN_NAMES


def of(rows: list[Row], index: int, **options: object) -> dict[str, ProbeAnswer]:
    answers = probe_rows(rows, seed=3, greedy=["g"] * len(rows), on_policy=["p"] * len(rows), **options)[index].answers  # type: ignore[arg-type]
    assert len({answer.group for answer in answers}) == len(answers)
    return {answer.group: answer for answer in answers}


def test_every_group_of_a_full_row(rows: list[Row]) -> None:
    found, row = of(rows, 1), rows[1]
    assert set(found) == set(PROBE_GROUPS)
    assert {
        name: found[name].text for name in ("chosen", "rejected", "gentle", "longer", "shorter", "greedy", "on_policy")
    } == {
        "chosen": row.chosen,
        "rejected": row.rejected[0],
        "gentle": row.gentle,
        "longer": "In the picture there is a green disc on grey.",
        "shorter": "A green disc.",
        "greedy": "g",
        "on_policy": "p",
    }
    assert found["shuffled"].text != row.chosen
    assert sorted(found["shuffled"].text.split()) == sorted(row.chosen.split())
    assert found["other_answer"].text in {other.chosen for other in rows} - {row.chosen}
    assert found["other_image"].text == found["blank"].text == row.chosen
    assert found["other_image"].images in [other.images for other in rows if other is not row and other.images]
    assert {name for name, answer in found.items() if answer.images is not None} == {"other_image", "blank"}


def test_the_blank_image_is_grey_and_of_the_same_size(rows: list[Row]) -> None:
    wide = dataclasses.replace(rows[0], images=(Image.new("RGB", (40, 24), "red"),))
    images = of([wide, *rows[1:]], 0)["blank"].images
    assert images is not None
    assert isinstance(images[0], bytes)
    image = Image.open(io.BytesIO(images[0]))
    assert image.size == (40, 24)
    assert image.getcolors() == [(40 * 24, (128, 128, 128))]


def test_what_a_row_cannot_have_is_left_out(rows: list[Row]) -> None:
    assert not {"gentle", "longer", "shorter"} & set(of(rows, 2))
    assert not {"other_image", "blank"} & set(of(rows, 4))  # it has no image
    alike = [dataclasses.replace(row, chosen="word") for row in rows]
    assert not {"shuffled", "other_answer", "other_image"} & set(of(alike, 0))
    assert "greedy" not in {answer.group for answer in probe_rows(rows)[0].answers}
    assert not {"other_answer", "other_image"} & set(of(rows[:1], 0))
    same_picture = [dataclasses.replace(row, images=rows[0].images) for row in rows]
    assert "other_image" not in of(same_picture, 0)
    assert "other_answer" in of(same_picture, 0)


def test_wanted_groups_alone(rows: list[Row]) -> None:
    assert set(of(rows, 1, groups={"chosen", "blank"})) == {"chosen", "blank"}


def test_a_seed_gives_the_same_answers_and_another_gives_others(rows: list[Row]) -> None:
    assert probe_rows(rows, seed=5) == probe_rows(rows, seed=5)
    assert probe_rows(rows, seed=5) != probe_rows(rows, seed=6)


def test_chosen_rows_are_a_fixed_sample_in_order(rows: list[Row], caplog: pytest.LogCaptureFixture) -> None:
    assert choose_rows(rows, 9, 0) == rows
    assert caplog.messages == []
    assert choose_rows(rows, 6, 0, asked=True) == rows
    assert caplog.messages == []
    assert choose_rows(rows, 9, 0, asked=True) == rows
    assert caplog.messages == ["9 rows are asked for, but there are 6: all of them are used"]
    three = choose_rows(rows, 3, 0)
    assert three == [row for row in rows if row in three]
    assert len(three) == 3
    assert three == choose_rows(rows, 3, 0)
    assert any(choose_rows(rows, 3, seed) != three for seed in range(1, 6))


@pytest.mark.parametrize("text", ["a a", "word", ""])
def test_words_without_another_order(text: str) -> None:
    assert shuffled_words(text, random.Random(0)) is None


def test_names_are_the_same_in_every_layer() -> None:
    assert tuple(sign.name for sign in SIGNS) == SIGN_NAMES
    assert get_args(recipe.ProbesConfig.__annotations__["groups"])
