"""A small data set in the manner of the emoji example that needs none of Debian's packages."""

from emoji_glyphs import HEIGHT, WIDTH, Emoji
from PIL import Image, ImageDraw


def made_up_emoji() -> list[tuple[Emoji, Image.Image]]:
    """Four roles x three people x six tones under their true names, as coloured blocks, and three things."""
    tones = ("", "light", "medium-light", "medium", "medium-dark", "dark")
    drawn = []
    for job, role in enumerate(("firefighter", "farmer", "judge", "pilot")):
        for who, person in enumerate(("", "woman ", "man ")):
            for shade, tone in enumerate(tones):
                name = f"{person}{role}" + (f": {tone} skin tone" if tone else "")
                image = Image.new("RGB", (WIDTH, HEIGHT), (40 * shade, 80 * who, 60 * job))
                ImageDraw.Draw(image).rectangle((20, 20, 60 + 20 * job, 100), fill=(200, 40 * shade, 90 * who))
                code = chr(0xE000 + len(drawn))
                drawn.append((Emoji(code, name, "People & Body/person-role"), image))
    for name, group in (
        ("flag: France", "Flags/country-flag"),
        ("flag: Chad", "Flags/country-flag"),
        ("taco", "Food & Drink/food-asian"),
    ):
        image = Image.new("RGB", (WIDTH, HEIGHT), (10, 20, len(drawn)))
        drawn.append((Emoji(chr(0xE000 + len(drawn)), name, group), image))
    return drawn
