"""With ``cooling`` off, stage 2 is TRL's DPO: the same losses, gradients and rewards, step after step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from support import disc_data
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer

STEPS = 4
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "beta": 0.1,
    "seed": 3,
}


class Gradients(TrainerCallback):
    """Keeps a copy of every gradient, by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("trl")
    rows = disc_data.records(16)
    disc_data.write(directory, rows)
    return [
        {
            "images": [Image.open(directory / row["images"][0]).convert("RGB")],
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


def processor_for(checkpoint: Path) -> Any:
    """A template that ends a turn with its end token: TRL also scores what a template writes after it, we do not."""
    processor: Any = load_processor(checkpoint)
    for end in ("<|im_end|>", "<end_of_utterance>"):
        processor.chat_template = processor.chat_template.replace(end + "\\n", end).replace(end + "\n", end)
    return processor


def history(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), [("qwen2_5_vl", False), ("idefics3", False), ("qwen2_5_vl", True)])
def test_losses_gradients_and_rewards_are_trls(
    name: str, lora: bool, tiny: Callable[[str], Path], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    def run(trainer_class: Any, config_class: Any, **settings: Any) -> tuple[Any, Gradients]:
        seen = Gradients()
        args = config_class(output_dir=str(tmp_path / trainer_class.__name__), **COMMON | settings)
        policy: Any = load_policy(tiny(name), dtype="float32", freeze_vision=False)
        if lora:
            torch.manual_seed(5)  # of the adapters' first values
            adapters = LoraConfig(r=4, lora_alpha=16, target_modules=r".*language_model.*(q|v)_proj")
            policy = get_peft_model(policy, adapters)
        trainer = trainer_class(
            model=policy,
            args=args,
            train_dataset=Dataset.from_list(records),
            processing_class=processor_for(tiny(name)),
            callbacks=[seen],
        )
        trainer.train()
        return trainer, seen

    rate = {"learning_rate": 2e-2 if lora else 1e-3}  # adapters begin at an update of 0
    ours, our_gradients = run(CWDPOTrainer, CWDPOConfig, cooling=False, **rate)
    theirs, their_gradients = run(DPOTrainer, DPOConfig, max_length=None, activation_checkpointing=False, **rate)

    assert len(history(ours)) == len(history(theirs)) == STEPS
    for our, their in zip(history(ours), history(theirs), strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert our[key] == pytest.approx(their[key], abs=1e-5, rel=1e-5), (key, our["step"])
    assert history(ours)[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert history(ours)[-1]["loss"] < 0.69  # it did train, so equality was not of a standstill
    for our, their in zip(our_gradients.steps, their_gradients.steps, strict=True):
        assert our.keys() == their.keys()
        largest = max(gradient.abs().max().item() for gradient in their.values())
        for parameter, gradient in their.items():
            torch.testing.assert_close(our[parameter], gradient, atol=1e-5 * largest, rtol=1e-5)
