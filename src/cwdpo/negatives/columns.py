"""A row's columns that speak of its negatives: kept in step when the negatives change."""

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.data.formats import format_of
from cwdpo.negatives.gentle import GentleNegative

OF_EACH = ("negative_sources", "lbar", "ches", "w_c")
"""Columns with a value for each negative: a list, an object by column, or one value for one negative."""

_NEGATIVES = ("rejected", "rejected_response", "negatives")


def with_negatives(record: Mapping[str, Any], texts: Sequence[str], kept: Sequence[int] = ()) -> dict[str, Any]:
    """The record with these negatives, one at least, in the place of its own.

    Args:
        record: as it stands in the file.
        texts: the negatives that it will have.
        kept: where they are some of its own, their places among them; what the record says of them is kept with
            them. What it says of others goes.
    """
    own = _number_of_negatives(record)
    new = {key: value for key, value in record.items() if key not in (*_NEGATIVES, *OF_EACH)}
    rest = list(texts)
    if format_of(record) != "llava":  # there a rejected answer would make it another format
        new["rejected_response" if format_of(record) == "ms-swift" else "rejected"] = rest.pop(0)
    if rest:
        new["negatives"] = rest
    for name in OF_EACH:
        value = _in_step(record.get(name), kept, own)
        if value is not None:
            new[name] = value
    return new


def with_gentle(record: Mapping[str, Any], made: GentleNegative | None) -> dict[str, Any]:
    """The record with this gentle negative, or with none, in the place of an older one."""
    new = {key: value for key, value in record.items() if key not in ("gentle", "gentle_edit")}
    for name in OF_EACH:
        if isinstance(new.get(name), Mapping):  # what it says of the older one
            new[name] = {column: value for column, value in new[name].items() if column != "gentle"}
    if made is not None:
        edit: dict[str, Any] = {"kind": made.kind, "before": list(made.before), "after": list(made.after)}
        if len(made.parts) > 1:
            edit["parts"] = [{"before": list(before), "after": list(after)} for before, after in made.parts]
        new |= {"gentle": made.text, "gentle_edit": edit}
    return new


def _number_of_negatives(record: Mapping[str, Any]) -> int:
    further = record.get("negatives")
    first = any(record.get(name) is not None for name in _NEGATIVES[:2])
    return first + (len(further) if isinstance(further, list) else 0)


def _in_step(value: Any, kept: Sequence[int], own: int) -> Any:
    """A column's value for the kept negatives; None where it does not tell them apart."""
    if isinstance(value, Mapping):
        gentle = {"gentle": value["gentle"]} if "gentle" in value else {}
        further = value.get("negatives") or []
        values = [value.get("rejected"), *(further if isinstance(further, list) else [further])]
        chosen = [values[place] for place in kept if place < len(values)]
        if len(values) != own or len(chosen) != len(kept) or not chosen:
            return gentle or None
        return gentle | {"rejected": chosen[0]} | ({"negatives": chosen[1:]} if chosen[1:] else {})
    if isinstance(value, list):
        return [value[place] for place in kept] if kept and len(value) == own else None
    return value if own == len(kept) == 1 else None
