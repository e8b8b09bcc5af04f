"""A step of training never waits for the GPU, but for the one question whether it may make its update."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.pretend_gpu import GPU, PretendGPU

from cwdpo.data.rows import Row
from cwdpo.engine import FeatureCache, make_engine
from cwdpo.generation import Generated

Make = Callable[..., Any]
PACKAGES = ("cwdpo", "transformers", "accelerate", "peft")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*CUDA is not available"),
]


def waits_of_a_step(trainer: Any) -> PretendGPU:
    """Where the second step of training would wait; the first chooses the engine, and fills what is kept."""
    batches = [trainer.collate([trainer.train_dataset[i] for i in rows]) for rows in ((0, 1, 2, 3), (3, 0, 2, 1))]
    trainer.create_optimizer_and_scheduler(4)
    trainer.state.max_steps, trainer.callback_handler.optimizer = 4, trainer.optimizer
    trainer.args.__dict__["_setup_devices"] = GPU
    for batch in batches:
        with PretendGPU(*PACKAGES) as gpu:
            gpu.place(trainer.model)
            here = trainer._prepare_inputs(batch)
            gpu.waits.clear()  # the Trainer's own way to the device
            (here,), step = trainer.get_batch_samples(iter([here]), 1, GPU)
            trainer.training_step(trainer.model, here, step)
            assert any(weight.grad is not None for weight in trainer.model.parameters())
            trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    return gpu


def make_kept(make_trainer: Make, stage: int, name: str, **arguments: Any) -> Any:
    trainer = make_trainer(stage, name, lora=True, logging_steps=100, max_steps=4, **arguments)
    trainer.engine = make_engine(features=FeatureCache(memory_mb=64))
    if stage == 2:
        trainer.measure_reference()
    return trainer


@pytest.mark.parametrize(
    ("stage", "name", "arguments"),
    [
        (1, "llava", {"objective": "smoothed"}),
        (2, "llava", {}),
        (2, "qwen2_5_vl", {"reference": "live"}),
        (2, "gemma3", {"loss": {"wpo": 1.0, "ld_dpo": 1.0}, "reference": "live"}),
        (2, "llava", {"loss": {"sigmoid": 1.0, "image": 1.0}}),
        (2, "idefics3", {"max_tokens_per_batch": 200}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_waits_once(stage: int, name: str, arguments: dict[str, Any], make_trainer: Make) -> None:
    trainer = make_kept(make_trainer, stage, name, **arguments)
    gpu = waits_of_a_step(trainer)
    assert gpu.of("cwdpo") == ["finite.on_pre_optimizer_step: tolist"]


class Scripted:
    """A sampler that draws nothing."""

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        return [[Generated("a green ring", True), Generated("two discs and a long line", True)] for _ in rows]


def test_sampled_negatives_make_no_waits(make_trainer: Make) -> None:
    sampling = {"on_policy_fraction": 1.0, "k": 2, "refresh": 100, "max_new_tokens": 12}
    trainer = make_kept(make_trainer, 2, "llava", on_policy=sampling, sampler=Scripted())
    trainer.state.max_steps = 4
    trainer.on_policy.on_train_begin(trainer.args, trainer.state, trainer.control)
    gpu = waits_of_a_step(trainer)
    assert gpu.of("cwdpo") == ["finite.on_pre_optimizer_step: tolist"]
    assert any(values.sum() > 0 for values in trainer._metrics["train"]._values["negatives/on_policy"])


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: x[x > 0], True),
        (lambda x: x.masked_fill(x > 0, 0.0), False),
        (lambda x: bool(x.any()), True),
        (lambda x: x.to("cpu"), True),
        (lambda x: x[torch.tensor([0])], True),
        (lambda x: x.index_select(0, torch.tensor([0]).to(x.device, non_blocking=True)), False),
        (lambda x: torch.tensor([1.0], device=x.device), True),
        (lambda x: torch.ones(3, device=x.device) + x, False),
        (lambda x: torch.bincount(x.long()), True),
    ],
)
def test_waits_are_seen(call: Callable[[torch.Tensor], Any], waits: bool) -> None:
    with PretendGPU("tests") as gpu:
        call(torch.ones(3).to(GPU, non_blocking=True))
        assert bool(gpu.waits) == waits


def test_what_a_gpu_refuses_is_an_error() -> None:
    with PretendGPU(), pytest.raises(AssertionError, match="meets one on the GPU"):
        torch.ones(3).to(GPU) + torch.ones(3)
