"""``cwdpo chat``: ask the tuned model about an image, in the terminal, beside its base."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError, UserError

if TYPE_CHECKING:
    from cwdpo.evaluation.chat import Chat

_HELP = "A line is a question. /image FILE... changes the images, /none asks without one, /quit ends (or Ctrl-D)."
_SIDE_BY_SIDE = 70
"""Columns of the terminal from which answers stand beside each other."""


def chat(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, a checkpoint or a hub name.", show_default=False)
    ],
    image: Annotated[list[Path] | None, typer.Option("--image", help="Ask about this; may be repeated.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the model that it was tuned from answer too.")] = False,
    against: Annotated[str | None, typer.Option("--against", help="Let this model answer too.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Sample.  [default: the most likely tokens]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples.")] = 0,
) -> None:
    """Ask a tuned model about an image, one question at a time; --base shows both answers side by side.

    Questions come from the terminal, or one a line from a file: cwdpo chat RUN --image a.png < questions.txt
    """
    if temperature is not None and not temperature > 0:
        raise ConfigError(
            f"--temperature is {temperature}, but must be above 0. Leave it out for the likeliest tokens."
        )
    if base and against is not None:
        raise ConfigError("--base and --against name a second model each, and there is one. Leave one of them out.")
    quiet_libraries()
    from cwdpo.evaluation.chat import Chat, check_images, load_models

    check_images(image or [], source="--image")  # a model may take minutes to load
    models = load_models(model, with_base=base or against is not None, base=against)
    talk = Chat(models, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    talk.show(image or [])
    console = Console()
    if sys.stdin.isatty():
        console.print(Text(_HELP, style="dim"))
    lines = list(_lines()) if not sys.stdin.isatty() else _lines()
    if not lines:
        raise UserError("no question came. Write one a line: echo QUESTION | cwdpo chat ...")
    for line in lines:
        if line.startswith("/"):
            if not _command(line, talk, console):
                return
        else:
            _show(dict(talk.ask(line)), console)


def _lines() -> Iterator[str]:
    """What is typed, until the end of the input or Ctrl-C."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def _command(line: str, talk: "Chat", console: Console) -> bool:
    """Do what a line with a slash says; False where it ends the chat. Mistakes are said, and end nothing."""
    try:
        word, *rest = shlex.split(line)
    except ValueError:
        word, *rest = line.split()
    if word in ("/quit", "/exit", "/q"):
        return False
    if word in ("/image", "/images") and rest:
        try:
            talk.show([Path(name).expanduser() for name in rest], source=word)
            console.print(Text(f"asking about {', '.join(rest)}", style="dim"))
        except UserError as error:
            console.print(Text(str(error), style="red"), soft_wrap=True)
    elif word == "/none":
        talk.show([])
    else:
        console.print(Text(_HELP, style="dim"))
    return True


def _show(answers: dict[str, str], console: Console) -> None:
    if len(answers) == 1:
        console.print(Text(next(iter(answers.values()))), soft_wrap=True)
        return
    wide = console.width >= _SIDE_BY_SIDE
    width = (console.width - 1) // len(answers) if wide else None
    panels = [Panel(Text(answer), title=name, title_align="left", width=width) for name, answer in answers.items()]
    console.print(Columns(panels, padding=(0, 0)) if wide else panels[0], *([] if wide else panels[1:]))
