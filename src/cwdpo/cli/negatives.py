"""``cwdpo negatives``: make, mix and look at negatives as files."""

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

from cwdpo.errors import UserError

if TYPE_CHECKING:
    from cwdpo.config.limits import Fraction
    from cwdpo.config.recipe import Recipe
    from cwdpo.data.rows import Row
    from cwdpo.negatives.files import Coverage, Measure
    from cwdpo.negatives.server import Endpoint
    from cwdpo.report.negatives import Weigh


Url = Annotated[
    str | None, typer.Option("--endpoint", help="An OpenAI-compatible server, as http://127.0.0.1:8000/v1.")
]
ServedModel = Annotated[
    str | None, typer.Option("--served-model", help="The model to ask there.  [default: the server's first]")
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Requests at one time.")]
Prices = Annotated[
    str | None, typer.Option("--prices", help="Of a million prompt and completion tokens, as 0.15,0.6: shows the cost.")
]


def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, a run, or with --endpoint a served name.")
    ],
    data: Annotated[Path, typer.Option("--data", help="A file or directory of rows.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The new file; never one that exists.", show_default=False)],
    k: Annotated[int, typer.Option("--k", min=1, help="Answers a prompt.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 0.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="1 samples from all tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longer ones are dropped.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers at one time.")] = 32,
    max_overlap: Annotated[
        float | None, typer.Option("--max-overlap", min=0, max=1, help="Drop closer ones to a right answer.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="Says which answers are right: module:function, same_words, or URL#MODEL."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides every sample.")] = 0,
    image_root: Annotated[Path | None, typer.Option("--image-root", help="As for every file of rows.")] = None,
    endpoint: Url = None,
    concurrency: Concurrency = 8,
    prices: Prices = None,
) -> None:
    """Sample wrong answers from a model or a server, for `cwdpo negatives mix`.

    Right answers are taken out, by text and by the judge. A call that broke off goes on where it stopped.
    """
    price = _prices(prices)
    if temperature <= 0 or top_p <= 0:
        raise UserError("--temperature and --top-p must be above 0; greedy answers are no samples.")
    from cwdpo.generation import Sampling
    from cwdpo.negatives.filtering import Rules
    from cwdpo.negatives.long_jobs import write_samples
    from cwdpo.negatives.verify import load_judge

    how = Sampling(k=k, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, batch_size=batch_size)
    server = None if endpoint is None else _endpoint(endpoint, model, concurrency)
    counts = write_samples(
        data,
        out,
        _sampler(model, server, how),
        how,
        made_by={"model": model, "endpoint": endpoint},
        verified_by={"judge": judge, "max_overlap": max_overlap},
        rules=Rules(overlap=max_overlap),
        judge=load_judge(judge) if judge else None,
        seed=seed,
        image_root=image_root,
        progress=_progress,
    )
    _tell(counts, server, price)
    print(f"wrote {out}")


def filter_(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows with negatives.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The new file; never one that exists.", show_default=False)],
    max_overlap: Annotated[
        float | None, typer.Option("--max-overlap", min=0, max=1, help="Drop closer ones to the right answer.")
    ] = None,
    length_gap: Annotated[
        float | None, typer.Option("--length-gap", min=0, help="Drop those longer or shorter by this share of words.")
    ] = None,
    drop_easier_than: Annotated[
        str | None, typer.Option("--drop-easier-than", help="Floor of lbar: -3.5, or quantile:0.1. Needs --model.")
    ] = None,
    drop_ches_above: Annotated[
        str | None,
        typer.Option("--drop-ches-above", help="Ceiling of CHES similarity, or quantile:0.9. Needs --model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A checkpoint or a run; its measurements are written into the rows.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option("--image-root", help="As for every file of rows.")] = None,
) -> None:
    """Take out negatives that are right, too easy, too similar or of another length; rows left without any go too.

    With --model, what it measures is written into the rows: lbar and ches, and w_c where it is a run with a floor.
    """
    floor, ceiling = _rule(drop_easier_than, "--drop-easier-than"), _rule(drop_ches_above, "--drop-ches-above")
    if isinstance(floor, float) and floor > 0:
        raise UserError(
            f"--drop-easier-than is {floor:g}, but log-probabilities are never positive. Did you mean {-floor:g}?"
        )
    if model is None and (floor is not None or ceiling is not None):
        raise UserError("--drop-easier-than and --drop-ches-above need --model, which measures the negatives.")
    from cwdpo.negatives.files import write_filtered
    from cwdpo.negatives.filtering import Rules

    report = write_filtered(
        data,
        out,
        rules=Rules(overlap=max_overlap, length_gap=length_gap),
        drop_easier_than=floor,
        drop_ches_above=ceiling,
        measure=None if model is None else _measure(model),
        weigh=None if model is None else _weigh(Path(model)),
        image_root=image_root,
    )
    _tell(report.negatives, None, None)
    for name, value in (("lbar floor", report.lbar_floor), ("CHES ceiling", report.ches_ceiling)):
        if value is not None:
            print(f"{name}: {value:.4g}", file=sys.stderr)
    print(f"wrote {out}  ({report.rows_left} of {report.rows} rows have a negative left)")


def ask_gentle_file(
    data: Path,
    out: Path,
    *,
    endpoint: str,
    served_model: str | None,
    concurrency: int,
    prices: str | None,
    seed: int,
    image_root: Path | None,
) -> None:
    """What ``gentle --endpoint`` does."""
    price = _prices(prices)
    from cwdpo.negatives.long_jobs import write_asked

    server = _endpoint(endpoint, served_model, concurrency)
    try:
        counts = write_asked(data, out, server, seed=seed, image_root=image_root, progress=_progress)
    finally:
        _tell(Counter(), server, price)
    _tell(counts, None, None)
    print(f"wrote {out}")


def _endpoint(url: str, model: str | None, concurrency: int) -> "Endpoint":
    from cwdpo.negatives.server import Endpoint

    return Endpoint(url, model=model, concurrency=concurrency)


def _sampler(model: str, server: "Endpoint | None", how: Any) -> Any:
    if server is not None:
        from cwdpo.negatives.server import ServerSampler

        return ServerSampler(server, how)
    from cwdpo.generation import LocalSampler

    return LocalSampler(*_load(model), how)


def _measure(model: str) -> "Measure":
    from cwdpo.negatives.hardness import measure_hardness

    loaded, processor = _load(model)
    return lambda rows: measure_hardness(loaded, processor, rows)


def _weigh(run: Path) -> "Weigh | None":

    recipe = recipe_of_run(run)
    return None if recipe is None else weight_of(recipe)


def _load(model: str) -> tuple[Any, Any]:
    """A policy and its processor, from a run, a checkpoint, an adapter or a hub name."""
    from cwdpo.cli.merge import adapter_directory
    from cwdpo.cli.quiet import quiet_libraries

    quiet_libraries()
    from cwdpo.recipes.checkpoints import load_checkpoint

    return load_checkpoint(str(adapter_directory(Path(model))) if Path(model).is_dir() else model)


def _rule(text: str | None, option: str) -> float | str | None:
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


def _prices(text: str | None) -> tuple[float, float] | None:
    """Per million prompt and completion tokens.

    Example:
        >>> _prices("0.15,0.6")
        (0.15, 0.6)
    """
    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--prices is {text!r}, but must be two numbers such as 0.15,0.6.") from None
    return prompt, completion


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _tell(counts: Counter[str], server: "Endpoint | None", prices: tuple[float, float] | None) -> None:
    if counts:
        print(", ".join(f"{number} {name}" for name, number in counts.most_common()), file=sys.stderr)
    if server is not None:
        used = server.usage
        told = f"{used.requests} requests ({used.retries} repeated), {used.prompt_tokens} prompt tokens and "
        told += f"{used.completion_tokens} completion tokens"
        if prices is not None:
            told += f": {used.cost(prompt_price=prices[0], completion_price=prices[1]):.4f} in your prices' currency"
        print(told, file=sys.stderr)


def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Rows with negatives, or RUN/negatives/refresh-*.jsonl.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The HTML page; only an older page is replaced.", show_default=False)
    ],
    image_root: Annotated[
        Path | None, typer.Option("--image-root", help="Where relative image paths start.  [default: FILE's directory]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows on the page, from the first.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Of a refresh: the rows it sampled for.  [default: those of the run's recipe]"),
    ] = None,
) -> None:
    """Write one HTML page of pictures, answers and negatives, with every difference marked."""
    from cwdpo.report.negatives import is_refresh, refuse_to_replace, write_negatives_page

    refuse_to_replace(file, out)
    if not is_refresh(file):
        if data is not None:
            raise UserError("--data is for the record of a refresh; a file of rows holds its rows itself.")
        print(f"wrote {write_negatives_page(file, out, image_root=image_root, limit=limit)}")
        return
    recipe = _recipe_of(file)
    rows = _sampled_for(file, recipe, data, image_root)
    write_negatives_page(file, out, limit=limit, sampled_for=rows, weigh=None if recipe is None else weight_of(recipe))
    print(f"wrote {out}")


def weight_of(recipe: "Recipe") -> "Weigh | None":
    """w_c of an answer by its lbar, where the run's floor is a number by now."""
    cooling = None if recipe.stage2 is None else recipe.stage2.cooling
    if cooling is None or cooling.constant is not None or isinstance(cooling.floor, str):
        return None
    import torch

    from cwdpo.cooling import cooling_weight

    floor, temperature = float(cooling.floor), cooling.temperature
    return lambda lbar: cooling_weight(torch.tensor(lbar), floor, temperature=temperature).item()


def recipe_of_run(run: Path) -> "Recipe | None":
    """The resolved recipe in a run's directory; None where there is none."""
    from cwdpo.config.recipe_file import read_recipe
    from cwdpo.records import RunDirectory

    path = RunDirectory(run).recipe
    return read_recipe(path) if path.is_file() else None


def _recipe_of(refresh: Path) -> "Recipe | None":
    return recipe_of_run(refresh.resolve().parent.parent)


def _sampled_for(
    refresh: Path, recipe: "Recipe | None", data: Path | None, image_root: Path | None
) -> dict[int, "Row"]:
    """Stage 2's rows, by their place in training."""
    from cwdpo.data.reading import read_rows, split_rows

    if recipe is None and data is None:
        raise UserError(f"{refresh}: what a refresh sampled for is not beside it. Name its rows with --data ROWS.")
    if recipe is None:
        assert data is not None
        return _by_id(refresh, read_rows(data, image_root=image_root))
    train = recipe.data.train
    files = [str(data)] if data is not None else [train] if isinstance(train, str) else train
    root = image_root or (None if data is not None else recipe.data.image_root)
    rows = [row for file in files for row in read_rows(Path(file), image_root=root)]
    if recipe.stage1 is not None:
        _, rows = split_rows(rows, recipe.data.stage1_fraction, recipe.seed)
    return dict(enumerate(rows))


def _by_id(refresh: Path, rows: list["Row"]) -> dict[int, "Row"]:
    """The rows of a refresh that has lost its run: its candidates name them."""
    from cwdpo.negatives.candidates import read_refresh

    known = {row.id: row for row in rows if row.id}
    found = {}
    for candidate in read_refresh(refresh).candidates:
        if candidate.id not in known:
            raise UserError(
                f"{refresh}: was sampled for a row with the id {candidate.id!r}, which --data does not have. Name the "
                "data of the run, or leave the file in the run's directory, beside its recipe.yaml."
            )
        found[candidate.row] = known[candidate.id]
    return found


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
    from cwdpo.negatives.gentle.lexicon import read_lexicon

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
    from cwdpo.negatives.files import write_mixed

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
    from cwdpo.negatives.gentle.lexicon import KINDS

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
