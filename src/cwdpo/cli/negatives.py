"""``cwdpo negatives``: make, mix and look at negatives as files."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.negatives_models import Concurrency, Prices, ServedModel, Url, ask_gentle_file, filter_, sample
from cwdpo.cli.negatives_show import show
from cwdpo.errors import UserError

if TYPE_CHECKING:
    from cwdpo.config.fractions import Fraction
    from cwdpo.negatives.files import Coverage

app = typer.Typer(no_args_is_help=True, help="Make, mix and look at negatives, as files.")

app.command("sample")(sample)
app.command("filter")(filter_)

_Data = Annotated[Path, typer.Argument(metavar="DATA", help="A file or directory of rows.", show_default=False)]
_Out = Annotated[Path, typer.Option("--out", help="The new file; never one that exists.", show_default=False)]
_Root = Annotated[
    Path | None, typer.Option("--image-root", help="Where relative image paths start.  [default: DATA's directory]")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides every choice.")]


@app.command("gentle")
def gentle(
    data: _Data,
    out: _Out,
    seed: _Seed = 0,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Kinds of errors, as colour,count.  [default: all]")
    ] = None,
    lexicon: Annotated[Path | None, typer.Option("--lexicon", help="Your own words, on top of the package's.")] = None,
    column: Annotated[str, typer.Option("--column", help="Where the right answer stands.")] = "chosen",
    positives: Annotated[
        str | None, typer.Option("--positives", help="Column with a list of further right answers.")
    ] = None,
    image_root: _Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Coverage as one JSON object on standard output.")] = False,
    endpoint: Url = None,
    served_model: ServedModel = None,
    concurrency: Concurrency = 8,
    prices: Prices = None,
) -> None:
    """Make one minor error in each answer; no model is needed, but with --endpoint a server makes it.

    Rows that the lexicon has no edit for are kept, without `gentle`, and counted.
    """
    if endpoint is not None:
        if kinds or lexicon or positives or as_json or column != "chosen":
            raise UserError("--kinds, --lexicon, --column, --positives and --json have no effect with --endpoint.")
        ask_gentle_file(
            data,
            out,
            endpoint=endpoint,
            served_model=served_model,
            concurrency=concurrency,
            prices=prices,
            seed=seed,
            image_root=image_root,
        )
        _tell_image_root(data, out, image_root)
        return
    if served_model or prices:
        raise UserError("--served-model and --prices need --endpoint.")
    from cwdpo.negatives.files import write_gentle
    from cwdpo.negatives.lexicon_reading import read_lexicon

    chosen = None if kinds is None else [kind.strip() for kind in kinds.split(",") if kind.strip()]
    words = read_lexicon(lexicon)
    coverage = write_gentle(
        data,
        out,
        lexicon=words,
        seed=seed,
        kinds=chosen,
        column=column,
        positives=positives,
        image_root=image_root,
    )
    _show_coverage(coverage, Console(stderr=True))
    _tell_image_root(data, out, image_root)
    print(json.dumps(coverage.to_json()) if as_json else f"wrote {out}")


@app.command("mix")
def mix(
    data: _Data,
    on_policy: Annotated[
        Path, typer.Option("--on-policy", help='Lines of {"id": ..., "negatives": [...]}.', show_default=False)
    ],
    out: _Out,
    fraction: Annotated[
        str, typer.Option("--fraction", help="Share from the policy: 0.5, or a schedule such as 0:0,1:0.8.")
    ] = "0.5",
    progress: Annotated[
        float, typer.Option("--progress", min=0, max=1, help="Where in the run a schedule is read.")
    ] = 0.0,
    round_: Annotated[int, typer.Option("--round", min=0, help="Another round chooses anew.")] = 0,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Negatives a row.  [default: as many as it has]")
    ] = None,
    seed: _Seed = 0,
    image_root: _Root = None,
) -> None:
    """Choose each row's negatives from the data set's and the policy's, the same for the same seed and round."""
    from cwdpo.negatives.mixed_files import write_mixed

    mixed = write_mixed(
        data,
        on_policy,
        out,
        fraction=_fraction(fraction),
        seed=seed,
        round=round_,
        progress=progress,
        count=count,
        image_root=image_root,
    )
    told = ", ".join(f"{number} {source}" for source, number in sorted(mixed.sources.items()))
    print(f"{mixed.rows} rows: {told}; {mixed.without_samples} rows had no sample.", file=sys.stderr)
    if mixed.unused_ids:
        shown = ", ".join(mixed.unused_ids[:5])
        print(f"note: {len(mixed.unused_ids)} ids of the samples are no row's, such as {shown}.", file=sys.stderr)
    _tell_image_root(data, out, image_root)
    print(f"wrote {out}")


def _show_coverage(coverage: "Coverage", console: Console) -> None:
    table = Table("kind", "rows that allow it", "made", title="gentle negatives", title_justify="left")
    from cwdpo.negatives.lexicon import KINDS

    for kind in KINDS:
        table.add_row(kind, str(coverage.possible[kind]), str(coverage.made[kind]))
    console.print(table)
    made = coverage.rows - len(coverage.without)
    console.print(Text(f"{made} of {coverage.rows} rows have a gentle negative."))
    if coverage.without:
        shown = ", ".join(coverage.without[:3])
        console.print(Text(f"{len(coverage.without)} rows are kept without one, such as {shown}."), soft_wrap=True)


def _fraction(text: str) -> "Fraction":
    """A share, or a schedule as points ``progress:share``.

    Example:
        >>> _fraction("0.5"), _fraction("0:0,1:0.8")
        (0.5, [[0.0, 0.0], [1.0, 0.8]])
    """
    try:
        if ":" not in text:
            return float(text)
        return [[float(number) for number in point.split(":")] for point in text.split(",")]
    except ValueError:
        raise UserError(
            f"--fraction is {text!r}, but must be a share such as 0.5, or points such as 0:0,1:0.8."
        ) from None


def _tell_image_root(data: Path, out: Path, image_root: Path | None) -> None:
    """Relative image paths start at the file's own directory, which may now be another."""
    from cwdpo.data.reading import resolve_root

    root = resolve_root(data, image_root).resolve()
    if root != out.parent.resolve():
        print(
            f"note: image paths in {out} start at {root}. Give --image-root (data.image_root) {root}.", file=sys.stderr
        )


app.command("show")(show)
