"""The model card, ``README.md`` of a saved model: what it is, how to use it, how it was made, and what was measured.

The form is the Hugging Face hub's: YAML on top, which the hub reads, and Markdown for people.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, yet not in its list

from cwdpo import __version__
from cwdpo.config.recipe import CoolingConfig, Recipe, Stage2Config
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.diagnosis import Diagnosis, title_of
from cwdpo.records import RunDirectory, Stage, read_jsonl, write_text
from cwdpo.report.evaluations import evaluations
from cwdpo.report.runs import Record, read_sources

FILE = "README.md"

_LOADED = """\
```python
{imports}

{load}
processor = AutoProcessor.from_pretrained("{here}")
question = [{{"type": "image", "image": Image.open("picture.png")}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=128)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])
```
"""

_MEASURED = {
    "rewards/accuracies": "reward accuracy (pairs whose chosen answer has the larger reward)",
    "rewards/margins": "reward margin, chosen over rejected",
    "logps_mean/chosen": "mean log-prob of chosen answers, nats per token",
    "logps_mean/rejected": "mean log-prob of rejected answers, nats per token",
    "cooling/mean": "mean cooling weight of the rejected answers",
}
"""Of the last logged step of stage 2, where nothing was evaluated."""


def write_cards(run: RunDirectory, *, hub_name: str | None = None) -> list[Path]:
    """Write the card of each finished stage's model, from what the run has measured until now.

    ``hub_name`` is where the last of them will be uploaded; without one the card's snippet runs in its directory.
    """
    stages: list[Stage] = [stage for stage in ("stage1", "stage2") if run.is_finished(stage)]
    written = []
    for stage in stages:
        path = run.stage(stage) / FILE
        write_text(path, run_card(run, stage, here=hub_name if hub_name and stage == stages[-1] else "."))
        written.append(path)
    return written


def write_merged_card(source: Path, merged: Path) -> None:
    """The card of a merged model: its run's, if the adapters are a stage of one."""
    run = RunDirectory(source.resolve().parent)
    stage = source.resolve().name
    is_stage = stage in ("stage1", "stage2") and run.recipe.is_file()
    text = run_card(run, stage, here=".", merged=True) if is_stage else _merged_alone(source)  # type: ignore[arg-type]
    write_text(merged / FILE, text)


def run_card(run: RunDirectory, stage: Stage, *, here: str, merged: bool = False) -> str:
    """The card of one stage's model, merged or as it was saved; ``here`` is what its snippet loads."""
    recipe = read_recipe(run.recipe, warn=False)
    adapters = recipe.model.lora is not None and not merged
    base = recipe.model.name_or_path
    parts = [
        f"# {Path(recipe.output_dir).name}" + (" (stage 1)" if stage == "stage1" and recipe.stage2 is not None else ""),
        _what(recipe, stage, adapters=adapters),
        "## Use",
        _snippet(base if here == "." or is_hub_name(base) else f"path/to/{Path(base).name}", here, adapters=adapters),
        "## Measured",
        *_measured(run, stage, on="held-out rows" if recipe.data.eval else "rows of the training data"),
        "## Findings",
        *_findings(run, stage),
        "## Data",
        _data(run, recipe),
        "## Made with",
        _made(run, recipe, stage),
    ]
    return f"{_front_matter(recipe, stage, adapters=adapters)}\n{_joined(parts)}"


def base_licence(name: str) -> str | None:
    """The licence that a model's own card states; None where there is none at hand. Nothing is downloaded."""
    card: object = Path(name) / FILE
    if not Path(name).is_dir():
        try:
            card = try_to_load_from_cache(name, FILE)
        except HFValidationError:
            return None
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        data = ModelCard.load(str(card), ignore_metadata_errors=True).data
    except (ValueError, OSError):
        return None
    named = data.get("license_name") if data.license == "other" else data.license
    return str(named) if named else None


def is_hub_name(name: str) -> bool:
    """Whether a model's name can be one of the hub's.

    Example:
        >>> is_hub_name("Qwen/Qwen2.5-VL-3B-Instruct"), is_hub_name("/data/model")
        (True, False)
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).is_dir()


def _front_matter(recipe: Recipe, stage: Stage, *, adapters: bool) -> str:
    base = recipe.model.name_or_path
    on_hub = is_hub_name(base)
    relation: dict[str, Any] = {"base_model_relation": "adapter" if adapters else "finetune"} if on_hub else {}
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="image-text-to-text",
        license=base_licence(base),
        tags=["cwdpo", *(["dpo"] if stage == "stage2" else ["sft"]), *(["lora"] if recipe.model.lora else [])],
        ignore_metadata_errors=True,
        **relation,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(recipe: Recipe, stage: Stage, *, adapters: bool) -> str:
    base = recipe.model.name_or_path
    shown = f"[{base}](https://huggingface.co/{base})" if is_hub_name(base) else f"`{Path(base).name}`"
    kind = "LoRA adapters for" if adapters else "A version of"
    steps = []
    if recipe.stage1 is not None:
        objective = recipe.stage1.objective
        steps.append(
            "supervised fine-tuning on the chosen answers"
            + ("" if objective == "plain" else f" with gentle negatives (`{objective}`)")
        )
    if recipe.stage2 is not None and stage == "stage2":
        steps.append(_stage2_in_words(recipe.stage2))
    licence = base_licence(base)
    stated = f"The base's licence is {licence}, and holds" if licence else "The licence of the base model holds"
    return (
        f"{kind} {shown}, trained by {', then '.join(steps)}. Images and text in, text out. "
        f"{stated} for this model too."
    )


def _stage2_in_words(stage2: Stage2Config) -> str:
    loss = stage2.loss if isinstance(stage2.loss, str) else " + ".join(stage2.loss)
    name = {"sigmoid": "DPO"}.get(loss, f"the preference loss `{loss}`")
    if stage2.cooling is None:
        return f"{name} (beta {stage2.beta:g})"
    cooled = "Cooling-weighted DPO (arXiv 2510.11978)" if loss == "sigmoid" else f"{name} with cooling"
    return f"{cooled} (beta {stage2.beta:g}, {_cooling_in_words(stage2.cooling)})"


def _cooling_in_words(cooling: CoolingConfig) -> str:
    if cooling.constant is not None:
        return f"constant weight {cooling.constant:g}"
    floor = cooling.floor if isinstance(cooling.floor, str) else f"{cooling.floor:.4g}"
    return f"floor {floor}, temperature {cooling.temperature:g} nats per token"


def _snippet(base: str, here: str, *, adapters: bool) -> str:
    imports = ["from PIL import Image", "from transformers import AutoModelForImageTextToText, AutoProcessor"]
    if adapters:
        imports.insert(0, "from peft import PeftModel")
        load = (
            f'base = AutoModelForImageTextToText.from_pretrained("{base}", dtype="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{here}")'
        )
    else:
        load = f'model = AutoModelForImageTextToText.from_pretrained("{here}", dtype="auto")'
    needs = "pip install transformers pillow" + (" peft" if adapters else "")
    where = " in this directory, beside a `picture.png`" if here == "." else ""
    code = _LOADED.format(imports="\n".join(imports), load=load, here=here)
    return f"`{needs}` (and `torchvision` for the processors of Qwen-VL), then{where}:\n\n{code}"


def _measured(run: RunDirectory, stage: Stage, *, on: str) -> Iterator[str]:
    """What was evaluated beside the base; else the last readings of training, named as such."""
    notes: list[str] = []
    parts = evaluations(read_sources([run.root], notes)[0].runs, notes) if run.evaluations() else []
    for part in parts if stage == _last_stage(run) else []:
        yield f"{part.what}. {part.words}"
        lines = ["| measure | base | this model | difference [95 %] | beyond chance |", "|---|---|---|---|---|"]
        for group, rows in part.groups:
            for row in rows:
                cells = (f"{row.label} ({group})", row.base, row.model, row.difference, row.verdict)
                lines.append("| " + " | ".join(str(cell).replace("|", "\\|") or "-" for cell in cells) + " |")
        yield "\n".join(lines)
    if parts and stage == _last_stage(run):
        return
    lines = [*_of_training(run, stage), *_of_probes(run, stage)]
    if lines:
        yield f"During training, on training rows; probes on {on}:"
        yield "\n".join(["| measure | value |", "|---|---|", *lines])
    else:
        yield "Nothing yet."
    where = _public_place(read_recipe(run.recipe, warn=False).output_dir)
    yield f"`cwdpo evaluate {where} --data ROWS` measures more, beside the base."


def _of_training(run: RunDirectory, stage: Stage) -> Iterator[str]:
    last: Record = {}
    for line in read_jsonl(run.metrics).objects:
        if line.get("stage") == stage and "loss" in line:
            last = line
    for name, what in {"loss": "loss of the last logged step", **_MEASURED}.items():
        value = last.get(name)
        if isinstance(value, int | float):
            yield f"| {what} | {value:z.4g} |"


def _of_probes(run: RunDirectory, stage: Stage) -> Iterator[str]:
    last = {line.get("group"): line for line in read_jsonl(run.probes).objects if line.get("stage") == stage}
    for group in ("chosen", "rejected"):
        delta = last.get(group, {}).get("delta")
        if isinstance(delta, int | float):
            yield f"| change of log-prob of {group} answers in this stage, probes, nats per token | {delta:+z.3f} |"
    ece = last.get("chosen", {}).get("ece")
    if isinstance(ece, int | float):
        yield f"| expected calibration error on chosen answers, probes | {ece:.3f} |"


def _findings(run: RunDirectory, stage: Stage) -> Iterator[str]:
    found = _diagnosis(run)
    if found is None:
        yield "The training was not judged."
        return
    own = [finding for finding in found.findings if finding.stage == stage or finding.stage not in ("stage1", "stage2")]
    if own:
        yield "\n".join(f"- **{title_of(finding.name)}**: {finding.evidence}" for finding in own)
    elif found.clear:
        yield f"The diagnosis (`cwdpo diagnose`) found no problem; it looked for {len(found.clear)} signs."
    else:
        yield "There were too few readings for a diagnosis."


def _diagnosis(run: RunDirectory) -> Diagnosis | None:
    try:
        return Diagnosis.from_json(json.loads(run.findings.read_bytes()))
    except (OSError, ValueError):
        return None


def _data(run: RunDirectory, recipe: Recipe) -> str:
    files = [recipe.data.train] if isinstance(recipe.data.train, str) else recipe.data.train
    stages = _summary(run).get("stages", {})
    rows = ", ".join(f"{note['rows']:,} rows in {stage}" for stage, note in stages.items() if "rows" in note)
    held_out = f" Held out: {_name(recipe.data.eval)}." if recipe.data.eval else ""
    return f"Preferences from {', '.join(_name(file) for file in files)}{f': {rows}' if rows else ''}.{held_out}"


def _made(run: RunDirectory, recipe: Recipe, stage: Stage) -> str:
    summary = _summary(run)
    steps = summary.get("stages", {}).get(stage, run.note(stage)).get("steps")
    facts = [
        f"cwdpo {__version__}",
        *([f"{steps} steps of {stage}"] if steps else []),
        f"seed {recipe.seed}",
        *([str(summary["hardware"])] if "hardware" in summary else []),
    ]
    return f"{', '.join(facts)}.\n\n<details><summary>Recipe</summary>\n\n```yaml\n{_public(recipe)}```\n\n</details>"


def _public(recipe: Recipe) -> str:
    """The recipe without this machine's directories."""
    data = recipe.data
    files = data.train if isinstance(data.train, list) else [data.train]
    shared = {key: value for key, value in recipe.trainer.items() if key != "hub_token"}
    return dump_recipe(
        dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, name_or_path=_public_model(recipe.model.name_or_path)),
            data=dataclasses.replace(
                data,
                train=[Path(file).name for file in files],
                eval=None if data.eval is None else Path(data.eval).name,
                image_root=None,
            ),
            evaluate=None,
            trainer=shared,
            output_dir=_public_place(recipe.output_dir),
        )
    )


def _public_place(output_dir: str) -> str:
    """A run's directory as its recipe has it, unless that names this machine's directories."""
    return Path(output_dir).name if output_dir.startswith(("/", "~")) else output_dir


def _public_model(name: str) -> str:
    return name if is_hub_name(name) else Path(name).name


def _merged_alone(source: Path) -> str:
    """The card of a merge of adapters that are no run's."""
    base = str(json.loads((source / "adapter_config.json").read_bytes()).get("base_model_name_or_path") or "")
    data = ModelCardData(
        base_model=base if is_hub_name(base) else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=base_licence(base) if base else None,
        tags=["cwdpo", "lora"],
        ignore_metadata_errors=True,
    )
    parts = [
        f"# {source.name}, merged",
        f"`{base}` with the adapters of `{source.name}` merged into it by cwdpo {__version__}. The licence of the base "
        "model holds for this model too.",
        "## Use",
        _snippet(base, ".", adapters=False),
    ]
    return f"---\n{data.to_yaml()}\n---\n{_joined(parts)}"


def _summary(run: RunDirectory) -> Mapping[str, Any]:
    try:
        found = json.loads(run.summary.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_stage(run: RunDirectory) -> str:
    return "stage2" if run.is_finished("stage2") else "stage1"


def _name(file: str) -> str:
    return f"`{file if file.startswith('hf:') else Path(file).name}`"


def _joined(parts: Sequence[str]) -> str:
    return "\n" + "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
