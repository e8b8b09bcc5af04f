"""The reference and the schema: every key is there, with what the dataclasses say, and the page is up to date."""

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from cwdpo.config.checking import known_paths, section_fields
from cwdpo.config.recipe import Recipe
from cwdpo.config.reference import describe_settings, recipe_schema, reference_page

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
TEXT = reference_page()
SETTINGS = {setting.name: setting for setting in describe_settings()}


def test_every_key_is_described() -> None:
    assert list(SETTINGS) == [".".join(path) for path in known_paths(Recipe, ())]
    assert [name for name, setting in SETTINGS.items() if not setting.text] == []


def test_types_defaults_and_limits() -> None:
    beta, lora, floor = (SETTINGS[name] for name in ("stage2.beta", "model.lora", "stage2.cooling.floor"))
    assert (beta.type, beta.default, beta.limit) == ("a number", "0.1", "> 0")
    assert (lora.type, lora.default, lora.is_section) == ("a section or null", "null", True)
    assert (floor.type, floor.default) == ("a number or text", "chosen - 2 tau")
    assert SETTINGS["model.name_or_path"].default == ""
    assert SETTINGS["data.stage1_fraction"].limit == "> 0 and <= 1"
    assert SETTINGS["model.lora.dropout"].limit == ">= 0 and < 1"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == TEXT, "write it again: python docs/make_recipe.py"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_page_has_every_key(name: str) -> None:
    section, _, key = name.rpartition(".")
    part = TEXT.partition(f"\n## {section or 'The top of the recipe'}\n")[2].partition("\n## ")[0]
    assert f"\n| `{key}` | " in part


def at(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The schema of a setting, sections looked up."""
    here = schema
    for key in path:
        here = here["properties"][key]
        inner = next((one["$ref"] for one in here.get("anyOf", [here]) if "$ref" in one), None)
        here = {**here, **schema["$defs"][inner.rpartition("/")[2]]} if inner is not None else here
    return here


def test_the_schema_has_every_key_and_no_other() -> None:
    schema = recipe_schema()
    json.dumps(schema)
    for path in [(), *known_paths(Recipe, ())]:
        section = at(schema, path)
        if "properties" in section:
            assert section["additionalProperties"] is False
            prefix = [*path]
            below = {name.split(".")[-1] for name in SETTINGS if name.split(".")[:-1] == prefix}
            assert set(section["properties"]) == below


def test_the_schema_has_limits_choices_and_what_must_be_given() -> None:
    schema = recipe_schema()
    assert schema["required"] == [
        name
        for name, (field, _) in section_fields(Recipe).items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    beta = at(schema, ("stage2", "beta"))
    assert (beta["type"], beta["exclusiveMinimum"], beta["default"]) == ("number", 0, 0.1)
    fraction = at(schema, ("data", "stage1_fraction"))
    assert (fraction["exclusiveMinimum"], fraction["maximum"]) == (0, 1)
    assert at(schema, ("model", "dtype"))["enum"] == ["auto", "float32", "bfloat16", "float16"]
    lengths = at(schema, ("data", "max_length"))["anyOf"]
    assert lengths == [{"type": "integer", "minimum": 2}, {"type": "null"}]


def test_settings_of_the_trainer_can_be_given() -> None:
    trainer = recipe_schema({"bf16": bool, "optim": str | None, "fsdp": list[str]})["$defs"]["trainer"]
    assert trainer["properties"] == {"bf16": {"type": "boolean"}, "optim": {"type": ["string", "null"]}, "fsdp": {}}
    assert trainer["additionalProperties"] is False
