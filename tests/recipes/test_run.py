"""Whole recipes on tiny checkpoints of real classes: train, save, reload, generate, resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import disc_data
from transformers import AutoModelForImageTextToText, TrainerCallback

from cwdpo.config.recipe import (
    CoolingConfig,
    DataConfig,
    FeaturesConfig,
    LoraConfig,
    ModelConfig,
    NegativesConfig,
    Recipe,
    Stage1Config,
    Stage2Config,
)
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.reading import read_rows
from cwdpo.errors import ConfigError, DataError, UserError
from cwdpo.generation import LocalSampler
from cwdpo.models.loading import load_processor
from cwdpo.models.merging import merge_adapter
from cwdpo.recipes import Interrupted, run_recipe
from cwdpo.recipes.stages import RunContext, stage_trainer
from cwdpo.records import Stage, read_jsonl
from cwdpo.trainers import CWDPOTrainer
from cwdpo.trainers.callbacks import StopOnSignal

pytestmark = pytest.mark.slow

Tiny = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
CLASSES = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava", "idefics3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_data.write(tmp_path_factory.mktemp("data"), disc_data.records(16, text_only_every=5))


def recipe(checkpoint: Path, data: Path, out: Path, *, lora: bool = False, **trainer: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path=str(checkpoint), lora=LoraConfig(r=4, alpha=8) if lora else None),
        data=DataConfig(train=str(data), stage1_fraction=0.5),
        stage1=Stage1Config(penalty=0.2),
        stage2=Stage2Config(beta=0.2),
        trainer={
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "use_cpu": True,
            **trainer,
        },
        output_dir=str(out),
    )


def answer(model: Any, directory: Path) -> list[int]:
    """Tokens that a model writes of a red picture."""
    processor: Any = load_processor(directory)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[[Image.new("RGB", (32, 32), "red")]], return_tensors="pt")
    ids = model.eval().generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    tokens: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


class LastModel(TrainerCallback):
    """What the model in memory answers at the end of the last stage, before anything is saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answer: list[int] = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.answer = answer(kwargs["model"], self.directory)


@pytest.mark.parametrize("name", CLASSES)
def test_both_stages_save_reload_and_generate(name: str, tiny: Tiny, data: Path, tmp_path: Path) -> None:
    in_memory = LastModel(tiny(name))
    run = run_recipe(recipe(tiny(name), data, tmp_path / "run", learning_rate=1e-2), callbacks=[in_memory])
    models = [
        AutoModelForImageTextToText.from_pretrained(d) for d in (tiny(name), run.stage("stage1"), run.stage("stage2"))
    ]
    for before, after in pairwise(models):
        moved = [n for n, p in before.named_parameters() if not torch.equal(p, after.state_dict()[n])]
        assert any("language_model" in n or "text_model" in n for n in moved)
        assert not any("vision_tower" in n or "vision_model" in n for n in moved)
        assert not any("visual.blocks" in n for n in moved)
    assert len(in_memory.answer) == 8
    assert answer(models[2], run.stage("stage2")) == in_memory.answer
    assert answer(models[0], tiny(name)) != in_memory.answer
    lines = read_jsonl(run.metrics).objects
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("stage1", 1),
        ("stage1", 2),
        ("stage2", 1),
        ("stage2", 2),
    ]
    assert lines[2]["loss"] == pytest.approx(0.693147, abs=1e-5)
    for key in ("chosen", "rejected", "margins"):  # accuracies count a margin that is rounding alone
        assert lines[2][f"rewards/{key}"] == pytest.approx(0, abs=1e-5)
    names = {f"{a}/{b}" for a in ("logps", "logps_mean") for b in ("chosen", "rejected")}
    names |= {f"cooling/{p}" for p in ("mean", "p10", "p50", "p90")} | {"grad_norm", "entropy", "num_tokens"}
    assert names <= lines[3].keys()
    assert "stage2" in run.report.read_text()
    resolved = read_recipe(run.recipe)
    assert resolved.stage2 is not None
    assert resolved.stage2.cooling is not None
    assert isinstance(resolved.stage2.cooling.floor, float)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_lora_leaves_adapters_that_merge_into_the_same_model(name: str, tiny: Tiny, data: Path, tmp_path: Path) -> None:
    run = run_recipe(recipe(tiny(name), data, tmp_path / "run", lora=True, max_steps=6, learning_rate=1e-2))
    first, second = (load_file(run.stage(s) / "adapter_model.safetensors") for s in ("stage1", "stage2"))
    assert first.keys() == second.keys()
    assert all(value.any() for name, value in first.items() if "lora_B" in name)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    merged = merge_adapter(run.stage("stage2"), tmp_path / "merged")
    model = AutoModelForImageTextToText.from_pretrained(merged)
    assert answer(model, merged) != answer(AutoModelForImageTextToText.from_pretrained(tiny(name)), tiny(name))


class Crash(TrainerCallback):
    """Breaks off at a step of a stage, counted from the start of the run."""

    def __init__(self, at: int) -> None:
        self.left = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


def test_one_engine_serves_a_run(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    """It is checked once, and every image is encoded once: for both stages, all epochs, evaluation and reference."""
    settings = recipe(tiny("qwen3_vl"), data, tmp_path / "run", lora=True, max_steps=6, eval_strategy="epoch")
    run = run_recipe(replace(settings, data=replace(settings.data, eval=str(data)), features=FeaturesConfig(disk_mb=5)))
    noted = json.loads(run.summary.read_text())["stages"]["stage2"]["engine"]
    assert [choice["engine"] for choice in noted["choices"]] == ["tree"]
    kinds = len({path.stem for path in run.features.glob("*/*.safetensors")})
    assert noted["features"]["computed"] == kinds
    assert kinds == 6  # discs of six colours
    assert noted["features"]["found"] > 50
    again = recipe(tiny("qwen3_vl"), data, tmp_path / "again", lora=True, max_steps=6, eval_strategy="epoch")
    without = run_recipe(replace(again, data=replace(again.data, eval=str(data)), features=None))
    for line, other in zip(*(read_jsonl(each.metrics).objects for each in (run, without)), strict=True):
        for name in {"loss", "eval_loss"} & line.keys():
            assert line[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.parametrize("step", [3, 7])  # the third of stage 1; the third of stage 2
@pytest.mark.parametrize("lora", [False, True])
def test_an_interrupted_run_resumes_to_the_same_models(
    lora: bool, step: int, tiny: Tiny, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"lora": lora, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    straight = run_recipe(recipe(tiny("qwen2_5_vl"), data, tmp_path / "straight", **settings))
    broken = recipe(tiny("qwen2_5_vl"), data, tmp_path / "broken", **settings)
    torch.manual_seed(123)  # what happened before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        run_recipe(broken, callbacks=[Crash(step)])
    torch.manual_seed(456)
    resumed = run_recipe(broken, resume=True)
    for stage in ("stage1", "stage2"):
        weights = "adapter_model.safetensors" if lora else "model.safetensors"
        one, other = (load_file(run.stage(stage) / weights) for run in (straight, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    keys = ("stage", "step", "loss", "num_tokens", "grad_norm")
    histories = [[[line[k] for k in keys] for line in read_jsonl(run.metrics).objects] for run in (straight, resumed)]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 8


def test_a_signal_is_reported_with_the_way_on(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(self: StopOnSignal, *args: Any, **kwargs: Any) -> None:
        self.received = self._SIGNALS[0]

    monkeypatch.setattr(StopOnSignal, "on_train_begin", receive)
    with pytest.raises(Interrupted, match=r"stage1 stopped at step 1; its checkpoint is in .*checkpoints/stage1"):
        run_recipe(recipe(tiny("llava"), data, tmp_path / "run"))
    assert (tmp_path / "run/checkpoints/stage1/checkpoint-1/trainer_state.json").exists()


def test_one_stage_alone_sees_all_rows(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    both = recipe(tiny("llava"), data, tmp_path / "run", num_train_epochs=1, max_steps=-1)
    run = run_recipe(replace(both, stage1=None, stage2=Stage2Config(cooling=None)))
    lines = read_jsonl(run.metrics).objects
    assert [line["step"] for line in lines] == [1, 2, 3, 4]  # 16 rows in batches of 4
    assert {line["cooling/mean"] for line in lines} == {1.0}
    assert not run.stage("stage1").exists()


def test_nothing_is_overwritten(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        run_recipe(recipe(tiny("llava"), data, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resuming_another_experiment_is_refused(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    first = recipe(tiny("llava"), data, tmp_path / "run")
    run_recipe(first)
    with pytest.raises(ConfigError, match=r"seed = 0 and keeps it"):
        run_recipe(replace(first, seed=7), resume=True)
    changed = replace(first, stage2=Stage2Config(beta=0.2, cooling=CoolingConfig(temperature=2.0)))
    with pytest.raises(ConfigError, match=r"stage2\.cooling\.temperature = 0\.3 and keeps it"):
        run_recipe(changed, resume=True)


def test_missing_negatives_are_reported_before_anything_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    rows = disc_data.records(8)
    for row in rows:
        del row["gentle"]
    data = disc_data.write(tmp_path / "data", rows)
    with pytest.raises(ConfigError, match="objective: plain"):
        run_recipe(recipe(tiny("llava"), data, tmp_path / "one"))
    del rows[5]["rejected"]
    data = disc_data.write(tmp_path / "data", rows)
    only = replace(recipe(tiny("llava"), data, tmp_path / "two"), stage1=None)
    with pytest.raises(DataError, match=r"train\.jsonl:6: .*rejected"):
        run_recipe(only)


def test_the_gpu_recipe_runs_on_a_tiny_checkpoint_of_its_class(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    gpu = read_recipe(
        ROOT / "recipes" / "qwen2_5_vl_3b_lora.yaml",
        {
            "model.name_or_path": str(tiny("qwen2_5_vl")),
            "data.train": str(data),
            "data.eval": str(data),
            "data.image_root": None,
            "output_dir": str(tmp_path / "run"),
            "trainer.use_cpu": True,
            "trainer.dataloader_num_workers": 0,
            "trainer.max_steps": 2,
            "trainer.logging_steps": 1,
        },
    )
    assert gpu.model.lora is not None
    assert gpu.data.stage1_fraction == 0.75
    run = run_recipe(gpu)
    assert (run.stage("stage2") / "adapter_model.safetensors").exists()
    lines = [line for line in read_jsonl(run.metrics).objects if line["stage"] == "stage2" and "loss" in line]
    # in bfloat16 the cached reference, computed in batches of another size, rounds otherwise
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)


def test_stage2_knows_the_right_answers_of_stage1(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def watched(context: RunContext, stage: Stage) -> Any:
        trainer = stage_trainer(context, stage)
        if isinstance(trainer, CWDPOTrainer):
            assert trainer.on_policy is not None
            right = trainer.on_policy.also_right
            seen.extend({row.source for row in of} for of in (context.stage_rows[stage], right))
            raise RuntimeError("seen")
        return trainer

    monkeypatch.setattr("cwdpo.recipes.stages.stage_trainer", watched)
    with pytest.raises(RuntimeError, match="seen"):
        run_recipe(replace(recipe(tiny("llava"), data, tmp_path / "run", max_steps=1), negatives=NegativesConfig()))
    trained, also_right = seen
    assert trained
    assert also_right
    assert not trained & also_right
    assert trained | also_right == {row.source for row in read_rows(data)}


def test_sampled_negatives_are_part_of_an_exact_resume(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = LocalSampler.sample
    monkeypatch.setattr(  # a random model never ends its answers
        LocalSampler,
        "sample",
        lambda self, rows, *, seed: [[a._replace(ended=True) for a in of] for of in sample(self, rows, seed=seed)],
    )
    negatives = NegativesConfig(refresh=1, max_new_tokens=6, on_policy_fraction=0.8)
    settings: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    runs = []
    for name in ("straight", "broken"):
        one = replace(recipe(tiny("llava"), data, tmp_path / name, **settings), stage1=None, negatives=negatives)
        if name == "broken":
            with pytest.raises(RuntimeError, match="power cut"):
                run_recipe(one, callbacks=[Crash(3)])
        runs.append(run_recipe(one, resume=name == "broken"))
    keys = ("step", "loss", "negatives/on_policy")
    histories = [[[line[k] for k in keys] for line in read_jsonl(run.metrics).objects] for run in runs]
    assert histories[0] == histories[1]
    assert all(share > 0 for *_, share in histories[0])
    files = [sorted(path.name for path in run.negatives.iterdir()) for run in runs]
    assert files == [["refresh-00001.jsonl", "refresh-00002.jsonl", "refresh-00003.jsonl"]] * 2
    assert read_recipe(runs[0].recipe).negatives == negatives
