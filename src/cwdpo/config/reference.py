"""Every setting of a recipe described: the page of the documentation, and a JSON schema that editors complete from.

Both are read off the dataclasses of :mod:`cwdpo.config.recipe`: types, defaults and limits from their fields, one line
of text from the docstrings under them.
"""

import ast
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cwdpo.config import recipe as recipe_module
from cwdpo.config.checking import describe_type, section_fields, section_type, shown
from cwdpo.config.limits import Limit
from cwdpo.config.located_yaml import KeyPath
from cwdpo.config.recipe import Recipe

SCHEMA = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: Mapping[object, str] = {float: "number", int: "integer", bool: "boolean", str: "string", type(None): "null"}


@dataclass(frozen=True)
class Setting:
    """One setting, or one section of settings, in words."""

    path: KeyPath
    type: str
    default: str
    """As the recipe would write it; empty where a setting must be given."""

    limit: str
    text: str
    """What it does, from its docstring; empty where its name says all."""

    is_section: bool

    @property
    def name(self) -> str:
        return ".".join(self.path)


def describe_settings() -> Iterator[Setting]:
    """Every section and setting of a recipe, in order, each section before its settings."""
    yield from _described(Recipe, ())


def _described(section: type, above: KeyPath) -> Iterator[Setting]:
    texts = _docstrings(section)
    hints = get_type_hints(section, include_extras=True)
    for name, (field, hint) in section_fields(section).items():
        inner = section_type(hint)
        text = texts.get(name) or (_first_line(inner) if inner is not None else "")
        bound = next((str(note) for note in _notes(hints[name]) if isinstance(note, Limit)), "")
        kind = "a section" + (" or null" if type(None) in get_args(hint) else "") if inner else describe_type(hint)
        yield Setting((*above, name), kind, _default(field), bound, text, inner is not None)
        if inner is not None:
            yield from _described(inner, (*above, name))


def reference_page() -> str:
    """The page *Recipe reference*, as Markdown."""
    settings = list(describe_settings())
    lines = [
        "# Recipe reference",
        "",
        "<!-- made by docs/make_recipe.py from the dataclasses of cwdpo.config.recipe; change those, not this -->",
        "",
        "Every key of a recipe. `cwdpo init` writes a first recipe, `cwdpo schema > recipe.schema.json` the same as",
        "this page for editors ([how](#in-an-editor)). On the command line each is `--section.key value`.",
        "",
        "A section that is `null` is off; `{}` is a section with all its defaults. A key that is not here is an error",
        "that names the line.",
    ]
    for path in [(), *(setting.path for setting in settings if setting.is_section)]:
        own = [setting for setting in settings if setting.path[:-1] == path]
        title = ".".join(path) or "The top of the recipe"
        section = next((setting for setting in settings if setting.path == path), None)
        lines += ["", f"## {title}", ""]
        if section is not None:
            default = f" Default: `{section.default}`." if section.default else ""
            lines += [f"{_sentence(section.text)}{default}", ""]
        lines += ["| key | type | default | limit | what it does |", "|---|---|---|---|---|"]
        lines += [_row(setting) for setting in own]
    return "\n".join([*lines, "", *_EDITORS])


_EDITORS = [
    "## Settings of the Trainer",
    "",
    "`trainer` takes every setting of `transformers.TrainingArguments`, and `stage1.trainer` and `stage2.trainer`",
    "override it for their stage; on the command line `--trainer.KEY` is refused where they do. Two are cwdpo's",
    "own: `max_tokens_per_batch` (most tokens that pass through the model at once) and `length_buckets` (rows of",
    "similar length in the same step). `activation_checkpointing` may also be `auto`: activations are recomputed",
    "where a step has no room for them. Not set here: `output_dir`, `seed`, `engine` (top of the recipe),",
    "`max_length` (`data`), `resume_from_checkpoint` (`--resume`). Where a recipe names",
    "no `learning_rate` and `num_train_epochs`, adapters train at 1e-4 in stage 1 and 5e-6 in stage 2, all weights at",
    "1e-5 and 5e-7, each for one epoch.",
    "",
    "## In an editor",
    "",
    "```text",
    "cwdpo schema > recipe.schema.json",
    "```",
    "",
    "and as the first line of the recipe `# yaml-language-server: $schema=recipe.schema.json`. VS Code (with the YAML",
    "extension), Neovim and JetBrains then complete keys and mark mistakes while you type.",
    "",
]


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else "must be given"
    cells = (f"`{setting.path[-1]}`", setting.type, default, setting.limit, setting.text)
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def recipe_schema(trainer_fields: Mapping[str, object] | None = None) -> dict[str, Any]:
    """A JSON schema of recipes; ``trainer_fields`` are names and types of what ``trainer`` sections may hold."""
    sections: dict[str, Any] = {}
    top = _section_schema(Recipe, sections)
    trainer: dict[str, Any] = {"type": "object", "description": "Settings of transformers.TrainingArguments."}
    if trainer_fields is not None:
        trainer["properties"] = {name: _loose(hint) for name, hint in trainer_fields.items()}
        trainer["additionalProperties"] = False
    return {"$schema": SCHEMA, "title": "A recipe of cwdpo", **top, "$defs": sections | {"trainer": trainer}}


def _section_schema(section: type, sections: dict[str, Any]) -> dict[str, Any]:
    texts, hints = _docstrings(section), get_type_hints(section, include_extras=True)
    properties: dict[str, Any] = {}
    required = []
    for name, (field, hint) in section_fields(section).items():
        found = {"$ref": "#/$defs/trainer"} if name == "trainer" else _type_schema(hints[name], sections)
        inner = section_type(hint)
        if text := texts.get(name) or (_first_line(inner) if inner is not None else ""):
            found = {**found, "description": text}
        if field.default is not MISSING and not is_dataclass(field.default):
            found = {**found, "default": field.default}
        if field.default is MISSING and field.default_factory is MISSING:
            required.append(name)
        properties[name] = found
    return {
        "type": "object",
        "description": _first_line(section),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type_schema(hint: object, sections: dict[str, Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        for note in _notes(hint):
            if isinstance(note, Limit):
                names = ("exclusiveMinimum", "minimum", "exclusiveMaximum", "maximum")
                values = (note.above, note.at_least, note.below, note.at_most)
                bounds = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        hint = get_args(hint)[0]
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [_one_schema(part, sections, bounds) for part in parts]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _one_schema(part: Any, sections: dict[str, Any], bounds: Mapping[str, Any]) -> dict[str, Any]:
    if part in _SIMPLE:
        return {"type": _SIMPLE[part], **(bounds if part in (int, float) else {})}
    if get_origin(part) is Literal:
        return {"enum": list(get_args(part))}
    if get_origin(part) is list:
        return {"type": "array", "items": _type_schema(get_args(part)[0], sections)}
    if get_origin(part) is dict:
        keys, values = get_args(part)
        names = {"propertyNames": {"enum": list(get_args(keys))}} if get_origin(keys) is Literal else {}
        return {
            "type": "object",
            **names,
            "additionalProperties": {} if values is Any else _type_schema(values, sections),
        }
    name = str(part.__name__)
    if name not in sections:
        sections[name] = {}  # its place, so that sections stand in the order in which they are met
        sections[name] = _section_schema(part, sections)
    return {"$ref": f"#/$defs/{name}"}


def _loose(hint: object) -> dict[str, Any]:
    """The schema of a setting that is not ours, as far as its type is one that YAML has."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not all(part in _SIMPLE for part in parts):
        return {}
    kinds = [_SIMPLE[part] for part in parts]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _notes(hint: object) -> Sequence[object]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _default(field: Field[Any]) -> str:
    """As the recipe would write it; the empty text where there is none."""
    if field.default is not MISSING:
        return field.default if isinstance(field.default, str) else shown(field.default)
    if field.default_factory is MISSING:
        return ""
    made = field.default_factory()
    return "{}" if is_dataclass(made) else shown(made)


def _docstrings(section: type) -> dict[str, str]:
    """The text under each field of a section, on one line, without the marks of reStructuredText."""
    found: dict[str, str] = {}
    body = _class_bodies()[section.__name__]
    for item, after in pairwise(body):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[item.target.id] = _plain(str(after.value.value))
    return found


@functools.cache
def _class_bodies() -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(recipe_module))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _first_line(section: type) -> str:
    return _plain((section.__doc__ or "").partition("\n\n")[0])


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _sentence(text: str) -> str:
    return text if text.endswith(".") or not text else f"{text}."
