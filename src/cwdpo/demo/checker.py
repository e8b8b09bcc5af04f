"""How right is a caption? Exactly answered, because the ground truth of a drawn scene is known."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

from cwdpo.demo.captions import parse_caption
from cwdpo.demo.scenes import Scene, Thing


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker says of one caption."""

    exact: bool
    """Every thing named once, with all four attributes right, and nothing else."""

    attributes: float
    """Share of right attributes under the best matching of things, from 0 to 1; missing and extra things count."""

    hallucinated: bool
    """Names a thing whose colour and shape are not in the picture, or is no caption at all."""


def check_caption(caption: str, scene: Scene) -> Verdict:
    """Compare a caption with the scene it describes.

    Example:
        >>> scene = (Thing("red", "disc", "small", "top left"),)
        >>> check_caption("a big red disc at the top left", scene)
        Verdict(exact=False, attributes=0.75, hallucinated=False)
    """
    named = parse_caption(caption)
    if named is None:
        return Verdict(exact=False, attributes=0.0, hallucinated=True)
    present = {(thing.colour, thing.shape) for thing in scene}
    return Verdict(
        exact=Counter(named) == Counter(scene),
        attributes=_attribute_score(named, scene),
        hallucinated=any((thing.colour, thing.shape) not in present for thing in named),
    )


def win_rate(captions: Sequence[str], rivals: Sequence[str], scenes: Sequence[Scene]) -> float:
    """How often the first caption of each pair is the better one, ties counting half.

    An exact caption beats one that is not; otherwise more right attributes beat fewer.

    Returns:
        Between 0 and 1; 0.5 when neither side is better.
    """
    if not len(captions) == len(rivals) == len(scenes) or not scenes:
        raise ValueError(
            f"expected one caption, rival and scene each, got {len(captions)}, {len(rivals)}, {len(scenes)}"
        )
    points = 0.0
    for caption, rival, scene in zip(captions, rivals, scenes, strict=True):
        ours, theirs = (check_caption(text, scene) for text in (caption, rival))
        better, worse = (ours.exact, ours.attributes), (theirs.exact, theirs.attributes)
        points += 1.0 if better > worse else 0.5 if better == worse else 0.0
    return points / len(scenes)


def _attribute_score(named: Sequence[Thing], scene: Scene) -> float:
    few, many = sorted((tuple(named), tuple(scene)), key=len)
    if len(many) > 4:  # more things than positions: no picture is like that, and permutations would explode
        return 0.0
    best = max(sum(map(_shared, few, order)) for order in permutations(many, len(few)))
    return best / (len(fields(Thing)) * len(many))


def _shared(one: Thing, other: Thing) -> int:
    return sum(getattr(one, f.name) == getattr(other, f.name) for f in fields(one))
