"""``cwdpo judge``: which of several models answers better, pair by pair."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.negatives import parse_prices
from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.progress import bars
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError

if TYPE_CHECKING:
    from cwdpo.evaluation.intervals import Estimate
    from cwdpo.evaluation.judging.run import JudgeResult, PairResult
    from cwdpo.evaluation.judging.verdicts import PairJudge

_MOST_CALLS = 5000


def judge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help='Two or more runs, checkpoints, hub names, or files of answers, {"id": ..., "answer": ...} a line.',
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="A file or directory of rows.", show_default=False)],
    judge: Annotated[
        str, typer.Option("--judge", help="exact, same_words, overlap, module:function, or a server as URL#MODEL.")
    ] = "exact",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where answers and verdicts are kept; else judge-A-B.", show_default=False),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="A sample of this many rows; else all.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Sample the answers; else greedy.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples and of bootstrap intervals.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longer answers are cut.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers at one time.")] = 32,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at one time.")] = 8,
    max_calls: Annotated[
        int, typer.Option("--max-calls", min=0, help="Refuse to ask a server more often.")
    ] = _MOST_CALLS,
    prices: Annotated[
        str | None, typer.Option("--prices", help="Of a million prompt and completion tokens, as 0.15,0.6: the cost.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number of calls, and stop.")] = False,
    image_root: ImageRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Compare models on the same rows: win rates in both orders, with and without the effect of length.

    Everything is kept as it comes: repeat an interrupted command to go on. The numbers are in judge.json.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(f"--temperature is {temperature}, but must be > 0; leave it out for greedy answers.")
    price = parse_prices(prices)
    from cwdpo.evaluation.judging.contestants import Answering, Workspace, contestants, rows_to_judge, settings_of
    from cwdpo.evaluation.judging.judges import load_pair_judge
    from cwdpo.evaluation.judging.run import calls_needed, compare_models, result_json
    from cwdpo.negatives.files import what_was_read
    from cwdpo.records import write_json

    competing = contestants(models)
    judged = rows_to_judge(data, image_root, rows, seed)
    asked = load_pair_judge(judge, judged.all_rows, concurrency=concurrency)
    answering = Answering(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, batch_size=batch_size)
    space = Workspace.of(competing, out)
    settings = settings_of(judged, competing, answering, judge, what_was_read(data, image_root))
    space.check(settings)
    if dry_run:
        _print_calls_needed(*calls_needed(judged, competing, asked, space), asked, as_json)
        return
    space.open(settings)
    if not all(one.is_file for one in competing):
        quiet_libraries()
    with bars() as progress:
        result = compare_models(
            judged, competing, answering, asked, space, progress=progress, say=_note, most_calls=max_calls, price=price
        )
    found = {"judge": judge, "data": str(data), "rows": len(judged.rows), **result_json(result)}
    write_json(space.result, found)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(result, Console())
        if judge in ("exact", "same_words") and not any(pair.won + pair.lost for pair in result.pairs):
            print(
                f"nothing but ties: --judge {judge} knows right from not right alone, and no row has one answer of "
                "each, as where no answer is exactly right. Try --judge overlap, which counts common words."
            )
        print(f"written: {space.result}")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _print_calls_needed(most: int, exact: bool, asked: "PairJudge", as_json: bool) -> None:
    if as_json:
        print(json.dumps({"calls": most if asked.costs else 0, "exact": exact, "verdicts": most}))
    else:
        what = "calls of the server" if asked.costs else "verdicts, no call of a server"
        print(f"{'' if exact else 'at most '}{most} {what}")


def _show(result: "JudgeResult", console: Console) -> None:
    table = Table(
        "pair", "rows", "won", "tied", "lost", "win rate", "same length", "without ties", title_justify="left"
    )
    for pair in result.pairs:
        rate = pair.win_rate
        counts = (str(count) for count in (pair.rows, pair.won, pair.tied, pair.lost))
        shown = (rate.wilson, rate.length_controlled, rate.decided)
        table.add_row(Text(f"{pair.first} : {pair.second}"), *counts, *map(_percent, shown))
    table.caption = (
        "Of the first model over the second, with 95 % intervals. Ties count half; same length: with the effect of "
        "length removed."
    )
    table.caption_justify = "left"
    console.print(table)
    for pair in result.pairs:
        console.print(Text(_about_order(pair)), soft_wrap=True)
    if result.strengths is not None:
        ranked = sorted(result.strengths.items(), key=lambda item: -item[1].value)
        strengths = Table("model", "strength, nats", title="Bradley-Terry", title_justify="left")
        for name, one in ranked:
            strengths.add_row(Text(name), f"{one.value:+z.2f} [{one.low:+z.2f}, {one.high:+z.2f}]")
        console.print(strengths)
    if result.why_no_strengths is not None:
        console.print(Text(result.why_no_strengths), soft_wrap=True)
    if (used := result.cost) and "requests" in used:
        price = "" if used["price"] is None else f": {used['price']:.4f} in all"
        print(
            f"{used['requests']} requests ({used['retries']} repeated), {used['prompt_tokens']} prompt tokens and "
            f"{used['completion_tokens']} completion tokens{price}"
        )


def _about_order(pair: "PairResult") -> str:
    """A sentence on ties, order and what was left out."""
    facts = [f"{pair.first} : {pair.second}: {pair.same_answer} ties are the same answer"]
    if pair.order.consistent is not None and pair.order.consistent.value < 1:
        facts.append(
            f"{pair.inconsistent} verdicts changed with the order (consistent {_percent(pair.order.consistent)})"
        )
    if pair.order.first_preferred is not None and pair.inconsistent:
        facts.append(f"the answer shown first won {_percent(pair.order.first_preferred)}")
    facts.append("mean length {:.0f} : {:.0f} characters".format(*pair.mean_characters))
    if pair.left_out:
        facts.append(f"{pair.left_out} rows left out, as the judge gave no verdict")
    return "; ".join(facts) + "."


def _percent(estimate: "Estimate | None") -> str:
    """A share with its interval.

    Example:
        >>> from cwdpo.evaluation.intervals import wilson
        >>> _percent(wilson(5, 10)), _percent(None)
        ('50.0% [24, 76]', '-')
    """
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
