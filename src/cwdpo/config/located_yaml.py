"""YAML that remembers on which line each key stood, reads ``1e-6`` as a number, and loses nothing silently."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import yaml

from cwdpo.errors import ConfigError, shortened

KeyPath: TypeAlias = tuple[str, ...]
"""Keys from the top of the recipe down, such as ``("stage2", "cooling", "floor")``."""

_MOST_NODES = 20_000  # aliases of aliases multiply: a few lines can stand for gigabytes
_CURLY = tuple("\u201c\u201d\u201e\u2018\u2019\u00ab")  # which word processors put in the place of " and '
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_TAGS = ("map", "seq", "str", "int", "float", "bool", "null")
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+)$")
_BOOL = re.compile(r"(yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NULL = re.compile(r"(~|null|Null|NULL|)$")


class Located(NamedTuple):
    """What a recipe says, and where it says it."""

    values: dict[str, Any]
    lines: dict[KeyPath, int]
    """Line of each key, counted from 1."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: no dates, no base 60, no octal by a leading zero, and exponents need no dot."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that :class:`_Loader` would otherwise read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        """Write everything out: an anchor that the writer made up only puzzles the reader."""
        return True


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}
    for _tag, _pattern, _first in (
        ("bool", _BOOL, "yYnNtTfFoO"),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+0123456789."),
        ("null", _NULL, ["~", "n", "N", ""]),
    ):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


def load(text: str, name: str, *, example: Callable[[KeyPath], str] = lambda path: "...") -> Located:
    """Parse a recipe; messages call it ``name``, and show the ``example`` of a setting that has no value. A
    ConfigError: broken YAML, a key given twice, a key without a value, or anything but keys and values at the top."""
    found, lines = _read(text, name, example)
    if found is None:
        raise ConfigError(f"{name}: the recipe is empty. Start it with `model:` and `data:`.")
    if not isinstance(found, dict):
        raise ConfigError(f"{name}:1: a recipe is keys and values, such as `seed: 0`, but this is {found!r:.40}.")
    return Located(found, lines)


def load_value(text: str, name: str) -> Any:
    """Parse one value of the command line as the recipe would read it: ``1e-6`` is a number, ``null`` is None."""
    return _read(text, name)[0] if text.strip() else text


def dump(values: Mapping[str, object]) -> str:
    """Values as YAML that :func:`load` reads back equal, keys in their order."""
    plain = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if not _LINE_ENDS.search(plain):
        return plain
    # PyYAML writes these ends of line as they are, and folds them into spaces when it reads them
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)


def dump_value(value: object) -> str:
    """One value as YAML on one line, which :func:`load_value` reads back equal.

    Example:
        >>> dump_value([1e-06, "no", None])
        "[1.0e-06, 'no', null]"
    """
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.strip()[1:-1]


def _read(
    text: str, name: str, example: Callable[[KeyPath], str] = lambda path: "..."
) -> tuple[Any, dict[KeyPath, int]]:
    """Plain values of the one document in a text, None if there is none, and the lines of their keys."""
    try:
        walk = _Walk(name, _Loader(text), example)
        node = walk.loader.get_single_node()
        return None if node is None else walk.value(node, ()), walk.lines
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        shown = repr(chr(error.character))
        raise ConfigError(f"{_place(name, line)}: the character {shown} cannot stand in YAML. Delete it.") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain(error, text, name)) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a recipe.") from None


@dataclass
class _Walk:
    """Turns nodes into plain values, noting each key's line."""

    name: str
    loader: _Loader
    example: Callable[[KeyPath], str]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    open_nodes: list[int] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)
    seen: int = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.seen += 1
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise self._problem(node, f"YAML tags such as {node.tag} are not read here. Write the value alone.")
        if id(node) in self.open_nodes or self.seen > _MOST_NODES:
            raise self._problem(node, "an alias that stands for too much. Write the values out.")
        self.open_nodes.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, path) for item in node.value]
            return self._scalar(node, path)
        finally:
            self.open_nodes.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        if id(node) not in self.checked:  # else an alias: by now `<<` may have brought keys of the same name
            self.checked.add(id(node))
            self._refuse_repeated_keys(node, path)
        self.loader.flatten_mapping(node)  # replaces `<<` by the keys it stands for, before the node's own
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = (*path, self._key(key_node))
            self.lines[here] = _line(key_node)
            found[here[-1]] = self.value(value_node, here)
        return found

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag == "tag:yaml.org,2002:null" and node.value == "":
            text = _without_colon(path[-1]) if path else ""
            text = text or f" Write one, such as `{path[-1] if path else ''}: {self.example(path)}`."
            raise self._problem(node, f"'{'.'.join(path)}' has no value.{text}")
        if node.value[:1] in _CURLY and getattr(node, "style", None) is None:
            raise self._problem(node, f"{shortened(node.value)} stands in curly quotes. Write straight ones, or none.")
        try:
            return self.loader.construct_object(node)
        except ValueError:
            raise self._problem(node, f"{node.value!r:.40} is not the number that it looks like.") from None

    def _refuse_repeated_keys(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in first:
                text = f"'{'.'.join((*path, key))}' is given twice, first on line {first[key]}. Keep one."
                raise self._problem(key_node, text)
            first[key] = _line(key_node)

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._problem(node, "a key must be one word, such as `seed`.")
        return str(node.value)

    def _problem(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{_place(self.name, _line(node))}: {text}")


def _explain(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    if not name.startswith("--") and (slip := _slip_above(text.splitlines()[:line])):
        return f"{name}:{slip}"
    row = [*text.splitlines(), *[""] * line][line - 1]
    if "\t" in row[: len(row) - len(row.lstrip())]:
        return f"{_place(name, line)}: this line is indented with a tab. YAML needs spaces."
    rows = text.splitlines()
    for number in (line - 2, line - 1):  # YAML finds out on the line itself, or on the next
        if 0 <= number < len(rows) and (missing := _without_colon(rows[number].partition(" #")[0])):
            return f"{_place(name, number + 1)}: this is not valid YAML.{missing}"
    problem = error.problem or error.context or "it cannot be read"
    if "mapping values are not allowed" in problem:
        problem = "a second ': ' on the line, or a line that is indented differently from those around it"
    if "escape character" in problem:
        return (
            f"{_place(name, line)}: in double quotes a backslash has a meaning of its own. Write the text in single "
            "quotes, and a path with / between directories."
        )
    opened = error.context_mark.line + 1 if error.context_mark is not None else line
    if "flow" in (error.context or "") and opened < line and not name.startswith("--"):
        return (
            f"{name}:{opened}: this is not valid YAML: the bracket that opens here is not closed by line {line}. "
            "Close it."
        )
    if "block mapping start" in problem or "expected <block end>" in problem:
        return (
            f"{_place(name, line)}: the line is indented differently from those that it belongs with. Begin it in the "
            "same column as they do."
        )
    if name.startswith("--"):
        return (
            f"{name}: this is not valid YAML: {problem}. Quote the whole value for your shell, as in "
            f"{name} '{{key: value}}', and close its brackets."
        )
    return f"{_place(name, line)}: this is not valid YAML: {problem}. Fix the indentation, or quote the text."


_OPEN_QUOTE = re.compile(r"""[^#'"]*[:\[{,-]\s*(?:"[^"]*|'(?:[^']|'')*)""")


def _slip_above(rows: Sequence[str]) -> str:
    """The line and the problem where YAML stumbles over the last of these rows because of a slip in it or above it that
    it took for something else; empty where there is none.

    Example:
        >>> _slip_above(["stage2", "  beta: 0.1"])
        '1: this is not valid YAML. A colon is missing: write `stage2:`.'
        >>> _slip_above(['model: "a', "seed: 0"])
        '1: the quote that begins here is not closed. Close it on the same line.'
    """
    for number, row in enumerate(rows, start=1):
        if _OPEN_QUOTE.fullmatch(row):
            return f"{number}: the quote that begins here is not closed. Close it on the same line."
    for number, row in list(enumerate(rows, start=1))[-2:]:
        if re.fullmatch(r"\s*\w+", bare := row.partition(" #")[0].rstrip()) and not bare.strip().isdigit():
            return f"{number}: this is not valid YAML. A colon is missing: write `{bare.strip()}:`."
    return ""


def _without_colon(text: str) -> str:
    """What to write for a key and a value with no colon, or no space after it, between them; empty where it is none.

    Example:
        >>> _without_colon("beta 0.1"), _without_colon("beta:0.1"), _without_colon("beta: 0.1")
        (' A colon is missing: write `beta: 0.1`.', ' A space is missing: write `beta: 0.1`.', '')
    """
    found = re.fullmatch(r"\s*(\w+)(\s+|:)(\S.*?)\s*", text)
    if found is None or ": " in text or text.endswith(":"):
        return ""
    return f" A {'space' if found[2] == ':' else 'colon'} is missing: write `{found[1]}: {found[3]}`."


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _place(name: str, line: int) -> str:
    return name if name.startswith("--") else f"{name}:{line}"
