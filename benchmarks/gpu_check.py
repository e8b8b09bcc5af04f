"""What only a GPU can settle, in at most 8 minutes on one H100: ``python -m benchmarks.gpu_check --out DIR``.

A random Qwen2.5-VL-3B in bfloat16, LoRA, two pairs with an image of 1,296 tokens. The parts, each with its own time:

==============  ======================================================================================================
kernels         attention forward and backward: boolean and additive masks, causal, split, ``flex_attention``
flex            gradients of ``flex_attention`` beside the mask's, and how often it compiles for new lengths
tower           the vision tower on one and four images, by sdpa and FlashAttention 2
steps           TRL at its best beside the tree: attention, kept features, activation checkpointing; waits, busy share
sampling        prompts read once beside plain ``generate``
rounding        log-probs of the tree beside plain rows; rewards at step 0 with a cached reference
long            peak memory of four rows of 3,700 tokens without checkpointing, by attention
==============  ======================================================================================================

A part that fails, or whose time is over, is named, and the others go on. A table is printed, and ``DIR/gpu_check.json``
written. ``--small`` runs the same on a CPU with a tiny model in float32, which shows that the script works, and nothing
of a GPU.
"""

import argparse
import gc
import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers.utils.import_utils import is_flash_attn_2_available, is_kernels_available

import cwdpo.decoding
from cwdpo.batch import Batch
from cwdpo.bench.contestants import (
    SIZES,
    Contestant,
    ModelSize,
    Setting,
    Task,
    VisionSize,
    build_model,
    build_processor,
    cw_dpo,
    make_rows,
    trl_dpo,
)
from cwdpo.bench.counting import clock, peak_memory
from cwdpo.data.reading import read_rows
from cwdpo.engine.attention import FlexMask, SplitMask, additive_mask, flex_kernel
from cwdpo.engine.layout import PADDING, TreePlan, select_prompts
from cwdpo.engine.plain import PlainEngine
from cwdpo.engine.tree import TreeAttention, TreeEngine
from cwdpo.generation import LocalSampler, Sampling
from cwdpo.models.parts import bare_model, vision_tower

TOTAL = 480
"""Seconds for everything."""

_TINY = ModelSize(
    vision=VisionSize(depth=1, full_attention=(0,), width=32, mlp_width=64, heads=2),
    depth=2,
    width=64,
    mlp_width=128,
    heads=4,
    kv_heads=2,
    vocabulary=1000,
    lora_rank=2,
)


@dataclass(frozen=True)
class Reading:
    """One number."""

    part: str
    what: str
    quantity: str
    value: float


Found = tuple[str, str, float]
"""What was measured, which quantity of it, and its value."""


class NotHereError(Exception):
    """Something that a part needs is missing on this machine; the message says what."""


@dataclass
class Bench:
    """What is measured, and where."""

    small: bool
    directory: Path
    repeats: int = 3

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.small else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.small else torch.bfloat16

    @property
    def image(self) -> Setting:
        """Pairs with an image of 1,296 tokens."""
        return Setting(image_side=4, shortest=3, longest=5) if self.small else _setting(side=36, pairs=2)

    @property
    def size(self) -> ModelSize:
        return _TINY if self.small else SIZES["3b"]

    @cached_property
    def processor(self) -> Any:
        return build_processor(self.size.vision)

    @cached_property
    def model(self) -> Any:
        """In main memory; a contestant's copy goes where it runs."""
        dtype = str(self.dtype).removeprefix("torch.")
        return build_model(self.size, self.processor, device=self.device.type, dtype=dtype).to("cpu")

    def task(self, setting: Setting, *, checkpointing: bool = False) -> Task:
        return Task(
            model=self.model,
            processor=self.processor,
            rows=make_rows(setting, self.size.vision),
            lora_rank=self.size.lora_rank,
            checkpointing=checkpointing,
            directory=self.directory,
            on_gpu=not self.small,
        )

    def time(self, step: Callable[[], object], *, repeats: int | None = None) -> float:
        """Milliseconds: the median, after one that is not timed."""
        step()
        seconds = []
        for _ in range(repeats or self.repeats):
            began = clock(self.device)
            step()
            seconds.append(clock(self.device) - began)
        return 1000 * median(seconds)

    def peak(self, what: str, step: Callable[[], object]) -> Iterator[Found]:
        """Of a step, beyond what was held before it; not on a CPU, where it takes long to find out."""
        if self.device.type == "cuda":
            yield what, "peak MB", peak_memory(step, self.device) / 1e6


def _setting(*, side: int, pairs: int) -> Setting:
    return Setting(image_side=side, shortest=32, longest=64, pairs=pairs)


def kernels(bench: Bench) -> Iterator[Found]:
    """Milliseconds of attention alone, its gradients' largest difference to the additive mask's, and its memory."""
    heads, size = (2, 16) if bench.small else (16, 128)
    for length in (80,) if bench.small else (1466, 3380):
        prompt, answer = length - 2 * (length // 20), length // 20
        plan = _plan(2, prompt, (answer, answer), bench.device)
        index = torch.arange(length, device=bench.device)
        row = torch.arange(2, device=bench.device)[:, None, None, None]
        own = plan.logical[:, None, None, :] <= plan.logical[:, None, :, None]
        allowed = plan.allow(own, row, index[None, None, :, None], index[None, None, None, :])
        bias = additive_mask(allowed, bench.dtype)
        ways: dict[str, Any] = {
            "additive mask": bias,
            "additive mask, unaligned": bias.clone(memory_format=torch.contiguous_format),
            "boolean mask": allowed,
            "causal, no tree": None,
            "split": SplitMask(plan, groups=1, dtype=bench.dtype),
        }
        if not bench.small:  # there is no backward pass on a CPU
            ways["flex"] = FlexMask(allowed)
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(2, heads, length, size, generator=generator) for _ in range(3)]
        inputs = [each.to(bench.device, bench.dtype).requires_grad_() for each in tensors]
        expected: Tensor | None = None
        for name, mask in ways.items():
            what = f"{name}, L {length}"
            try:
                attend = partial(_attend, inputs, mask)

                def step(attend: Callable[[], Tensor] = attend, inputs: list[Tensor] = inputs) -> Tensor:
                    return torch.cat([each.flatten() for each in torch.autograd.grad(attend().square().sum(), inputs)])

                gradient = step().float()
                expected = gradient if expected is None else expected
                if mask is not None:
                    yield what, "gradient gap", ((gradient - expected).norm() / expected.norm()).item()
                yield what, "forward ms", bench.time(attend)
                yield what, "forward and backward ms", bench.time(step)
                yield from bench.peak(what, step)
            except (RuntimeError, TypeError, ValueError) as error:
                yield f"{what}: {_short(error)}", "failed", 1.0


def _attend(inputs: Sequence[Tensor], mask: Any) -> Tensor:
    query, key, value = inputs
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


def _plan(rows: int, prompt: int, answers: Sequence[int], device: torch.device) -> TreePlan:
    """Rows that are all alike."""
    branch = [0] * prompt + [i + 1 for i, answer in enumerate(answers) for _ in range(answer)]
    shift = [0] * prompt + [sum(answers[:i]) for i, answer in enumerate(answers) for _ in range(answer)]
    assert PADDING not in branch
    branches, shifts = (torch.tensor([each] * rows, device=device) for each in (branch, shift))
    return TreePlan(branch=branches, shift=shifts, lengths=((prompt, *answers),) * rows)


def flex(bench: Bench) -> Iterator[Found]:
    """Gradients of ``flex_attention`` at 4,224 tokens, and compilations for 12 lengths."""
    if bench.small:
        raise NotHereError("flex_attention has no backward pass on a CPU")
    for length in (4224, *range(1024, 1024 + 64 * 11, 64)):
        index = torch.arange(length, device=bench.device)
        allowed = (index[:, None] >= index)[None, None]
        q, k, v = (torch.randn(1, 16, length, 128, device=bench.device, dtype=bench.dtype) for _ in range(3))
        found = []
        for mask in (additive_mask(allowed, bench.dtype), FlexMask(allowed)):
            inputs = [each.clone().requires_grad_() for each in (q, k, v)]
            grads = torch.autograd.grad(_attend(inputs, mask).square().sum(), inputs)
            found.append(torch.cat([each.float().flatten() for each in grads]))
        if length == 4224:
            yield "L 4224", "gradient gap", ((found[1] - found[0]).norm() / found[0].norm()).item()
    counters: Any = torch._dynamo.utils.counters
    yield "12 lengths", "compilations", float(counters["stats"]["unique_graphs"])
    assert flex_kernel.cache_info().currsize == 1


def tower(bench: Bench) -> Iterator[Found]:
    """Milliseconds of the vision tower."""
    names = ["sdpa"] if bench.small or not is_flash_attn_2_available() else ["sdpa", "flash_attention_2"]
    model = bench.model.to(bench.device)
    module: Any = vision_tower(model)
    own = module.config._attn_implementation
    try:
        for images in (1, 4):
            task = bench.task(Setting(image_side=bench.image.image_side, shortest=3, longest=5, pairs=images))
            pictures = [row["images"][0] for row in task.rows]
            given = bench.processor.image_processor(images=pictures, return_tensors="pt").to(bench.device)
            pixels, grid = given["pixel_values"].to(bench.dtype), given["image_grid_thw"]
            for name in names:
                module.set_attn_implementation(name)
                with torch.no_grad():
                    run = partial(module, pixels, grid_thw=grid)
                    yield f"{images} image{'s' * (images > 1)}, {name}", "ms", bench.time(run)
    finally:
        module.set_attn_implementation(own)
        model.to("cpu")


def steps(bench: Bench) -> Iterator[Found]:
    """Forward and backward pass of a step: milliseconds, their ratio to TRL's, memory, waits, the GPU's busy share."""
    for checkpointing in (False, True):
        base: float | None = None
        for name, make in _sides(bench).items():
            what = f"{name}{', checkpointing' * checkpointing}"
            task = bench.task(bench.image, checkpointing=checkpointing)
            try:
                contestant = make(task)
                with contestant.at_work():
                    milliseconds = bench.time(contestant.step)
                    base = milliseconds if base is None else base
                    yield what, "ms", milliseconds
                    yield what, "ratio to the first", milliseconds / base
                    yield from bench.peak(what, contestant.step)
                    if not bench.small:
                        yield what, "waits", float(_waits(contestant.step))
                        yield what, "GPU busy share", _busy_share(contestant.step)
                del contestant
            except (RuntimeError, TypeError, ValueError, ImportError) as error:
                yield f"{what}: {_short(error)}", "failed", 1.0
            _clean(bench)


def _sides(bench: Bench) -> dict[str, Callable[[Task], Contestant]]:
    ours = partial(cw_dpo, engine="tree", reference="cached")
    best = [] if bench.small else [part for part, is_there in _BEST.items() if is_there()]
    return {
        "TRL" + "".join(f" + {part}" for part in best): lambda task: _trl_at_its_best(task, best),
        "tree, mask": partial(ours, attention="mask"),
        "tree, split": partial(ours, attention="split"),
        "tree, split, PEFT's layers": partial(ours, attention="split", peft_layers=True),
        "tree, split, features": partial(ours, attention="split", features=True),
    }


_BEST = {"FlashAttention 2": is_flash_attn_2_available, "layer kernels": is_kernels_available}
"""What TRL takes where it is installed."""


def _trl_at_its_best(task: Task, parts: Sequence[str]) -> Contestant:
    contestant = trl_dpo(task, compact_head=True)
    bare = bare_model(contestant.trainer.model)
    if "FlashAttention 2" in parts:
        bare.set_attn_implementation("flash_attention_2")
    if "layer kernels" in parts:
        bare.set_use_kernels(True)
    return contestant


def _waits(step: Callable[[], object]) -> int:
    """How often the CPU waits for the GPU in a step."""
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in met)


def _busy_share(step: Callable[[], object]) -> float:
    """Time that kernels run, of a step's time."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    kernel_seconds = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return float(kernel_seconds / seconds)


def sampling(bench: Bench) -> Iterator[Found]:
    """Seconds of sampled answers."""
    count, k, tokens = (2, 2, 4) if bench.small else (16, 4, 64)
    setting = Setting(image_side=bench.image.image_side, shortest=3, longest=5, pairs=count)
    lines = []
    for i, row in enumerate(bench.task(setting).rows):
        row["images"][0].save(bench.directory / f"{i}.png")
        lines.append(json.dumps({**row, "images": [f"{i}.png"]}) + "\n")
    path = bench.directory / "rows.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    rows = read_rows(path, image_root=None)
    model = bench.model.to(bench.device).eval()
    sampler = LocalSampler(model, bench.processor, Sampling(k=k, max_new_tokens=tokens, batch_size=count * k))
    try:
        draw = partial(sampler.sample, rows, seed=0)
        yield f"{count} prompts, k {k}, read once", "s", bench.time(draw, repeats=1) / 1000
        with mock.patch.object(cwdpo.decoding, "why_not_shared", return_value="asked for"):
            yield f"{count} prompts, k {k}, plain generate", "s", bench.time(draw, repeats=1) / 1000
    finally:
        model.to("cpu")


def rounding(bench: Bench) -> Iterator[Found]:
    """nats; and rewards at step 0 where the reference was computed a row at a time."""
    contestant = cw_dpo(bench.task(bench.image), engine="tree", reference="cached", attention="split")
    with contestant.at_work(), torch.no_grad():
        model, batch = contestant.trainer.model.eval(), contestant.batch
        plain = PlainEngine().logprobs(model, batch)
        for attention in ("mask", "split"):
            engine = TreeEngine(attention=attention)
            found = engine.logprobs(model, batch)
            gaps = (found.token - plain.token)[plain.mask].abs()
            yield f"tree, {attention}", "mean gap to plain rows, nats", gaps.mean().item()
            yield f"tree, {attention}", "largest gap to plain rows, nats", gaps.max().item()
            alone = torch.cat([engine.logprobs(model, _only(batch, i)).total for i in range(len(batch["prompts"]))])
            yield f"tree, {attention}", "largest reward at step 0", 0.1 * (found.total - alone).abs().max().item()


def _only(batch: Batch, prompt: int) -> Batch:
    part, _ = select_prompts(batch, [prompt])
    return part


def long(bench: Bench) -> Iterator[Found]:
    """Peak memory of a step on four long rows."""
    setting = Setting(image_side=6, shortest=3, longest=5, pairs=4) if bench.small else _setting(side=60, pairs=4)
    ways: tuple[TreeAttention, ...] = ("split", "mask")
    for attention in ways:
        contestant = cw_dpo(bench.task(setting), engine="tree", reference="cached", attention=attention, features=True)
        try:
            with contestant.at_work():
                contestant.step()
                yield from bench.peak(f"tree, {attention}", contestant.step)
        except torch.OutOfMemoryError:
            yield f"tree, {attention}: out of memory", "failed", 1.0
        del contestant
        _clean(bench)


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Found]], int]] = {
    "kernels": (kernels, 60),
    "steps": (steps, 170),
    "rounding": (rounding, 40),
    "sampling": (sampling, 60),
    "tower": (tower, 30),
    "long": (long, 40),
    "flex": (flex, 60),
}
"""What is measured, the most important first, and its seconds."""


@dataclass
class Result:
    """Everything that was measured, on what, and what could not be."""

    device: str
    versions: dict[str, str]
    small: bool
    readings: list[Reading] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """The parts that failed, were cut off or cannot run here, and why."""

    seconds: dict[str, float] = field(default_factory=dict)


def run(bench: Bench, *, parts: Sequence[str] = tuple(PARTS), total: float = TOTAL) -> Result:
    """Measure part after part, each within its time and what is left of the total."""
    device = "CPU" if bench.small else torch.cuda.get_device_name()
    result = Result(device, {"torch": torch.__version__, "transformers": transformers.__version__}, bench.small)
    ends = time.monotonic() + total
    for name in parts:
        measure, budget = PARTS[name]
        began = time.monotonic()
        left = min(budget, ends - began)
        try:
            if left <= 1:
                raise TimeoutError("no time was left")
            with _within(left):
                for found in measure(bench):
                    result.readings.append(Reading(name, *found))
        except NotHereError as error:
            result.missing[name] = str(error)
        except Exception as error:  # whatever it is, the other parts are worth having
            result.missing[name] = f"{type(error).__name__}: {_short(error)}"
        result.seconds[name] = round(time.monotonic() - began, 1)
        print(f"{name}: {result.seconds[name]} s{_reason(result, name)}", file=sys.stderr, flush=True)
        _clean(bench)
    return result


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """A ``TimeoutError`` inside when the seconds are over."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"its {seconds:.0f} s were over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reason(result: Result, name: str) -> str:
    return f", {result.missing[name]}" if name in result.missing else ""


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _clean(bench: Bench) -> None:
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def table(result: Result) -> str:
    """Markdown, a row for each thing measured."""
    rows: dict[tuple[str, str], list[str]] = {}
    for one in result.readings:
        number = "" if one.quantity == "failed" else f" {one.value:.4g}"
        rows.setdefault((one.part, one.what), []).append(f"{one.quantity}{number}")
    lines = [f"{result.device}, torch {result.versions['torch']}", "", "| part | what | measured |", "|---|---|---|"]
    lines += [f"| {part} | {what} | {'; '.join(cells)} |" for (part, what), cells in rows.items()]
    return "\n".join([*lines, *(f"| {part} | | not measured: {why} |" for part, why in result.missing.items())])


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="on a CPU, with a tiny model")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    asked = parser.parse_args(arguments)
    if not asked.small and not torch.cuda.is_available():
        parser.error("there is no GPU that torch sees; --small shows on a CPU that the script works")
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(asked.small, Path(directory), repeats=1 if asked.small else 3)
        result = run(bench, parts=asked.parts)
    (asked.out / "gpu_check.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main(sys.argv[1:])
