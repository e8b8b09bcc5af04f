"""Score checkpoints on the held-out emoji by exact checking, beside the first one given.

    python examples/emoji/score.py base=examples/emoji/base cw-dpo=runs/emoji/stage2

A name is right or wrong, and so are its tone and its people: no judge is needed. Likelihoods are mean log-probs of the
right name, of a name that differs in one attribute (gentle) and of a text that is wrong at first sight (easy).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from emoji_names import judge

from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.engine import make_engine
from cwdpo.errors import UserError
from cwdpo.evaluation.likelihood import evaluate_rows
from cwdpo.generation import generate_answers
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.reference import FrozenCopy

COLUMNS = {
    "exact": "{:.1%}",
    "tone": "{:.1%}",
    "who": "{:.1%}",
    "exact, sampled": "{:.1%}",
    "win": "{:.1%}",
    "win, sampled": "{:.1%}",
    "chosen": "{:.2f}",
    "gentle": "{:.2f}",
    "easy": "{:.2f}",
    "ECE": "{:.3f}",
}
_LONGEST = 60  # tokens; the longest name has about 25


def win_rate(own: Sequence[bool], rival: Sequence[bool]) -> float:
    """How often the own answer is right where the rival's is wrong; both right or both wrong counts half."""
    return fmean((mine - theirs + 1) / 2 for mine, theirs in zip(own, rival, strict=True))


def score(checkpoints: Mapping[str, Path], rows: Sequence[Row], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure every checkpoint.

    Args:
        checkpoints: by the name that the table shows; the first is the rival of all.
        rows: held out, with a gentle negative and an easy rejected answer.
        seed: of the sampled answers.

    Returns:
        The columns of the table, for each checkpoint: shares from 0 to 1, log-probs in nats per token.
    """
    names, engine, table = [row.chosen for row in rows], make_engine(), {}
    rivals: dict[str, list[bool]] = {}
    for label, path in checkpoints.items():
        model, processor = load_policy(path, dtype="float32"), load_processor(path)
        greedy, sampled = (
            judge(
                generate_answers(model, processor, rows, max_new_tokens=_LONGEST, temperature=temperature, seed=seed),
                names,
            )
            for temperature in (None, 1.0)
        )
        rivals = rivals or {"greedy": greedy["exact"], "sampled": sampled["exact"]}
        said = evaluate_rows(model, FrozenCopy(model, engine), processor, rows, engine)
        table[label] = {
            **{what: fmean(right) for what, right in greedy.items()},
            "exact, sampled": fmean(sampled["exact"]),
            "win": win_rate(greedy["exact"], rivals["greedy"]),
            "win, sampled": win_rate(sampled["exact"], rivals["sampled"]),
            "chosen": said["logps_mean/chosen"],
            "gentle": said["logps_mean/gentle"],
            "easy": said["logps_mean/rejected"],
            "ECE": said["ece"],
        }
    return table


def format_table(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table in Markdown."""
    lines = ["| checkpoint | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for label, values in table.items():
        cells = [form.format(values[column]) for column, form in COLUMNS.items()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=DIR", help="the first is what the others must beat")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what build.py wrote")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    checkpoints = {}
    for given in args.checkpoints:
        label, _, path = given.rpartition("=")
        checkpoints[label or path] = Path(path)
    try:
        table = score(checkpoints, read_rows(args.data / "eval.jsonl"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(table, indent=2) if args.json else format_table(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
