"""The report of ``cwdpo check`` for people."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cwdpo.data.check_report import CheckReport, Notice, RowReport

_SHOWN = 10
_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(report: "CheckReport", facts: Mapping[str, Any] | None, console: Console) -> None:
    """Print totals, token budgets, what a model would train, and the first of the problems.

    Args:
        report: what was found in the rows.
        facts: from :mod:`cwdpo.cli.model_facts`, with its ``memory``; None if no model was given.
        console: where to.
    """
    console.print(_totals(report))
    if facts is not None:
        console.print(_tokens(report, facts))
        console.print(_model(facts))
    _list(report.notes, "note", console)
    _list(report.findings, "STOPS TRAINING", console)
    if report.ok:
        console.print("Nothing stops training.", style="green")
    else:
        count = len(report.findings)
        console.print(f"{count} {'thing stops' if count == 1 else 'things stop'} training.", style="red")


def human_bytes(number: float) -> str:
    """A size for people.

    Example:
        >>> human_bytes(1_500_000), human_bytes(12)
        ('1.5 MB', '12 B')
    """
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


def _totals(report: "CheckReport") -> Table:
    summary = report.summary()
    table = _plain_table(report.path)
    table.add_row("rows", f"{summary['rows']} usable of {summary['records']}")
    table.add_row("formats", ", ".join(f"{name}: {count}" for name, count in summary["formats"].items()) or "none")
    table.add_row("images", f"{summary['images']} in {summary['with_images']} rows")
    table.add_row("with rejected answers", str(summary["with_rejected"]))
    table.add_row("with a gentle negative", str(summary["with_gentle"]))
    return table


def _tokens(report: "CheckReport", facts: Mapping[str, Any]) -> Table:
    limit = facts["max_length"]
    table = Table(
        "tokens", "mean", "largest", "in", title=f"token budget, limit {limit or 'none'}", title_justify="left"
    )
    columns: dict[str, Callable[[RowReport], int | None]] = {
        "prompt text": lambda row: row.text_tokens,
        "prompt images": lambda row: row.image_tokens,
        "chosen": lambda row: row.chosen_tokens,
        "rejected, longest": lambda row: max(row.rejected_tokens or [], default=None),
        "gentle": lambda row: row.gentle_tokens,
        "prompt and answer": lambda row: row.longest,
    }
    for name, count in columns.items():
        counted = [(tokens, row.source) for row in report.rows if (tokens := count(row)) is not None]
        if counted:
            largest, source = max(counted, key=lambda item: item[0])
            mean = sum(tokens for tokens, _ in counted) / len(counted)
            table.add_row(name, f"{mean:.1f}", str(largest), Text(source))
    return table


def _model(facts: Mapping[str, Any]) -> Table:
    table = _plain_table(f"{facts['name_or_path']} ({facts['class']}, {facts['dtype']})")
    for name, part in facts["parts"].items():
        trained = "trained" if part["trainable"] else "frozen"
        table.add_row(name, f"{part['total']:,} weights, {trained} in full finetuning")
    lora = facts["lora"]
    table.add_row(
        f"LoRA, r {lora['r']}",
        f"{lora['weights']:,} weights in {len(lora['targets'])} layers: {_by_kind(lora['targets'])}",
    )
    for name, word in (("lora", "LoRA"), ("full", "full finetuning")):
        sizes = facts["memory"][name]
        parts = ", ".join(f"{key} {human_bytes(value)}" for key, value in sizes.items() if key != "total")
        table.add_row(f"memory, {word}", f"about {human_bytes(sizes['total'])} ({parts})")
    table.caption = "Memory is for one pair of the longest row, with gradient checkpointing; right to a factor of 1.5."
    table.caption_justify = "left"
    return table


def _by_kind(targets: Sequence[str]) -> str:
    """``28 x q_proj, 28 x k_proj``: the last part of each name tells the kind of layer."""
    return ", ".join(
        f"{count} x {kind}" for kind, count in Counter(name.rsplit(".", 1)[-1] for name in targets).items()
    )


def _list(notices: Sequence["Notice"], title: str, console: Console) -> None:
    for notice in notices[:_SHOWN]:
        console.print(Text(f"{title}: {notice.message}"), soft_wrap=True)
    if len(notices) > _SHOWN:
        names = ", ".join(
            f"{count} {name}" for name, count in Counter(notice.name for notice in notices[_SHOWN:]).items()
        )
        console.print(Text(f"{title}: and {len(notices) - _SHOWN} more ({names}). --json lists all."), soft_wrap=True)


def _plain_table(title: str) -> Table:
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
