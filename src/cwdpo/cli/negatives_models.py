"""``cwdpo negatives sample`` and ``filter``, and ``gentle --endpoint``: what needs a model or a server."""

import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwdpo.errors import UserError

if TYPE_CHECKING:
    from cwdpo.negatives.endpoint import Endpoint
    from cwdpo.negatives.filtered_files import Measure
    from cwdpo.report.negatives_read import Weigh

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
    from cwdpo.negatives.filtering import Rules
    from cwdpo.negatives.made_elsewhere import write_samples
    from cwdpo.negatives.sampling import Sampling
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
    from cwdpo.negatives.filtered_files import write_filtered
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
    from cwdpo.negatives.made_elsewhere import write_asked

    server = _endpoint(endpoint, served_model, concurrency)
    try:
        counts = write_asked(data, out, server, seed=seed, image_root=image_root, progress=_progress)
    finally:
        _tell(Counter(), server, price)
    _tell(counts, None, None)
    print(f"wrote {out}")


def _endpoint(url: str, model: str | None, concurrency: int) -> "Endpoint":
    from cwdpo.negatives.endpoint import Endpoint

    return Endpoint(url, model=model, concurrency=concurrency)


def _sampler(model: str, server: "Endpoint | None", how: Any) -> Any:
    if server is not None:
        from cwdpo.negatives.serving import ServerSampler

        return ServerSampler(server, how)
    from cwdpo.negatives.sampling import LocalSampler

    return LocalSampler(*_load(model), how)


def _measure(model: str) -> "Measure":
    from cwdpo.negatives.measured import measure_hardness

    loaded, processor = _load(model)
    return lambda rows: measure_hardness(loaded, processor, rows)


def _weigh(run: Path) -> "Weigh | None":
    from cwdpo.cli.negatives_show import recipe_of_run, weight_of

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
