"""Two ranks with batches of 2 train like one with batches of 4: losses, hinge, floor, reference and records."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import disc_data, rank_runs
from support.rank_runs import ZERO_2, free_port, start

from cwdpo.negatives.candidates import read_refreshes
from cwdpo.records import read_jsonl

pytestmark = pytest.mark.ranks

RECIPE = """
model: {{name_or_path: {model}, freeze_vision: true, lora: {lora}}}
data: {{train: {data}, stage1_fraction: 0.5}}
stage1: {{objective: constrained, ceiling: 50.0, penalty: 0.3}}
stage2: {{beta: 0.3}}
probes: {{rows: 16}}
trainer: {{max_steps: 2, learning_rate: 1e-3, logging_steps: 1, use_cpu: true, optim: sgd, max_grad_norm: 0}}
"""


PARTS = ["--trainer.length_buckets=true", "--trainer.max_tokens_per_batch=176"]
"""Two of the shorter rows together, or one alone: left to themselves, ranks would make unequal numbers of passes."""

WHOLE_STEP = ["--loss", "{beta_dpo: 1, bco: 1}", "--beta_dpo_scale=20", "--running_momentum=0.5"]
"""Losses that read means over a step, and over the steps before."""


CURRICULUM = """
model: {{name_or_path: {model}, freeze_vision: true}}
data: {{train: {data}}}
stage2: {{beta: 0.3}}
negatives: {{on_policy_fraction: 0, per_prompt: 1, refresh: 2, curriculum: auto, batch_size: 5}}
probes: {{rows: 4, every: 1, groups: [chosen, gentle], tolerance: 5.0}}
trainer: {{max_steps: 6, learning_rate: 1e-2, logging_steps: 1, use_cpu: true, optim: sgd, max_grad_norm: 0}}
"""


def launch(ranks: int, recipe: Path, out: Path, more: Sequence[str] = ()) -> Path:
    """Run a recipe with 4 rows a step on this many ranks."""
    said = rank_runs.launch(
        ranks, {"run": [recipe, f"--output_dir={out}", f"--trainer.per_device_train_batch_size={4 // ranks}", *more]}
    )
    assert said.count("run: done") == ranks, said
    return out


@pytest.mark.parametrize(("lora", "more"), [("null", []), ("{r: 4, alpha: 8}", []), ("null", PARTS + WHOLE_STEP)])
def test_two_ranks_train_like_one(lora: str, more: list[str], tiny: Callable[[str], Path], tmp_path: Path) -> None:
    data = disc_data.write(tmp_path / "data", disc_data.records(16))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny("llava"), data=data, lora=lora))

    one, two = (launch(ranks, recipe, tmp_path / f"ranks{ranks}", more) for ranks in (1, 2))
    weights = "model.safetensors" if lora == "null" else "adapter_model.safetensors"
    for stage in ("stage1", "stage2"):
        first, second = load_file(one / stage / weights), load_file(two / stage / weights)
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], atol=1e-6, rtol=1e-5)
    lines = [read_jsonl(out / "metrics.jsonl").objects for out in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 4
    for our, their in zip(*lines, strict=True):
        for key in ("loss", "num_tokens", "logps_mean/chosen", "rewards/margins", "cooling/p50", "logps_mean/gentle"):
            assert our.get(key) == pytest.approx(their.get(key), abs=1e-5), (key, our["step"])
    assert (one / "recipe.yaml").read_text().split("floor:")[1][:8] == (two / "recipe.yaml").read_text().split(
        "floor:"
    )[1][:8]
    assert len(list((two / "reference").glob("part-*.npz"))) == 2  # each rank wrote its own
    check_examples(one, two)


MIXED = """
model: {{name_or_path: {model}, freeze_vision: false}}
data: {{train: {data}}}
stage2: {{beta: 0.3}}
probes: null
trainer: {{max_steps: {steps}, learning_rate: 1e-3, logging_steps: 1, use_cpu: true, weight_decay: 0.1,
  activation_checkpointing: true}}
"""


def test_ranks_with_and_without_images_train_like_one(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """All weights train, some of them on one rank alone; and in the model some that nothing ever uses, which AdamW's
    weight decay leaves alone."""
    data = disc_data.write(tmp_path / "data", disc_data.records(12, text_only_every=2))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MIXED.format(model=tiny("llava"), data=data, steps=3))
    one, two = (launch(ranks, recipe, tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    start, first, second = (
        load_file(path / "model.safetensors") for path in (tiny("llava"), one / "stage2", two / "stage2")
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-5)
    moved = {name for name, value in first.items() if not torch.equal(value, start[name])}
    assert {name for name in moved if "vision_tower" in name}
    assert {name for name in first if name not in moved and "vision_tower" in name}  # the layer behind the features
    lines = [read_jsonl(out / "metrics.jsonl").objects for out in (one, two)]
    for our, their in zip(*lines, strict=True):
        for key in ("loss", "grad_norm", "rewards/margins"):
            assert our.get(key) == pytest.approx(their.get(key), abs=1e-5), (key, our["step"])


@pytest.mark.parametrize(
    "division",
    [
        [],
        pytest.param(["--trainer.fsdp=true"], marks=pytest.mark.slow),
        pytest.param([ZERO_2], marks=pytest.mark.slow),
    ],
    ids=["ddp", "fsdp", "zero"],
)
def test_a_killed_rank_does_not_leave_the_other_waiting(
    division: list[str], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    data = disc_data.write(tmp_path / "data", disc_data.records(12, text_only_every=2))
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(MIXED.format(model=tiny("llava"), data=data, steps=100_000))
    port = free_port()
    ranks = [start(number, port, recipe, [f"--output_dir={out}", *division]) for number in range(2)]
    try:
        began = time.monotonic()
        while not (out / "metrics.jsonl").is_file() and time.monotonic() < began + 200:
            assert all(each.poll() is None for each in ranks), [each.communicate()[1][-2000:] for each in ranks]
            time.sleep(0.2)
        ranks[1].kill()
        killed = time.monotonic()
        _, said = ranks[0].communicate(timeout=60)
        assert time.monotonic() - killed < 10
        assert ranks[0].returncode == 2
        assert said.strip().splitlines()[-1].startswith("another process of this training has ended")
        assert "Traceback" not in said
    finally:
        for each in ranks:
            each.kill()


def check_examples(one: Path, two: Path) -> None:
    """Ranks divide the rows, and one of them writes what one alone would."""
    for stage in ("stage1", "stage2"):
        both = [read_jsonl(out / "probes" / stage / "examples.jsonl").objects for out in (one, two)]
        assert len(both[0]) == len(both[1]) == 12
        for our, their in zip(*both, strict=True):
            assert (our["row"], our["pictures"], our["prompt"]) == (their["row"], their["pictures"], their["prompt"])
            answers = [{answer["group"]: answer for answer in line["answers"]} for line in (our, their)]
            assert answers[0].keys() == answers[1].keys()
            for group in ("chosen", "rejected", "gentle"):
                for key in ("start", "end"):
                    assert answers[0][group][key] == pytest.approx(answers[1][group][key], abs=1e-4)


def test_ranks_that_miss_different_parts_of_the_reference_do_not_wait_for_each_other(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    data = disc_data.write(tmp_path / "data", disc_data.records(8, text_only_every=2))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(Path(__file__).with_name("lost_part_script.py")), str(tiny("llava")), str(data), str(tmp_path)]
    done = subprocess.run([*launch, *script], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the same floor and reference") == 2


def test_two_ranks_have_one_curriculum(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The same order of negatives, the same level from the same readings, and so the same training."""
    rows = [row | {"negatives": [f"Nothing {row['id']}.", "A cube."]} for row in disc_data.records(16)]
    data = disc_data.write(tmp_path / "data", rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CURRICULUM.format(model=tiny("llava"), data=data))
    one, two = (launch(ranks, recipe, tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    lines = [[line for line in read_jsonl(out / "metrics.jsonl").objects if "loss" in line] for out in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 6
    for our, their in zip(*lines, strict=True):
        for key in ("loss", "negatives/level", "negatives/lbar", "logps_mean/rejected", "rewards/margins"):
            assert our[key] == pytest.approx(their[key], abs=1e-5), (key, our["step"])
    assert len({line["negatives/level"] for line in lines[0]}) > 1
    ours, theirs = (read_refreshes(out / "negatives") for out in (one, two))
    assert [refresh.step for refresh in ours] == [refresh.step for refresh in theirs] == [0, 2, 4]
    for our, their in zip(ours, theirs, strict=True):
        assert [(c.row, c.text, c.key) for c in our.candidates] == [(c.row, c.text, c.key) for c in their.candidates]
        assert [c.lbar for c in our.candidates] == pytest.approx([c.lbar for c in their.candidates], abs=1e-5)
