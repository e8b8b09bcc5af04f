"""The data set that the emoji example writes: same seed, same files; gentle negatives are gentle; splits are apart."""

import filecmp
import json
import re
from pathlib import Path
from typing import Any

import build
import emoji_glyphs
import pytest
from made_up import made_up_emoji
from PIL import Image

from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError

TONE = re.compile(r"(?:: |, )?((?:medium-)?(?:light|medium|dark)) skin tone")


def load(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def facts(name: str) -> tuple[str, str, str]:
    """Who, what and tone of the made-up names, read with nothing of the example's own."""
    tone = TONE.search(name)
    words = TONE.sub("", name).split()
    who = words.pop(0) if words[0] in ("woman", "man") else "person"
    return who, " ".join(words), tone[1] if tone else "none"


def test_same_seed_writes_the_same_files(data: Path, tmp_path: Path) -> None:
    build.write_data(tmp_path, made_up_emoji())
    files = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    same, unlike, failed = filecmp.cmpfiles(data, tmp_path, files, shallow=False)
    assert (len(same), unlike, failed) == (len(files), [], [])


def test_another_seed_splits_otherwise(data: Path, tmp_path: Path) -> None:
    build.write_data(tmp_path, made_up_emoji(), seed=1)
    assert {row["chosen"] for row in load(data / "eval.jsonl")} != {
        row["chosen"] for row in load(tmp_path / "eval.jsonl")
    }


@pytest.mark.parametrize("file", ["train.jsonl", "eval.jsonl"])
def test_gentle_negatives_differ_in_exactly_one_attribute(data: Path, file: str) -> None:
    rows = load(data / file)
    gentle = [(row["chosen"], row["gentle"]) for row in rows]
    gentle += [(row["chosen"], row["rejected"]) for row in rows if row["kind"] == "gentle"]
    for chosen, negative in gentle:
        assert sum(a != b for a, b in zip(facts(chosen), facts(negative), strict=True)) == 1, (chosen, negative)


def test_easy_negatives_are_wrong(data: Path) -> None:
    for row in load(data / "train.jsonl") + load(data / "eval.jsonl"):
        assert row["rejected"] != row["chosen"]
        if row["kind"] == "shuffled":
            assert sorted(row["rejected"].split()) == sorted(row["chosen"].split())


def test_most_rejected_answers_are_easy(data: Path) -> None:
    kinds = [row["kind"] for row in load(data / "train.jsonl")]
    assert 0.55 < sum(kind != "gentle" for kind in kinds) / len(kinds) < 0.85
    assert "gentle" not in {row["kind"] for row in load(data / "eval.jsonl")}


def test_no_image_is_in_two_files(data: Path) -> None:
    images = [{row["images"][0] for row in load(data / f"{split}.jsonl")} for split in ("pretrain", "train", "eval")]
    assert all(images)
    assert sum(map(len, images)) == len(set.union(*images)) == len(made_up_emoji())


def test_things_without_family_are_only_for_pretraining(data: Path) -> None:
    names = {row["chosen"] for split in ("train", "eval") for row in load(data / f"{split}.jsonl")}
    assert names.isdisjoint({"taco", "flag: France", "flag: Chad"})


def test_rows_are_rows_of_the_package(data: Path) -> None:
    rows = read_rows(data / "train.jsonl")
    assert len(rows) == 3 * len({row.chosen for row in rows})
    with Image.open(rows[0].images[0]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_missing_packages_are_named_with_the_command(tmp_path: Path) -> None:
    font = tmp_path / emoji_glyphs.FONT
    font.parent.mkdir(parents=True)
    font.touch()
    with pytest.raises(UserError, match="not installed: unicode-cldr-core, unicode-data ") as error:
        emoji_glyphs.require_packages(tmp_path)
    assert str(error.value).endswith("Run: apt-get install unicode-cldr-core unicode-data")
    assert "\n" not in str(error.value)


def test_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "require_packages", lambda: emoji_glyphs.require_packages(tmp_path))
    monkeypatch.setattr("sys.argv", ["build.py", "--out", str(tmp_path / "out")])
    assert build.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_debian_draws_each_emoji_and_leaves_out_what_two_names_share() -> None:
    try:
        emoji_glyphs.require_packages()
    except UserError as error:
        pytest.skip(str(error))
    wanted = {"flag: Norway", "flag: Bouvet Island", "woman firefighter: medium-dark skin tone", "firefighter"}
    emoji = [one for one in emoji_glyphs.read_emoji() if one.name in wanted]
    assert {one.name for one in emoji} == wanted
    drawn = {one.name: image for one, image in emoji_glyphs.draw_emoji(emoji)}
    assert sorted(drawn) == ["firefighter", "woman firefighter: medium-dark skin tone"]
    for image in drawn.values():
        assert image.size == (136, 128)
        colours = image.getcolors(maxcolors=100_000)
        assert colours is not None
        assert len(colours) > 100  # in colour, not an outline or an empty box
