"""``cwdpo negatives``: make, mix, filter and look at negatives as files."""

import functools
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.errors import UserError

if TYPE_CHECKING:
    from cwdpo.config.limits import Fraction
    from cwdpo.config.recipe import Recipe
    from cwdpo.data.image_roots import GivenRoots
    from cwdpo.negatives.files import Coverage
    from cwdpo.negatives.server import Endpoint

app = typer.Typer(no_args_is_help=True, help="Make, mix and look at negatives, as files.")

_Data = Annotated[Path, typer.Argument(metavar="DATA", help="A file or directory of rows.", show_default=False)]
_Out = Annotated[Path, typer.Option(help="The new file; never one that exists.", show_default=False)]
_Seed = Annotated[int, typer.Option(min=0, help="Decides every choice.")]
_Overlap = Annotated[float | None, typer.Option(min=0, max=1, help="Drop closer ones to a right answer.")]
_Url = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, as http://127.0.0.1:8000/v1.")]
_Concurrency = Annotated[int, typer.Option(min=1, help="Requests at one time.")]
_Prices = Annotated[
    str | None, typer.Option(help="Of a million prompt and completion tokens, as 0.15,0.6: shows the cost.")
]


@app.command()
def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, a run, or with --endpoint a served name.")
    ],
    data: Annotated[Path, typer.Option(help="A file or directory of rows.", show_default=False)],
    out: _Out,
    k: Annotated[int, typer.Option(min=1, help="Answers a prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="Above 0.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="1 samples from all tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer ones are dropped.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at one time.")] = 32,
    max_overlap: _Overlap = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Says which answers are right: module:function, same_words, or URL#MODEL."),
    ] = None,
    seed: _Seed = 0,
    image_root: ImageRootOption = None,
    endpoint: _Url = None,
    concurrency: _Concurrency = 8,
    prices: _Prices = None,
) -> None:
    """Sample wrong answers from a model or a server, for `cwdpo negatives mix`.

    Right answers are taken out, by text and by the judge. An interrupted call continues where it stopped.
    """
    price = parse_prices(prices)
    if temperature <= 0 or top_p <= 0:
        raise UserError("--temperature and --top-p must be above 0; greedy answers are not samples.")
    from cwdpo.generation import LocalSampler, Sampling
    from cwdpo.negatives.filtering import Rules
    from cwdpo.negatives.offline_generation import write_samples
    from cwdpo.negatives.server import Endpoint, ServerSampler
    from cwdpo.negatives.verify import load_judge

    how = Sampling(k=k, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, batch_size=batch_size)
    server = None if endpoint is None else Endpoint(endpoint, model=model, concurrency=concurrency)
    counts = write_samples(
        data,
        out,
        LocalSampler(*_load(model), how) if server is None else ServerSampler(server, how),
        how,
        made_by={"model": model, "endpoint": endpoint},
        verified_by={"judge": judge, "max_overlap": max_overlap},
        rules=Rules(overlap=max_overlap),
        judge=load_judge(judge) if judge else None,
        seed=seed,
        image_root=image_root,
        progress=_print_progress,
    )
    _print_counts(counts)
    if server is not None:
        _print_usage(server, price)
    print(f"wrote {out}")


@app.command("filter")
def filter_(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows with negatives.", show_default=False)],
    out: _Out,
    max_overlap: _Overlap = None,
    length_gap: Annotated[
        float | None, typer.Option(min=0, help="Drop those longer or shorter by this share of words.")
    ] = None,
    drop_easier_than: Annotated[
        str | None, typer.Option(help="Floor of lbar: -3.5, or quantile:0.1. Needs --model.")
    ] = None,
    drop_ches_above: Annotated[
        str | None,
        typer.Option(help="Ceiling of CHES similarity, or quantile:0.9. Needs --model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint or a run; its measurements are written into the rows.")
    ] = None,
    image_root: ImageRootOption = None,
) -> None:
    """Take out negatives that are right, too easy, too similar or of another length; rows left without any go too.

    With --model, what it measures is written into the rows: lbar and ches, and w_c where it is a run with a floor.
    """
    floor = _parse_rule(drop_easier_than, "--drop-easier-than")
    ceiling = _parse_rule(drop_ches_above, "--drop-ches-above")
    if isinstance(floor, float) and floor > 0:
        raise UserError(
            f"--drop-easier-than is {floor:g}, but log-probabilities are never positive. Did you mean {-floor:g}?"
        )
    if model is None and (floor is not None or ceiling is not None):
        raise UserError("--drop-easier-than and --drop-ches-above need --model, which measures the negatives.")
    from cwdpo.negatives.files import write_filtered
    from cwdpo.negatives.filtering import Rules

    measure = weigh = None
    if model is not None:
        from cwdpo.negatives.hardness import measure_hardness, weigh_as

        policy, processor = _load(model)
        recipe = _recipe_of_run(Path(model))
        measure = functools.partial(measure_hardness, policy, processor)
        weigh = None if recipe is None else weigh_as(recipe)
    report = write_filtered(
        data,
        out,
        rules=Rules(overlap=max_overlap, length_gap=length_gap),
        drop_easier_than=floor,
        drop_ches_above=ceiling,
        measure=measure,
        weigh=weigh,
        image_root=image_root,
    )
    _print_counts(report.negatives)
    for name, value in (("lbar floor", report.lbar_floor), ("CHES ceiling", report.ches_ceiling)):
        if value is not None:
            print(f"{name}: {value:.4g}", file=sys.stderr)
    if model is None and max_overlap is None and length_gap is None:
        note = (
            "note: no rule was given (--length-gap, --max-overlap), so only copies of other answers could be dropped."
        )
        print(note, file=sys.stderr)
    print(f"wrote {out}  ({report.rows_left} of {report.rows} rows have a negative left)")


@app.command()
def gentle(
    data: _Data,
    out: _Out,
    seed: _Seed = 0,
    kinds: Annotated[str | None, typer.Option(help="Kinds of errors, as colour,count.  [default: all]")] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Your own words, on top of the package's.")] = None,
    column: Annotated[str, typer.Option(help="Where the right answer stands.")] = "chosen",
    positives: Annotated[str | None, typer.Option(help="Column with a list of further right answers.")] = None,
    image_root: ImageRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Coverage as one JSON object on standard output.")] = False,
    endpoint: _Url = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model to ask there.  [default: the server's first]")
    ] = None,
    concurrency: _Concurrency = 8,
    prices: _Prices = None,
) -> None:
    """Make one minor error in each answer; no model is needed, but with --endpoint a server makes it.

    Rows that the lexicon has no edit for are kept, without `gentle`, and counted.
    """
    done = f"wrote {out}"
    if endpoint is not None:
        if kinds or lexicon or positives or as_json or column != "chosen":
            raise UserError("--kinds, --lexicon, --column, --positives and --json have no effect with --endpoint.")
        price = parse_prices(prices)
        from cwdpo.negatives.offline_generation import write_asked
        from cwdpo.negatives.server import Endpoint

        server = Endpoint(endpoint, model=served_model, concurrency=concurrency)
        try:
            counts = write_asked(data, out, server, seed=seed, image_root=image_root, progress=_print_progress)
        finally:
            _print_usage(server, price)
        _print_counts(counts)
    else:
        if served_model or prices:
            raise UserError("--served-model and --prices need --endpoint.")
        from cwdpo.negatives.files import write_gentle
        from cwdpo.negatives.gentle.lexicon import read_lexicon

        wanted = None if kinds is None else [kind.strip() for kind in kinds.split(",") if kind.strip()]
        words = read_lexicon(lexicon)
        coverage = write_gentle(
            data, out, lexicon=words, seed=seed, kinds=wanted, column=column, positives=positives, image_root=image_root
        )
        _print_coverage(coverage, Console(stderr=True))
        done = json.dumps(coverage.to_json()) if as_json else done
    _note_image_root(data, out, image_root)
    print(done)


@app.command()
def mix(
    data: _Data,
    on_policy: Annotated[Path, typer.Option(help='Lines of {"id": ..., "negatives": [...]}.', show_default=False)],
    out: _Out,
    fraction: Annotated[str, typer.Option(help="Share from the policy: 0.5, or a schedule such as 0:0,1:0.8.")] = "0.5",
    progress: Annotated[float, typer.Option(min=0, max=1, help="Where in the run a schedule is read.")] = 0.0,
    round_: Annotated[int, typer.Option("--round", min=0, help="Another round chooses again.")] = 0,
    count: Annotated[int | None, typer.Option(min=1, help="Negatives a row.  [default: as many as it has]")] = None,
    seed: _Seed = 0,
    image_root: ImageRootOption = None,
) -> None:
    """Choose each row's negatives from the data set's and the policy's, the same for the same seed and round."""
    from cwdpo.negatives.files import write_mixed

    share = _parse_fraction(fraction)
    mixed = write_mixed(
        data,
        on_policy,
        out,
        fraction=share,
        seed=seed,
        round=round_,
        progress=progress,
        count=count,
        image_root=image_root,
    )
    sources = ", ".join(f"{number} {source}" for source, number in sorted(mixed.sources.items()))
    print(f"{mixed.rows} rows: {sources}; {mixed.without_samples} rows had no sample.", file=sys.stderr)
    if mixed.unused_ids:
        shown = ", ".join(mixed.unused_ids[:5])
        print(f"note: {len(mixed.unused_ids)} ids of the samples are no row's, such as {shown}.", file=sys.stderr)
    _note_image_root(data, out, image_root)
    print(f"wrote {out}")


@app.command()
def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Rows with negatives, or RUN/negatives/refresh-*.jsonl.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML page; only an older page is replaced.", show_default=False)],
    image_root: ImageRootOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows on the page, from the first.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option(help="Of a refresh: the rows it sampled for.  [default: those of the run's recipe]"),
    ] = None,
) -> None:
    """Write one HTML page of pictures, answers and negatives, with every difference marked."""
    from cwdpo.report.negatives import is_refresh, refuse_to_replace, write_negatives_page

    refuse_to_replace(file, out)
    if not is_refresh(file):
        if data is not None:
            raise UserError("--data is for the record of a refresh; a file of rows holds its rows itself.")
        write_negatives_page(file, out, image_root=image_root, limit=limit)
    else:
        from cwdpo.negatives.files import rows_sampled_for
        from cwdpo.negatives.hardness import weigh_as

        recipe = _recipe_of_run(file.resolve().parent.parent)
        rows = rows_sampled_for(file, recipe, data=data, image_root=image_root)
        weigh = None if recipe is None else weigh_as(recipe)
        write_negatives_page(file, out, limit=limit, sampled_for=rows, weigh=weigh)
    print(f"wrote {out}")


def _load(model: str) -> tuple[Any, Any]:
    """A policy and its processor, from a run, a checkpoint, an adapter or a hub name."""
    from cwdpo.cli.quiet import quiet_libraries
    from cwdpo.models.naming import find_checkpoint

    source = find_checkpoint(model)
    quiet_libraries()
    from cwdpo.models.adapters import load_checkpoint

    return load_checkpoint(source)


def _recipe_of_run(run: Path) -> "Recipe | None":
    from cwdpo.config.recipe_file import read_recipe
    from cwdpo.records import RunDirectory

    path = RunDirectory(run).recipe
    return read_recipe(path) if path.is_file() else None


def _parse_rule(text: str | None, option: str) -> float | str | None:
    from cwdpo.config.limits import is_quantile

    if text is None or is_quantile(text):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{option} is {text!r}, but must be a number, or quantile:q such as quantile:0.1.")
    return number


def parse_prices(text: str | None) -> tuple[float, float] | None:
    """Per million prompt and completion tokens.

    Example:
        >>> parse_prices("0.15,0.6")
        (0.15, 0.6)
    """
    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--prices is {text!r}, but must be two numbers such as 0.15,0.6.") from None
    return prompt, completion


def _parse_fraction(text: str) -> "Fraction":
    """A share, or a schedule as points ``progress:share``.

    Example:
        >>> _parse_fraction("0.5"), _parse_fraction("0:0,1:0.8")
        (0.5, [[0.0, 0.0], [1.0, 0.8]])
    """
    from cwdpo.config.limits import check_schedule

    try:
        points = [[float(number) for number in point.split(":")] for point in text.split(",")]
        share = points if ":" in text else float(text)
        check_schedule(share)
    except ValueError:
        raise UserError(
            f"--fraction is {text!r}, but must be a share from 0 to 1, such as 0.5, or points progress:share whose "
            "progress grows, such as 0:0,1:0.8."
        ) from None
    return share


def _print_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print_counts(counts: Counter[str]) -> None:
    if counts:
        print(", ".join(f"{number} {name}" for name, number in counts.most_common()), file=sys.stderr)


def _print_usage(server: "Endpoint", prices: tuple[float, float] | None) -> None:
    used = server.usage
    if used.requests == used.retries + 1 and not used.prompt_tokens:
        return  # nothing was answered, which the error says
    line = f"{used.requests} requests ({used.retries} repeated), {used.prompt_tokens} prompt tokens and "
    line += f"{used.completion_tokens} completion tokens"
    if prices is not None:
        line += f": {used.cost(prompt_price=prices[0], completion_price=prices[1]):.4f} in your prices' currency"
    print(line, file=sys.stderr)


def _print_coverage(coverage: "Coverage", console: Console) -> None:
    from cwdpo.negatives.gentle.lexicon import KINDS

    table = Table("kind", "rows that allow it", "made", title="gentle negatives", title_justify="left")
    for kind in KINDS:
        table.add_row(kind, str(coverage.possible[kind]), str(coverage.made[kind]))
    console.print(table)
    made = coverage.rows - len(coverage.without)
    console.print(Text(f"{made} of {coverage.rows} rows have a gentle negative."))
    if coverage.without:
        shown = ", ".join(coverage.without[:3])
        console.print(Text(f"{len(coverage.without)} rows are kept without one, such as {shown}."), soft_wrap=True)


def _note_image_root(data: Path, out: Path, image_root: "GivenRoots") -> None:
    """Relative image paths start at the file's own directory, which may now be another."""
    from cwdpo.data.sources import resolve_root

    root = resolve_root(data, image_root).start
    if root is not None and root != out.parent.resolve():
        note = f"note: image paths in {out} start at {root}. Give --image-root (data.image_root) {root}."
        print(note, file=sys.stderr)
