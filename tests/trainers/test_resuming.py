"""An interrupted run that is resumed equals one that was not, weight for weight."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from cwdpo.errors import UserError
from cwdpo.models.checkpoints import find_damage, last_checkpoint, no_unfinished_checkpoints
from cwdpo.models.loading import load_policy
from cwdpo.records import RunDirectory, append_jsonl, read_jsonl
from cwdpo.trainers.callbacks import MetricsRecorder, StopOnSignal

Make = Callable[..., Any]
SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 3}


class StopAfter(TrainerCallback):
    """Breaks a run off as a crash would: with an exception, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("power cut")


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def history(trainer: Any) -> list[dict[str, float]]:
    keys = ("loss", "grad_norm", "rewards/margins", "logps_mean/chosen", "num_tokens")
    return [{k: line[k] for k in keys if k in line} for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "idefics3"])
def test_resumed_equals_uninterrupted(make_trainer: Make, name: str, lora: bool, stage: int) -> None:
    """qwen2_5_vl and llava are the classes whose weights a plain Trainer would lose here (transformers 43701)."""
    straight = make_trainer(stage, name, lora=lora, out="straight", **SAVING)
    straight.train()
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(stage, name, lora=lora, out="broken", callbacks=[StopAfter(5)], **SAVING).train()
    resumed = make_trainer(stage, name, lora=lora, out="broken", **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert history(resumed) == history(straight)
    for parameter, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[parameter]), parameter


@pytest.mark.slow
class Hub:
    """Takes a checkpoint as it is when its upload begins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def upload_folder(self, folder_path: str, path_in_repo: str = "model", **_: Any) -> Any:
        if path_in_repo != "model":
            shutil.copytree(folder_path, self.directory / path_in_repo)
        job: Future[None] = Future()
        job.set_result(None)
        return job


def test_an_uploaded_checkpoint_is_whole(make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: Hub(tmp_path / "hub"))
    trainer = make_trainer(1, lora=True, out="here", hub_strategy="all_checkpoints", **SAVING | {"max_steps": 2})
    trainer.args.push_to_hub, trainer.push_in_progress = True, None  # asked for when it is made, it would log in
    trainer.train()
    assert find_damage(tmp_path / "hub/checkpoint-2", thorough=True) is None
    resumed = make_trainer(1, lora=True, out="there", **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "hub/checkpoint-2"))
    assert resumed.state.global_step == 6


def test_best_model_is_loaded_whole(make_trainer: Make, rows: Any) -> None:
    """Where a *lower* log-prob of the chosen counts as better, the first checkpoint is the best and comes back."""
    trainer = make_trainer(
        2,
        "qwen2_5_vl",
        **SAVING | {"learning_rate": 1e-2},
        eval_rows=rows,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="logps_mean/chosen",
        greater_is_better=False,
    )
    trainer.train()
    first, *_, last = [line["eval_logps_mean/chosen"] for line in trainer.state.log_history if "eval_loss" in line]
    assert last > first + 0.1
    assert trainer.evaluate()["eval_logps_mean/chosen"] == pytest.approx(first, abs=1e-6)


def test_partial_checkpoints_are_removed_and_whole_ones_kept(tmp_path: Path) -> None:
    whole, partial, other = (tmp_path / name for name in ("checkpoint-2", "checkpoint-4", "checkpoint-notes"))
    for directory in (whole, partial, other):
        directory.mkdir()
    (whole / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    (partial / "trainer_state.json").write_text('{"global_st')
    with no_unfinished_checkpoints(tmp_path):
        assert last_checkpoint(tmp_path) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-notes"]


def train_with_small_files(make_trainer: Make, largest: int, result: Any) -> None:
    """In a process of its own: no file may grow beyond ``largest`` bytes, as on a disk that fills up."""
    trainer = make_trainer(2, out="full", **SAVING, callbacks=[LimitFiles(largest)])
    try:
        trainer.train()
    except UserError as error:
        result.put(str(error))


class LimitFiles(TrainerCallback):
    """From step 3 on, large files cannot be written."""

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, self.largest))


@pytest.mark.slow
@pytest.mark.parametrize("largest", [50_000, 600_000])  # cuts off the model's weights; the optimiser's state
def test_full_disk_keeps_the_last_good_checkpoint(make_trainer: Make, tmp_path: Path, largest: int) -> None:
    context = get_context("fork")
    result = context.SimpleQueue()
    child = context.Process(target=train_with_small_files, args=(make_trainer, largest, result))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert not result.empty()
    message = result.get()
    assert "checkpoint-2 is whole" in message
    assert "--resume" in message
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "full").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make_trainer(2, out="full", **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


class Interrupt(TrainerCallback):
    """Ctrl-C in the middle of a step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_signal_ends_the_run_with_a_checkpoint_and_resuming_is_exact(make_trainer: Make, tmp_path: Path) -> None:
    settings = SAVING | {"save_steps": 100}
    run = RunDirectory(tmp_path / "run")
    run.root.mkdir()
    stopped = make_trainer(2, out="stopped", callbacks=[Interrupt()], **settings)
    signals, before = StopOnSignal(), signal.getsignal(signal.SIGINT)
    stopped.add_callback(signals)
    stopped.add_callback(MetricsRecorder(run, "stage2"))
    stopped.train()
    assert signals.received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.state.global_step == 3
    append_jsonl(run.metrics, [{"stage": "stage2", "step": 4, "loss": 9.0}])  # of a run that went on and was lost
    resumed = make_trainer(2, out="stopped", **settings)
    resumed.add_callback(MetricsRecorder(run, "stage2"))
    resumed.train(resume_from_checkpoint=True)
    straight = make_trainer(2, out="straight", **settings)
    straight.train()
    for parameter, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[parameter]), parameter
    recorded = [line for line in read_jsonl(run.metrics).objects if "loss" in line]
    assert [line["step"] for line in recorded] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in recorded] == [line["loss"] for line in history(straight)]


@pytest.mark.slow
def test_resuming_at_the_last_step_takes_no_other(make_trainer: Make) -> None:
    """A stage may end between its last checkpoint and the saving of its model; here in the middle of an epoch."""
    settings = {**SAVING, "max_steps": 3, "save_steps": 1}
    straight = make_trainer(1, "llava", lora=False, **settings)
    straight.train()
    resumed = make_trainer(1, "llava", lora=False, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert 0 < resumed.state.epoch % 1 < 1
    assert resumed.state.global_step == 3
    for parameter, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[parameter]), parameter


@pytest.mark.slow
def test_an_adapter_of_any_name_is_resumed(make_trainer: Make, tiny: Any) -> None:
    def make(out: str, **settings: Any) -> Any:
        torch.manual_seed(0)  # of the adapter's first values
        model = get_peft_model(
            load_policy(tiny("llava"), dtype="float32"), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="mine"
        )
        return make_trainer(2, model=model, out=out, **SAVING | settings)

    straight = make("straight")
    straight.train()
    with pytest.raises(RuntimeError, match="power cut"):
        make("broken", callbacks=[StopAfter(5)]).train()
    resumed = make("broken")
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(straight)


@pytest.mark.slow
def test_a_checkpoint_that_lacks_a_weight_of_the_adapter_is_not_resumed(make_trainer: Make, tmp_path: Path) -> None:
    """One of another program, say, that has no list of its files."""
    make_trainer(2, lora=True, **SAVING | {"max_steps": 2}).train()
    checkpoint = tmp_path / "out/checkpoint-2"
    (checkpoint / "manifest.json").unlink()
    saved = load_file(checkpoint / "adapter_model.safetensors")
    save_file(dict(list(saved.items())[1:]), checkpoint / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 adapter weights"):
        make_trainer(2, lora=True, **SAVING).train(resume_from_checkpoint=str(checkpoint))
