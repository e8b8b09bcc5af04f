"""What is said of a wrong use of the command line: one line that names the option and says what to write."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.exceptions import TyperException

from cwdpo.contents import COMPARE_RUNS, Kind, kind_of
from cwdpo.errors import UserError, shortened

_MUST_BE = {
    "valid integer": "a whole number",
    "valid number": "a number",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
"""How typer says what a value should be, and how we do."""


_SAME: Sequence[Sequence[str]] = (
    ("base", "against", "reference", "ref-model"),
    ("model", "run", "checkpoint", "policy"),
    ("data", "dataset", "rows-file", "input", "train", "file"),
    ("out", "output", "output-dir", "html", "save", "json"),
    ("rows", "num-rows", "limit", "samples", "max-samples", "n"),
    ("eta", "lr", "learning-rate"),
    ("image", "images", "picture"),
    ("max-new-tokens", "max-tokens", "max-length"),
    ("image-root", "image-folder", "images-dir", "image-dir"),
)
"""Words for one thing: an option, or an argument, that a command has by another of them is meant."""

_INSTEAD = {
    ("force", "overwrite", "yes"): "Nothing is overwritten: remove the file, or give another name.",
    ("prompt", "question", "text"): "Pipe the question in: echo QUESTION | {command}.",
    ("out", "output", "json"): "It prints: write {command} > FILE.",
    ("gpu", "cuda", "device", "cpu"): "CUDA_VISIBLE_DEVICES=0 chooses a GPU; empty, it leaves the CPU.",
}
"""What is written in place of options that no command has, or that one command alone lacks."""


def explain_usage(mistake: TyperException, words: Sequence[str]) -> str:
    """One line for a command, an option or a value that does not exist; typer's own is a box of several.

    ``words`` are those of the command line. Empty where a command was given alone: its help has been printed.
    """
    said = " ".join(mistake.format_message().replace("Value error, ", "").split())
    if not said:
        return ""
    context: Any = getattr(mistake, "ctx", None)
    param: Any = getattr(mistake, "param", None)
    command = "cwdpo" if context is None else context.command_path
    if said.startswith("Missing ") and command == "cwdpo compare" and _names_a_run(words):
        said = f"it trains a grid, a YAML file. {COMPARE_RUNS}"
    elif said.startswith("Missing ") and param is not None:
        said = f"{_name(param)} is missing. Write it: {param.help[0].lower()}{param.help[1:]}"
    elif said.startswith("Invalid value") and param is not None:
        said = _of_value(said.partition(": ")[2], param, words)
    elif (
        extra := re.search(r"unexpected extra arguments?(?:\(s\))? \((.+)\)", said)
    ) is not None and context is not None:
        said = _of_extra(extra[1], context.command, words, command)
    elif context is not None and (unknown := re.match(r"No such command '(.+?)'", said)) is not None:
        said = _of_command(unknown[1], said, context.command)
    elif context is not None and (unknown := re.match(r"No such option: (\S+)", said)) is not None:
        said = _of_unknown(unknown[1], context.command, command)
    elif (flag := re.match(r"Option '(\S+)' does not take a value", said)) is not None:
        command = " ".join(["cwdpo", *(word for word in words[:1] if not word.startswith("-"))])
        said = f"{flag[1]} takes no value. Write {flag[1]} alone"
    return f"{command}: {said if said.endswith(('.', '?', '!')) else f'{said}.'} See: {command} --help"


def refuse_without_value(command: Any, path: str, words: Sequence[str]) -> None:
    """A UserError where an option that takes a value is followed by another option, or by nothing: it would take that
    option for its value."""
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    options = {name: param for name, param in options.items() if name.startswith("-")}
    for word, following in zip(words, [*words, "--help"][1:], strict=True):
        param = options.get(word)
        if param is None or param.is_flag or param.count:
            continue
        if following in options or following in ("--help", "-h"):
            raise UserError(f"{path}: {word} has no value. Write {word} {_placeholder(param)}. See: {path} --help")


def _of_unknown(name: str, command: Any, path: str) -> str:
    """What to write for an option that the command does not have."""
    name = name.partition("=")[0]
    plain = name.lstrip("-").replace("_", "-")
    words = {plain, *next((words for words in _SAME if plain in words), ())}
    named = [_name(param) for param in command.params if param.param_type_name == "argument"]
    for place, argument in enumerate(named):
        if words & {*argument.lower().split("_")}:
            after = f", after {named[place - 1]}" if place else ""
            return f"{argument} is written without {name}{after}"
    known = [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
    known = [option.removeprefix("--") for option in known if option.startswith("--")]
    near = [option for option in known if option in words]
    near = near or [option for option in known if len(plain) < 4 and option.startswith(plain)]
    near = near or difflib.get_close_matches(plain, known, n=2, cutoff=0.75)
    if near:
        return f"there is no option {name}. Did you mean {' or '.join(f'--{option}' for option in near)}?"
    advice = next((advice for words, advice in _INSTEAD.items() if plain in words), "")
    return f"there is no option {name}. {advice.format(command=path)}".strip()


_OF_RECIPE = ("--recipe", "--config", "--config_file", "--config-file", "-c", "-r")


def recipe_comes_first(command: str, words: Sequence[str]) -> UserError:
    """The error for words of which the first is not the recipe; it gives them in order, if a recipe is among them."""
    at = next((at for at, word in enumerate(words) if word.endswith((".yaml", ".yml"))), None)
    right = f"{command} RECIPE {words[0]} ..."
    if at is not None:
        before = words[: at - 1 if at and words[at - 1] in _OF_RECIPE else at]
        right = f"{command} {shlex.join([words[at].rpartition('=')[2], *before, *words[at + 1 :]])}"
    return UserError(f"expected the recipe before {words[0]}. Write: {right}")


_OTHER_COMMANDS: Mapping[str, Sequence[str]] = {
    "init": ("new", "create", "recipe", "setup", "config"),
    "check": ("validate", "lint", "verify", "dry-run", "preflight", "data"),
    "train": ("dpo", "sft", "run", "fit", "finetune", "fine-tune", "rlhf", "start", "resume", "cw-dpo", "cwdpo"),
    "evaluate": ("eval", "test", "score", "metrics"),
    "chat": ("infer", "inference", "generate", "predict", "ask", "talk"),
    "report": ("show", "view", "plot", "dashboard", "status"),
    "merge": ("export", "merge-lora", "merge_lora", "save", "convert"),
    "negatives": ("sample", "gentle", "mix", "filter"),
    "bench": ("benchmark", "profile"),
}
"""Our commands, and what other tools call such a command."""


def _of_command(name: str, said: str, command: Any) -> str:
    """What to write for a command that does not exist: one with another name, or one that a file was meant for."""
    ours = next((ours for ours, words in _OTHER_COMMANDS.items() if name.lower() in words), None)
    if name.endswith((".yaml", ".yml")):
        ours = f"train {name}"
    elif _kind(name) is not None and Path(name).is_file():
        ours = f"check {name}"
    is_there = ours is not None and ours.split()[0] in command.commands
    return f"No such command {shortened(name)!r}. Did you mean `cwdpo {ours}`?" if is_there else said


def _name(param: Any) -> str:
    return str(param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper())


def _placeholder(param: Any) -> str:
    return str(param.metavar or param.opts[0].lstrip("-").upper().replace("-", "_"))


def _of_value(said: str, param: Any, words: Sequence[str]) -> str:
    """``said`` is what is wrong with a value."""
    choices = re.search(r"is not one of (.+?)\.?$", said)
    name, value = _name(param), _given(param, words)
    shown = "" if value is None else f" {shortened(value)!r}"
    if choices is not None:
        allowed = re.findall(r"'([^']*)'", choices[1])
        near = difflib.get_close_matches(value or "", allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{name} is{shown}, but must be one of {', '.join(allowed)}.{hint}"
    for words_of_typer, ours in _MUST_BE.items():
        found = re.search(rf"{words_of_typer}( -?[\d.]+)?", said)
        if found is not None:
            in_help = re.search(r"\[default: ([\d.e-]+)\]", param.help or "")
            otherwise = 1 if in_help is None else in_help[1]
            example = param.default if isinstance(param.default, int | float) else otherwise
            return f"{name} is{shown}, but must be {ours}{found[1] or ''}. Write for example {name} {example}."
    return f"{name} cannot be{shown}: {said}"


def _given(param: Any, words: Sequence[str]) -> str | None:
    """The value of an option as it was typed."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word in param.opts:
            return following
        name, equals, value = word.partition("=")
        if equals and name in param.opts:
            return value
    return None


def _names_a_run(words: Sequence[str]) -> bool:
    return any(_kind(word) in ("a run", "an unfinished run") for word in words)


def _kind(word: str) -> Kind | None:
    """What a word of the command line names, if it can be a path."""
    try:
        return kind_of(Path(word))
    except (OSError, ValueError):  # too long for a name, or no permission
        return None


def _of_extra(extra: str, command: Any, words: Sequence[str], path: str) -> str:
    """Of words that the command has no place for."""
    options = {param.opts[0]: param for param in command.params if param.param_type_name == "option"}
    repeated = next((name for name, param in options.items() if param.multiple and name in words), None)
    first = extra.split()[0]
    if path == "cwdpo chat" and extra in words and (" " in extra or extra.endswith("?")):
        given = " ".join(word for word in words[1:] if word != extra)
        advice = f'Pipe the question in: echo "{shortened(extra)}" | {path} {given}.'
    elif path == "cwdpo compare" and _names_a_run(words):
        advice = f"It trains a grid, a YAML file. {COMPARE_RUNS}"
    elif "--image" in options and "--image" not in words and _kind(first) == "an image":
        advice = f"Write --image {first}."
    elif repeated is not None:
        advice = f"Repeat the option for each: {repeated} {first}."
    elif "--data" in options and "--data" not in words:
        advice = f"Write --data {first}."
    else:
        taken = [_name(param) for param in command.params if param.param_type_name == "argument"]
        advice = f"{path} takes {' and '.join(taken) or 'options'} alone."
    return f"there is no place for {shortened(extra)!r}. {advice}"
