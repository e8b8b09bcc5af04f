"""The emoji of Debian: their names from Unicode's files and their pictures from the Noto colour font."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from cwdpo.errors import UserError

FONT = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SEQUENCES = Path("usr/share/unicode/emoji/emoji-test.txt")
ANNOTATIONS = Path("usr/share/unicode/cldr/common/annotations/en.xml")
DERIVED = Path("usr/share/unicode/cldr/common/annotationsDerived/en.xml")
PACKAGES = {
    FONT: "fonts-noto-color-emoji",
    SEQUENCES: "unicode-data",
    ANNOTATIONS: "unicode-cldr-core",
    DERIVED: "unicode-cldr-core",
}
WIDTH, HEIGHT = 136, 128
"""Pixels of the font's bitmaps."""

_FONT_SIZE = 109  # the only strike in the file; every other size is refused
_LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (?P<name>.*)")


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji."""

    text: str
    """Its code points as they are typed."""

    name: str
    """Its English name, written by people for Unicode CLDR."""

    group: str
    """``group/subgroup`` in emoji-test.txt."""

    @property
    def file_name(self) -> str:
        """``1f9d1-1f3fb.png``."""
        return "-".join(f"{ord(point):x}" for point in self.text) + ".png"


def require_packages(root: Path = Path("/")) -> None:
    """Raise :class:`UserError` naming what to install if a Debian package is missing."""
    missing = sorted({package for file, package in PACKAGES.items() if not (root / file).is_file()})
    if missing:
        raise UserError(
            f"not installed: {', '.join(missing)} (looked below {root}usr/share). "
            f"Run: apt-get install {' '.join(missing)}"
        )
    if not features.check("raqm"):
        raise UserError(
            "Pillow cannot join emoji sequences here, because it finds no libraqm or FriBiDi. "
            "Run: apt-get install libfribidi0"
        )


def read_emoji(root: Path = Path("/")) -> list[Emoji]:
    """Every fully qualified emoji in the order of emoji-test.txt, with CLDR's name where this CLDR has one."""
    names = {}
    for file in (ANNOTATIONS, DERIVED):
        for entry in ElementTree.parse(root / file).iter("annotation"):
            if entry.get("type") == "tts":
                names[entry.get("cp")] = (entry.text or "").strip()
    found, group, subgroup = [], "", ""
    for line in (root / SEQUENCES).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").strip()
        elif match := _LINE.match(line):
            text = "".join(chr(int(code, 16)) for code in match["codes"].split())
            # CLDR leaves out the variation selector, and lags emoji-test.txt by a version
            name = names.get(text.replace("\ufe0f", ""), match["name"].strip())
            found.append(Emoji(text, name, f"{group}/{subgroup}"))
    return found


def draw_emoji(emoji: list[Emoji], root: Path = Path("/")) -> Iterator[tuple[Emoji, Image.Image]]:
    """Draw each emoji on white, ``WIDTH`` x ``HEIGHT`` RGB; a picture that two names share is left out.

    The font draws one picture for some names (Norway and Bouvet Island have one flag), and an empty box for an emoji
    it does not know yet: no model could say which name is meant.
    """
    font = ImageFont.truetype(str(root / FONT), _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    drawn: dict[bytes, list[tuple[Emoji, Image.Image]]] = {}
    for one in emoji:
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        top = font.getbbox(one.text)[1]
        ImageDraw.Draw(image).text((0, -top), one.text, font=font, embedded_color=True)
        drawn.setdefault(image.tobytes(), []).append((one, image))
    for same in drawn.values():
        if len(same) == 1:
            yield same[0]


def square(image: Image.Image, size: int) -> Image.Image:
    """Pad to a square on white and resize to ``size`` x ``size`` pixels."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas if size == side else canvas.resize((size, size), Image.Resampling.LANCZOS)
