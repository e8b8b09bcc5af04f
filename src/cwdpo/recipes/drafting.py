"""Write a first recipe from what is known of the rows, the model and the machine."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.config import located_yaml
from cwdpo.config.checking import build
from cwdpo.config.foreign import Translated
from cwdpo.config.recipe import DataConfig, Recipe
from cwdpo.config.recipe_file import known_settings, nested
from cwdpo.data.check import RowReport
from cwdpo.data.reading import split_rows
from cwdpo.errors import ConfigError
from cwdpo.memory import human_bytes
from cwdpo.recipes.memory import Device, ModelFacts, StepPlan, fits, step_memory
from cwdpo.recipes.stages import LEARNING_RATES
from cwdpo.records import Stage

_MOST_ROWS = 32
"""Rows in a step of the optimiser, where there are enough: half of DPO's usual 64, as image data sets are smaller."""

_FEW_STEPS = 10
"""Steps that an epoch should have at least; fewer rows make smaller steps."""

_SMALL_DATA = 2_000
"""Rows of stage 1 below which it takes three epochs; preferences are seen once, as they are soon overfitted."""

_LARGE_MODEL = 10**9
"""Weights from which activations are recomputed: a third more time for most of the memory."""

_COMMENTS: Mapping[str, str] = {
    "model.name_or_path": "a hub name, or a directory; relative paths start at this file",
    "model.lora": "trains adapters on the language model; `lora: null` trains all weights",
    "model.lora.alpha": "the adapters' update is multiplied by alpha / r",
    "model.lora.target_modules": "every linear layer of the language model",
    "model.freeze_vision": "the vision tower does not train",
    "model.quantization": "QLoRA: the frozen base in 4 bits, as the whole one would not fit",
    "data.stage1_fraction": "share of the rows for stage 1; stage 2 takes the others",
    "stage1.penalty": "weight of the gentle negatives",
    "stage2.beta": "smaller lets the model go further from where stage 1 left it",
    "stage2.cooling.floor": "an answer with this log-prob has weight 0.5. It is measured once, before stage 2",
    "stage2.cooling.temperature": "nats per token; smaller makes the switch sharper. `cooling: null` is plain DPO",
    "stage2.trainer.learning_rate": "far below stage 1: preferences move a model quickly",
    "trainer.gradient_accumulation_steps": "",
    "trainer.activation_checkpointing": "recomputes activations, for a third more time, where memory is short",
    "trainer.warmup_steps": "below 1 it is a share of all steps",
    "output_dir": "relative to where you run the command",
}
_HEADERS: Mapping[str, str] = {
    "stage1": "Stage 1, smooth: fine-tune on the chosen answers.",
    "stage2": "Stage 2, cool: DPO in which easy rejected answers have little weight; the reference is stage 1's model.",
    "trainer": "Passed to transformers.TrainingArguments as it is; the stages' own sections come first.",
}


@dataclass(frozen=True)
class Draft:
    """A recipe's text, and what its reader should know."""

    text: str
    notes: Sequence[str]
    """Sentences: what to do before, what was left out."""


@dataclass
class _Drafting:
    """Settings by full name while they are decided, comments beside them, and notes."""

    settings: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    own: str = ""
    """What the recipe has of its own where another tool's configuration is silent, as one sentence."""


def draft_recipe(
    *,
    data: Sequence[str],
    rows: Sequence[RowReport],
    facts: ModelFacts,
    device: Device,
    beside: Path,
    image_root: Sequence[str] = (),
    eval_data: str | None = None,
    foreign: Translated | None = None,
) -> Draft:
    """A commented recipe for rows that were checked with the model's encoder.

    Args:
        data: files or directories of rows; the rows in their order.
        beside: the directory that the recipe will stand in; paths in it start there.
        foreign: settings of another tool, which replace what would be chosen here.

    Raises:
        ConfigError: no row is left, or the foreign settings cannot stand in a recipe.
    """
    draft = _Drafting()
    draft.settings["model.name_or_path"] = _model_path(facts["name_or_path"], beside)
    draft.settings["data.train"] = (
        _relative(data[0], beside) if len(data) == 1 else [_relative(d, beside) for d in data]
    )
    if eval_data is not None:
        draft.settings["data.eval"] = _relative(eval_data, beside)
    if image_root:
        roots = [_relative(root, beside) for root in image_root]
        draft.settings["data.image_root"] = roots[0] if len(roots) == 1 else roots
    stages = _divide(draft, rows)
    _stages(draft, stages, data[0])
    _machine(draft, stages, facts, device, rows)
    draft.settings |= {"seed": 0, "output_dir": f"runs/{_run_name(facts['name_or_path'])}"}
    if foreign is not None:
        _carry_over(draft, foreign, device, facts, max((row.longest or 0 for row in rows), default=0))
    _tidy(draft)
    recipe = build(Recipe, nested(draft.settings), lambda path: f"--from, {'.'.join(path)}")  # before it is written
    if foreign is not None:
        draft.own = _own_settings(recipe, foreign)
    return Draft(_render(draft), draft.notes)


def _divide(draft: _Drafting, rows: Sequence[RowReport]) -> dict[Stage, Sequence[RowReport]]:
    """The rows of each stage that the recipe should have, as training will divide them."""
    if not rows:
        raise ConfigError("there is no usable row, so there is nothing to train on. `cwdpo check` says what is wrong.")
    missing = [row for row in rows if not row.num_rejected]
    if len(missing) == len(rows) or len(rows) == 1:
        if missing:
            draft.notes.append("No row has a `rejected` answer, so the recipe has stage 1 alone.")
        return {"stage1": rows}
    usual = DataConfig.stage1_fraction
    count = math.floor(len(rows) * usual + 0.5)
    fraction = usual if 0 < count < len(rows) else 0.5
    draft.settings["data.stage1_fraction"] = fraction
    first, second = split_rows(rows, fraction, Recipe.seed)
    missing = [row for row in second if not row.num_rejected]  # those of stage 1 need none
    if missing:
        draft.notes.append(
            f"{len(missing)} of the {len(second)} rows of stage 2 have no `rejected` answer ({missing[0].source} "
            "first), so the run would stop at its start. Take them out, or add `rejected`."
        )
    return {"stage1": first, "stage2": second}


def _stages(draft: _Drafting, stages: Mapping[Stage, Sequence[RowReport]], data: str) -> None:
    """The objective of each stage, and how long and fast it learns."""
    gentle = sum(row.has_gentle for row in stages["stage1"])
    enough = 2 * gentle >= len(stages["stage1"])
    draft.settings["stage1.objective"] = "constrained" if enough else "plain"
    if enough:
        draft.comments["stage1.objective"] = "and keep the gentle negatives from becoming likely"
        draft.settings |= {"stage1.penalty": 0.1, "stage1.ceiling": 2.0}
        draft.comments["stage1.ceiling"] = "no penalty while their NLL is above this, nats per token"
    else:
        new = str(Path(data).with_name(f"{Path(data).name.split('.')[0]}_gentle.jsonl"))
        draft.comments["stage1.objective"] = "better: constrained, with `gentle` answers in the rows"
        draft.notes.append(
            f"{gentle or 'No'} row{'s have' if gentle > 1 else ' has'} a `gentle` negative, so stage 1 is plain "
            f"fine-tuning. To use them: `cwdpo negatives gentle {data} --out {new}`, and in the recipe "
            f"`data: {{train: {Path(new).name}}}` and `stage1: {{objective: constrained}}`."
        )
    epochs = 3 if len(stages["stage1"]) < _SMALL_DATA else 1
    draft.settings |= {
        "stage1.trainer.learning_rate": LEARNING_RATES["stage1"][True],
        "stage1.trainer.num_train_epochs": epochs,
    }
    if "stage2" in stages:
        draft.settings |= {
            "stage2.beta": 0.1,
            "stage2.cooling.floor": "chosen - 2 tau",
            "stage2.cooling.temperature": 0.3,
            "stage2.trainer.learning_rate": LEARNING_RATES["stage2"][True],
            "stage2.trainer.num_train_epochs": 1,
        }


def _machine(
    draft: _Drafting,
    stages: Mapping[Stage, Sequence[RowReport]],
    facts: ModelFacts,
    device: Device,
    rows: Sequence[RowReport],
) -> None:
    """Precision, batch and what saves memory, as they fit the device here."""
    half = device.is_gpu and device.has_bf16
    dtype = "bfloat16" if half else "float32"
    longest = max((row.longest or 0 for row in rows), default=0)
    step_rows = _rows_of_a_step(min(map(len, stages.values())))
    plan = _fitting(facts, device, dtype, longest, step_rows)
    needed = step_memory(facts, plan, longest)["total"]
    draft.settings |= {
        "model.dtype": dtype,
        "model.lora.r": facts["lora"]["r"],
        "model.lora.alpha": 2 * facts["lora"]["r"],
        "model.lora.target_modules": "language",
    }
    if not device.is_gpu:
        draft.comments["model.dtype"] = "on a GPU: bfloat16, and `trainer: {bf16: true}`"
    if plan.bits is not None:
        draft.settings["model.quantization.bits"] = plan.bits
    draft.settings |= {
        "trainer.per_device_train_batch_size": plan.rows,
        "trainer.gradient_accumulation_steps": step_rows // plan.rows,
    }
    draft.comments["trainer.gradient_accumulation_steps"] = f"{step_rows} rows a step of the optimiser"
    if half:
        draft.settings["trainer.bf16"] = True
    if plan.checkpointing:
        draft.settings["trainer.activation_checkpointing"] = "auto"
    draft.settings |= {
        "trainer.lr_scheduler_type": "cosine",
        "trainer.warmup_steps": 0.03,
        "trainer.logging_steps": 1 if len(rows) < _SMALL_DATA else 10,
    }
    size = f"about {human_bytes(needed)}"
    draft.comments["trainer.per_device_train_batch_size"] = f"rows at a time: {size}, by arithmetic"
    if needed > device.memory:
        draft.notes.append(
            f"A step needs {size}, and {device.name} has {human_bytes(device.memory)}"
            f"{'' if device.is_gpu else ' free'}. Take a smaller model or a larger machine."
        )
    if not device.is_gpu and sum(part["total"] for part in facts["parts"].values()) > _LARGE_MODEL:
        draft.notes.append("There is no GPU here; on CPUs a model of this size takes minutes a row.")


def _rows_of_a_step(rows: int) -> int:
    """A power of two with some steps in an epoch, at least 4 where there are as many.

    Example:
        >>> [_rows_of_a_step(rows) for rows in (1, 3, 15, 100, 5_000)]
        [1, 2, 4, 8, 32]
    """
    wanted = min(_MOST_ROWS, max(rows // _FEW_STEPS, min(rows, 4)))
    return 1 << (wanted.bit_length() - 1)


def _fitting(facts: ModelFacts, device: Device, dtype: str, longest: int, step_rows: int) -> StepPlan:
    """The largest batch that fits; where none does, one row with all that saves memory."""
    large = sum(part["total"] for part in facts["parts"].values()) >= _LARGE_MODEL
    sizes = [1 << power for power in range(min(step_rows, 8).bit_length() - 1, -1, -1)]
    plans = [StepPlan(dtype=dtype, rows=size, checkpointing=large) for size in sizes]
    plans += [StepPlan(dtype=dtype, rows=1, checkpointing=True)]
    if device.is_gpu:
        plans += [StepPlan(dtype=dtype, rows=1, checkpointing=True, bits=4)]
    return next((plan for plan in plans if fits(step_memory(facts, plan, longest), device)), plans[-1])


def _carry_over(draft: _Drafting, foreign: Translated, device: Device, facts: ModelFacts, longest: int) -> None:
    """Put another tool's settings over ours; what a recipe cannot hold becomes a note."""
    known, without = known_settings(), dict(foreign.without)
    skipped = {"model.name_or_path", "data.train"}  # given, and resolved
    theirs = {name: value for name, value in foreign.settings.items() if name not in skipped}
    back = {ours: key for key, ours in foreign.renamed.items()}
    if "model.lora" in theirs and theirs["model.lora"] is None:
        draft.settings = {name: value for name, value in draft.settings.items() if not name.startswith("model.lora.")}
        for stage, (full, _) in LEARNING_RATES.items():
            if f"{stage}.trainer.learning_rate" in draft.settings:
                draft.settings[f"{stage}.trainer.learning_rate"] = full
    if "trainer.per_device_train_batch_size" in theirs:
        draft.settings["trainer.gradient_accumulation_steps"] = 1  # the Trainer's own, if they name none
        draft.comments["trainer.gradient_accumulation_steps"] = ""
    limit = facts["max_length"] or math.inf
    for name, value in theirs.items():
        key = back.get(name, name)
        if name == "data.max_length" and isinstance(value, int) and not longest <= value <= limit:
            without[key] = (
                f"the longest row has {longest} tokens, and nothing is cut here"
                if value < longest
                else f"the model's own limit is {limit}"
            )
        elif name == "model.lora":
            if value is None:
                draft.settings[name] = None
        elif name.startswith("stage2.") and "stage2.beta" not in draft.settings:
            without[key] = "the recipe has no stage 2"
        elif name in ("trainer.bf16", "trainer.fp16") and value and not device.is_gpu:
            without[key] = "there is no GPU here; write `trainer: {bf16: true}` where there is one"
        elif name == "model.dtype" and value != "float32" and not device.is_gpu:
            without[key] = f"float32, as there is no GPU here; write {value} where there is one"
        elif name in ("trainer.eval_strategy", "trainer.eval_steps") and "data.eval" not in draft.settings:
            without[key] = "name held-out rows in data.eval first"
        elif name.startswith("model.quantization") and not device.is_gpu:
            without[key] = "there is no GPU here, which it needs"
        elif not name.startswith(("trainer.", "stage2.trainer.")) and name not in known:
            without[key] = ""
        else:
            if name == "trainer.gradient_checkpointing":
                draft.settings.pop("trainer.activation_checkpointing", None)  # the same by its new name
            draft.settings[name] = value
            draft.comments[name] = f"{foreign.tool}: {key}" if name in back else f"as {foreign.tool} does by default"
    if without:
        named = "; ".join(f"{key} ({why})" if why else key for key, why in without.items())
        draft.notes.append(f"Of the {foreign.tool} configuration, without a counterpart here: {named}.")
    if "stage2.beta" in draft.settings:
        draft.notes.append(
            f"Stage 1 and cooling are cwdpo's own. What {foreign.tool} does is stage 2 alone with `cooling: null`."
        )


def _own_settings(recipe: Recipe, foreign: Translated) -> str:
    """Where the recipe differs from what a tool does of itself, in one sentence; empty where it does not."""
    tool, found = foreign.tool, []
    all_weights = foreign.defaults.get("model.lora", ...) is None
    for name, theirs in foreign.defaults.items():
        ours = _value_in(recipe, name)
        if ours == theirs or (ours is None and not name.startswith("trainer.")):
            continue
        if name == "model.lora":
            found.append(f"LoRA ({tool}: all weights)")
        elif not (all_weights and name.startswith("model.lora.")):
            here = "as the Trainer has it" if ours is None else _shown(ours)
            there = theirs if isinstance(theirs, str) else _shown(theirs)
            short = name.removeprefix("stage2.").removeprefix("trainer.").removeprefix("model.")
            found.append(f"{short} {here} ({tool}: {there})")
    return f"Not in the {tool} configuration, so cwdpo's own: {', '.join(found)}." if found else ""


def _value_in(recipe: Recipe, name: str) -> object:
    """What a recipe has for a setting; None where it has nothing."""
    found: Any = recipe
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    return found


def _tidy(draft: _Drafting) -> None:
    """Settings in a recipe's order, whatever order they were decided in."""
    sections = ("model", "data", "stage1", "stage2", "trainer", "seed", "output_dir")
    order = sorted(draft.settings, key=lambda name: sections.index(name.split(".")[0]))
    last = ("stage1.trainer", "stage2.trainer", "model.quantization")  # sections of a section
    order.sort(key=lambda name: (sections.index(name.split(".")[0]), name.startswith(last)))
    draft.settings = {name: draft.settings[name] for name in order}


def _render(draft: _Drafting) -> str:
    """The settings as nested YAML with their comments in one column."""
    lines: list[tuple[str, str]] = [
        ("# A first recipe by `cwdpo init`; `cwdpo schema` lists every setting.", ""),
        ("#   cwdpo check RECIPE     what would stop training", ""),
        ("#   cwdpo train RECIPE     Ctrl-C is safe; continue with --resume", ""),
        *((f"# {line}", "") for line in textwrap.wrap(draft.own, 100)),
        ("", ""),
    ]
    _section(draft, (), nested(draft.settings), lines)
    width = min(52, max(len(text) for text, comment in lines if comment))
    return "".join(f"{text.ljust(width)}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _section(draft: _Drafting, path: tuple[str, ...], values: Mapping[str, Any], lines: list[tuple[str, str]]) -> None:
    for key, value in values.items():
        here = (*path, key)
        name, indent = ".".join(here), "  " * len(path)
        if name in _HEADERS:
            lines += [("", ""), (f"# {_HEADERS[name]}", "")]
        elif name in ("data", "seed"):
            lines.append(("", ""))
        comment = draft.comments.get(name, _COMMENTS.get(name, ""))
        if isinstance(value, Mapping) and value:
            lines.append((f"{indent}{key}:", comment))
            _section(draft, here, value, lines)
        else:
            lines.append((f"{indent}{key}: {_shown(value)}", comment))


def _shown(value: object) -> str:
    """A value as people write it: ``1e-4``.

    Example:
        >>> _shown(0.0001), _shown(5e-6), _shown(0.3), _shown(None)
        ('1e-4', '5e-6', '0.3', 'null')
    """
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        digits, _, exponent = f"{value:e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return located_yaml.dump_value(value)


def _model_path(name: str, beside: Path) -> str:
    return _relative(name, beside) if Path(name).is_dir() else name


def _relative(name: str, beside: Path) -> str:
    """A path as the recipe should write it: from its own directory where it is near, else absolute."""
    if name.startswith("hf:"):
        return name
    path = Path(name).expanduser().absolute()
    near = os.path.relpath(path, beside.absolute())
    return near if near.count("..") <= 1 else str(path)


def _run_name(model: str) -> str:
    """A run's name by its model's, and another: an evaluation shows both, and commands take either.

    Example:
        >>> _run_name("owner/Model-3B")
        'model-3b-cwdpo'
    """
    return f"{Path(model).name.lower() or 'model'}-cwdpo"
