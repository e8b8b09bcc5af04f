"""The ``cwdpo`` command, and the one place where errors become exit codes."""

import errno
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from cwdpo import __version__
from cwdpo.cli import (
    analyse,
    audit,
    bench,
    chat,
    check,
    compare,
    demo,
    diagnose,
    evaluate,
    init,
    judge,
    merge,
    negatives,
    probe,
    report,
    schema,
    train,
)
from cwdpo.cli.usage import explain_usage, refuse_without_value
from cwdpo.config.secrets import Redacting, protect_environment, redact
from cwdpo.errors import UserError, printable, shortened

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")  # the words of safetensors, which is written in Rust
_REDACTING = Redacting()
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")
"""What gloo and NCCL say where another rank is gone."""


def explain(error: BaseException) -> str | None:
    """One message for an error that the user can fix; None for a defect of ours, which needs its traceback.

    Example:
        >>> explain(UserError("rows.jsonl:3: no answer. Add one."))
        'rows.jsonl:3: no answer. Add one.'
        >>> explain(KeyError("x")) is None
        True
    """
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return _from_worker(str(cause))
    for cause in _chain(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL or any(words in str(cause) for words in _FULL_WORDS):
            return (
                f"no space left on the disk{_about(cause)}. What was saved before is whole. "
                "Free some space and run the command again, with --resume if it was training."
            )
        if isinstance(cause, OSError) and cause.errno in _DENIED:
            return f"no permission{_about(cause)} ({cause.strerror}). Give another path, or change its permissions."
        if number == errno.ENAMETOOLONG:
            return f"a file name is too long{shortened(_about(cause))}. Give a shorter one."
        if _is_of_a_lost_peer(cause):
            return (
                "another process of this training has ended, and this one cannot go on alone. What that one printed, "
                "or the system's log where it printed nothing (memory), says why. Fix it and run the command again, "
                "with --resume if it was training."
            )
    return None


def _is_of_a_lost_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _PEER_GONE)


def _from_worker(message: str) -> str:
    """The message alone, of an error that a data loader's worker process wrapped in its traceback.

    Example:
        >>> _from_worker("Caught DataError in DataLoader worker process 0.\\nTraceback ...\\n  a.DataError: x:1: no")
        'x:1: no'
    """
    return message.strip().splitlines()[-1].partition(": ")[2] if message.startswith("Caught ") else message


def _about(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" at {name}" if name else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, newest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


class _InterruptedError(Exception):
    """Ctrl-C, distinct from every other exit."""


def _at_home(word: re.Match[str]) -> str:
    """A path of the home directory, which shells leave as it is in ``--out=~/x`` and in quotes."""
    return f"{word[1] or ''}{os.path.expanduser(word[2])}"


class _Commands(TyperGroup):
    """Commands in the order they were added, which is the order they are used in."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant; refused where one of its options has no value."""
        name, command, words = super().resolve_command(ctx, args)
        words = [re.sub(r"^(--[\w-]+=)?(~/.*)", _at_home, word) for word in words]
        if name != "train" and not isinstance(command, TyperGroup):  # `train` takes settings that no option names
            refuse_without_value(command, f"{ctx.command_path} {name}", words)
        return name, command, words

    def get_command(self, ctx: Any, name: str) -> Any:
        """A command whose help shows no type beside its flags, as they take no value."""
        command = super().get_command(ctx, name)
        for param in () if command is None else command.get_params(ctx):
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an interruption keeps its own type, so that :func:`main` can print how to continue."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            raise _InterruptedError(str(interruption)) from interruption

    def list_commands(self, ctx: Any) -> list[str]:
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
_WITH_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands that take a recipe's settings, which no option names."""

app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("check", context_settings=_WITH_SETTINGS)(check.check)
app.command("audit")(audit.audit)
app.command("train", context_settings=_WITH_SETTINGS)(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("chat")(chat.chat)
app.command("probe")(probe.probe)
app.command("diagnose")(diagnose.diagnose)
app.command("judge")(judge.judge)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("analyse")(analyse.analyse)
app.command("merge")(merge.merge)
app.command("schema")(schema.schema)
app.command("bench")(bench.bench)
app.add_typer(negatives.app, name="negatives", cls=_Commands)


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
    protect_environment()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_REDACTING)
    sys.excepthook = _print_redacted


def _print_redacted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 ``check`` found what stops training, 2 bad input or a full disk, explained in one message,
    130 interrupted. Anything else is a defect of ours, and shows its traceback.
    """
    try:
        raise SystemExit(app(prog_name="cwdpo", standalone_mode=False))
    except TyperException as mistake:
        if said := explain_usage(mistake, sys.argv[1:]):
            print(printable(redact(said)), file=sys.stderr)
        raise SystemExit(2) from None
    except _InterruptedError as interruption:
        said = f"\n{str(interruption) or 'Interrupted.'}\n{_how_to_continue(sys.argv[1:])}"
        print(printable(redact(said)), file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as leaving:
        if leaving.code == 130:  # interrupted while the words of the command were read
            print("\nInterrupted. Nothing was begun.", file=sys.stderr)
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(printable(redact(message)), file=sys.stderr)
        if any(_is_of_a_lost_peer(cause) for cause in _chain(error)):
            sys.stdout.flush()
            os._exit(2)  # the interpreter's end would wait for the other process, for some ten seconds
        raise SystemExit(2) from None


def _how_to_continue(arguments: list[str]) -> str:
    if arguments[:1] not in (["train"], ["judge"]):
        return "Nothing that was finished is lost."
    again = arguments if "--resume" in arguments or arguments[0] == "judge" else [*arguments, "--resume"]
    return f"Continue with:  {shlex.join(['cwdpo', *again])}"
