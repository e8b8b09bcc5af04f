"""The ``cwdpo`` command, and the one place where errors become exit codes."""

import logging
import shlex
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cwdpo.cli import analyse, bench, check, demo, diagnose, merge, negatives, probe, report, train
from cwdpo.cli.failures import explain
from cwdpo.version import __version__


class _InterruptedError(Exception):
    """Ctrl-C, told apart from every other way out."""


class _Commands(TyperGroup):
    """Commands in the order they were added, which is the order they are used in."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an interruption keeps its own name, so that :func:`main` can say how to go on."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            raise _InterruptedError(str(interruption)) from interruption

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in order of use."""
        return list(self.commands)


app = typer.Typer(
    name="cwdpo",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Stable preference fine-tuning of vision-language models with cooling-weighted DPO.",
)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train.train)
app.command("probe")(probe.probe)
app.command("diagnose")(diagnose.diagnose)
app.command("report")(report.report)
app.command("analyse")(analyse.analyse)
app.command("merge")(merge.merge)
app.command("bench")(bench.bench)
app.add_typer(negatives.app, name="negatives")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cwdpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 ``check`` found what stops training, 2 bad input or a full disk, told in one message,
    130 interrupted. Anything else is a defect of ours, and shows its traceback.
    """
    try:
        app()
    except _InterruptedError as interruption:
        print(f"\n{str(interruption) or 'Interrupted.'}\n{_how_to_continue(sys.argv[1:])}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        raise SystemExit(2) from None


def _how_to_continue(arguments: list[str]) -> str:
    if arguments[:1] != ["train"]:
        return "Nothing that was finished is lost."
    again = arguments if "--resume" in arguments else [*arguments, "--resume"]
    return f"Continue with:  {shlex.join(['cwdpo', *again])}"
