"""Model cards: what they say of a run, and that their snippet runs."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from cwdpo.config.recipe import DataConfig, LoraConfig, ModelConfig, Recipe, Stage1Config, Stage2Config
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.diagnosis import Diagnosis, Finding
from cwdpo.records import RunDirectory, append_jsonl, write_json
from cwdpo.report.card import base_licence, run_card, write_cards, write_merged_card


def finished(root: Path, base: str = "owner/base", *, lora: bool = True) -> RunDirectory:
    """A run that trained both stages, as far as a card reads it."""
    run = RunDirectory(root / "mine")
    for stage in ("stage1", "stage2"):
        run.stage(stage).mkdir(parents=True)
        run.mark_finished(stage, {"steps": 7})
    recipe = Recipe(
        model=ModelConfig(name_or_path=base, lora=LoraConfig() if lora else None),
        data=DataConfig(train=str(root / "secret" / "rows.jsonl")),
        stage1=Stage1Config(objective="plain"),
        stage2=Stage2Config(),
        trainer={"hub_token": "hf_secret", "learning_rate": 1e-5},
        output_dir=str(run.root),
    )
    run.recipe.write_text(dump_recipe(recipe))
    line = {"stage": "stage2", "step": 7, "loss": 0.625, "rewards/accuracies": 0.75}
    append_jsonl(run.metrics, [line | {"stage": "stage1", "loss": 9.0}, line, {"stage": "stage2", "eval_loss": 1.0}])
    append_jsonl(run.probes, [{"stage": "stage2", "step": 7, "group": "chosen", "delta": -0.125, "ece": 0.5}])
    write_json(
        run.summary, {"hardware": "abacus", "stages": {"stage1": {"rows": 45}, "stage2": {"rows": 15, "steps": 7}}}
    )
    return run


def test_the_hub_can_read_it(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert write_cards(run) == [run.stage("stage1") / "README.md", run.stage("stage2") / "README.md"]
    data = ModelCard.load(run.stage("stage2") / "README.md").data
    assert (data.base_model, data.pipeline_tag, data.library_name) == ("owner/base", "image-text-to-text", "peft")
    assert data.tags == ["cwdpo", "dpo", "lora"]


def test_it_says_what_was_done_and_measured(tmp_path: Path) -> None:
    text = run_card(finished(tmp_path), "stage2", here=".")
    for words in (
        "Cooling-weighted DPO (arXiv 2510.11978) (beta 0.1, floor chosen - 2 tau, temperature 0.3 nats per token)",
        "| loss of the last logged step | 0.625 |",
        "larger reward) | 0.75 |",
        "| change of log-prob of chosen answers in this stage, probes, nats per token | -0.125 |",
        "probes on rows of the training data",
        "The training was not judged.",
        "Preferences from `rows.jsonl`: 45 rows in stage1, 15 rows in stage2.",
        "7 steps of stage2, seed 0, abacus.",
        "The licence of the base model holds for this model too.",
    ):
        assert words in text
    assert "| loss of the last logged step | 9 |" in run_card(finished(tmp_path / "b"), "stage1", here=".")


def test_it_keeps_this_machine_to_itself(tmp_path: Path) -> None:
    text = run_card(finished(tmp_path, str(tmp_path / "base")), "stage2", here="owner/mine")
    assert str(tmp_path) not in text
    assert "hf_secret" not in text
    assert 'from_pretrained("path/to/base"' in text
    assert 'PeftModel.from_pretrained(base, "owner/mine")' in text


@pytest.mark.parametrize(("output_dir", "shown"), [("runs/mine", "runs/mine"), ("/data/runs/mine", "mine")])
def test_its_run_is_named_as_the_recipe_has_it(tmp_path: Path, output_dir: str, shown: str) -> None:
    run = finished(tmp_path)
    recipe = read_recipe(run.recipe, warn=False)
    run.recipe.write_text(dump_recipe(dataclasses.replace(recipe, output_dir=output_dir)))
    text = run_card(run, "stage2", here=".")
    assert f"`cwdpo evaluate {shown} --data ROWS` measures more" in text
    assert f"\noutput_dir: {shown}\n" in text


def test_a_change_that_rounds_to_0_has_no_sign(tmp_path: Path) -> None:
    run = finished(tmp_path)
    append_jsonl(run.probes, [{"stage": "stage2", "step": 8, "group": "chosen", "delta": -0.0001}])
    assert "-0.000 |" not in run_card(run, "stage2", here=".")


def test_findings_of_its_stage(tmp_path: Path) -> None:
    run = finished(tmp_path)
    findings = [
        Finding(name="squeezing", evidence="it sank", advice="a", stage="stage2"),
        Finding(name="overconfidence", evidence="too sure", advice="a", stage="stage1"),
    ]
    run.write_findings(Diagnosis(findings, [], [], [], []).to_json())
    second, first = (run_card(run, stage, here=".") for stage in ("stage2", "stage1"))  # type: ignore[arg-type]
    assert "- **Squeezing**: it sank" in second
    assert "too sure" not in second
    assert "- **Overconfidence**: too sure" in first
    run.write_findings(Diagnosis([], [], ["squeezing"], [], []).to_json())
    assert "found no problem; it looked for 1 signs" in run_card(run, "stage2", here=".")


def test_an_evaluation_takes_the_place_of_the_training(tmp_path: Path) -> None:
    run = finished(tmp_path)
    measure = {
        "key": "exact", "label": "exact match", "group": "answers", "better": "up", "value": 0.5, "low": 0.4,
        "high": 0.6, "base": 0.25, "difference": {"value": 0.25, "low": 0.1, "high": 0.4}, "verdict": "better",
    }  # fmt: skip
    found = {
        "rows": 100,
        "level": 0.95,
        "against": "owner/base",
        "words": "Better.",
        "measures": [measure],
        "skipped": {},
    }
    write_json(run.evaluation, found)
    text = run_card(run, "stage2", here=".")
    assert "exact match (answers)" in text
    assert "yes, better" in text
    assert "During training" not in text


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: qwen-research", "qwen-research"),
        ("tags: [a]", None),
    ],
)
def test_the_licence_of_the_base(tmp_path: Path, front: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# base\n")
    assert base_licence(str(tmp_path)) == licence
    text = run_card(finished(tmp_path, str(tmp_path)), "stage2", here=".")
    assert (f"The base's licence is {licence}, and holds" in text) == (licence is not None)
    assert base_licence(str(tmp_path / "nowhere")) is None


def test_a_merge_of_other_adapters(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (tmp_path / "merged").mkdir()
    write_merged_card(tmp_path / "adapters", tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("owner/base", "transformers")


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_the_snippet_runs(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    from cwdpo.models.adapters import add_lora
    from cwdpo.models.loading import load_policy, load_processor
    from cwdpo.models.merging import merge_adapter
    from cwdpo.models.saving import save_checkpoint

    base = tiny("llava")
    run = finished(tmp_path, str(base))
    directory = run.stage("stage2")
    save_checkpoint(add_lora(load_policy(base), r=2, alpha=4), load_processor(base), directory)
    if merged:
        source, directory = directory, merge_adapter(directory, tmp_path / "merged")
        write_merged_card(source, directory)
    else:
        write_cards(run)
    Image.new("RGB", (32, 32), "red").save(directory / "picture.png")
    monkeypatch.chdir(directory)
    code = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    found: dict[str, object] = {}
    exec(code[0], found)
    assert ("PeftModel" in found) is not merged
