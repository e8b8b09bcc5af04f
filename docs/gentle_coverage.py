"""How far the lexicon reaches and how good its edits are: the figures of docs/negatives.md, computed again.

    python docs/gentle_coverage.py                  # the table: rows whose answer allows an edit of each kind
    python docs/gentle_coverage.py --sample         # the hundred edits that were read, as JSON lines
    python docs/gentle_coverage.py --verdicts       # what the reader said of them

The sets are tests/negatives/captions.txt, the names of the emoji example (from Debian's packages, see ``make emoji``;
left out where they are not installed), and captions of the demo's drawn scenes.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cwdpo.demo.world import sample_scene, sample_style, write_caption
from cwdpo.errors import UserError
from cwdpo.negatives import gentle_negative, read_lexicon
from cwdpo.negatives.gentle import edits_by_kind
from cwdpo.negatives.gentle.edits import Reading
from cwdpo.negatives.gentle.lexicon import KINDS

ROOT = Path(__file__).parents[1]
CAPTIONS = ROOT / "tests" / "negatives" / "captions.txt"
HELD_OUT = ROOT / "tests" / "negatives" / "held_out.txt"
READ = ROOT / "tests" / "negatives" / "reading.jsonl"
READ_HELD_OUT = ROOT / "tests" / "negatives" / "held_out_reading.jsonl"
NUM_SCENES, SAMPLE_SEED = 500, 23
SHARES = {"captions": 60, "emoji names": 20, "drawn scenes": 20}


def captions() -> list[str]:
    """Captions as people write them of photographs; those of the tests."""
    return CAPTIONS.read_text("utf-8").splitlines()


def scenes() -> list[str]:
    """Captions of the demo's pictures."""
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng) for _ in range(NUM_SCENES)]
    return [write_caption(scene, sample_style(scene, rng)) for scene in drawn]


def emoji() -> list[str]:
    """Names of the emoji example's pictures; none without Debian's packages."""
    sys.path.insert(0, str(ROOT / "examples" / "emoji"))
    from emoji_glyphs import read_emoji, require_packages

    try:
        require_packages()
    except UserError as missing:
        print(f"emoji names are left out: {missing}", file=sys.stderr)
        return []
    return [one.name for one in read_emoji()]


def coverage(texts: Sequence[str]) -> Counter[str]:
    """How many texts allow an edit of each kind, and how many any."""
    lexicon, found = read_lexicon(), Counter[str]()
    for text in texts:
        kinds = edits_by_kind(Reading(text, lexicon))
        found.update([*kinds, *(["any"] if kinds else [])])
    return found


def table(sets: dict[str, list[str]]) -> str:
    """The coverage as a table in Markdown."""
    counts = {name: coverage(texts) for name, texts in sets.items()}
    lines = ["| | " + " | ".join(f"{len(texts):,} {name}" for name, texts in sets.items()) + " |"]
    lines.append("|---" * (len(sets) + 1) + "|")
    any_edit = [f"**{counts[name]['any']}** ({counts[name]['any'] / len(texts):.0%})" for name, texts in sets.items()]
    lines.append("| **any** | " + " | ".join(any_edit) + " |")
    for kind in KINDS:
        if any(found[kind] for found in counts.values()):
            lines.append(f"| `{kind}` | " + " | ".join(str(found[kind]) for found in counts.values()) + " |")
    return "\n".join(lines)


def sample(name: str, texts: Sequence[str], seed: int = SAMPLE_SEED) -> list[dict[str, str]]:
    """The edits of one set that are read one by one."""
    rng, lexicon = random.Random(seed), read_lexicon()
    found: list[dict[str, str]] = []
    for text in rng.sample(texts, len(texts)):
        made = gentle_negative(text, lexicon=lexicon, rng=rng)
        if made is not None and len(found) < SHARES[name]:
            found.append({"set": name, "chosen": text, "gentle": made.text, "kind": made.kind})
    return found


def held_out(seed: int = SAMPLE_SEED) -> list[dict[str, str]]:
    """Two edits of each caption that the lexicon was not written for."""
    rng, lexicon = random.Random(seed), read_lexicon()
    found: list[dict[str, str]] = []
    for text in HELD_OUT.read_text("utf-8").splitlines():
        made = gentle_negative(text, lexicon=lexicon, rng=rng)
        other = made and gentle_negative(text, lexicon=lexicon, rng=rng, avoid=[made.text])
        for one in (made, other):
            if one is not None:
                found.append({"set": "held out", "chosen": text, "gentle": one.text, "kind": one.kind})
    return found


def verdicts(file: Path) -> str:
    """What the reader said of a committed sample."""
    read = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    wrong, fluent = (Counter(edit[key] for edit in read) for key in ("wrong", "fluent"))
    lines = [f"{file.name}: {len(read)} edits: wrong {dict(wrong)}, fluent {dict(fluent)}"]
    lines += [f"{edit['gentle']}  ({edit['note']})" for edit in read if edit.get("note")]
    return "\n".join(lines)


def main() -> None:
    """Print what the options ask for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sample", action="store_true")
    options.add_argument("--verdicts", action="store_true")
    options.add_argument("--seed", type=int, default=SAMPLE_SEED)
    asked = options.parse_args()
    if asked.verdicts:
        print(verdicts(READ), verdicts(READ_HELD_OUT), sep="\n")
        return
    sets = {"captions": captions(), "emoji names": emoji(), "drawn scenes": scenes()}
    sets = {name: texts for name, texts in sets.items() if texts}
    if asked.sample:
        for name, texts in sets.items():
            for edit in sample(name, texts, asked.seed):
                print(json.dumps(edit, ensure_ascii=False))
        return
    print(table(sets))


if __name__ == "__main__":
    main()
