"""Whole runs beside TRL's script: everything from the first import to the saved model, in processes of their own.

The model is LLaVA's in small: 11 million random weights, 576 image tokens a picture of 336 pixels. Each row has a JPEG
of 640 x 480 pixels, a prompt of 24 words and two answers of 32 to 64 tokens. Adapters train on the language model.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cwdpo.bench.contestants import require_trl, word_tokenizer
from cwdpo.errors import UserError

TRL = "TRL's script"
DEFAULT = "cwdpo train, probes at their defaults"
UNWATCHED = "cwdpo train, `probes: null`"

_SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<unk>")
_WORDS = 900
_PIXELS, _PATCH = 336, 14

_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string %}{{ m['content'] }} {% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)

_SETTINGS: dict[str, Any] = {
    "beta": 0.1,
    "lora": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    },
    "trainer": {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
    },
}
"""What both train with; ``trainer`` are the Trainer's own settings."""


@dataclass(frozen=True, kw_only=True)
class WholeRunOptions:
    """What is measured."""

    rows: int = 40
    epochs: int = 1
    rounds: int = 1
    """Runs of each contestant, in turn."""

    threads: int = 1


@dataclass(kw_only=True)
class WholeRunResult:
    """CPU seconds of every run, by contestant, and what the runs of cwdpo say of themselves."""

    options: WholeRunOptions
    seconds: dict[str, list[float]] = field(default_factory=dict)
    summaries: dict[str, Any] = field(default_factory=dict)
    """``summary.json`` of the last run of each contestant of ours."""


def run_whole_runs(options: WholeRunOptions, *, say: Callable[[str], None]) -> WholeRunResult:
    """Write model and rows, and train on them with each contestant in turn; ``say`` gets a line before each run."""
    require_trl()
    result = WholeRunResult(options=options)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_model(directory / "model")
        write_rows(directory, options.rows)
        recipes: dict[str, dict[str, Any]] = {UNWATCHED: {"probes": None}, DEFAULT: {}}
        commands = {TRL: [str(Path(__file__).with_name("trl_script.py")), str(directory), str(options.epochs)]}
        for number, (name, changes) in enumerate(recipes.items()):
            path = directory / f"recipe{number}.yaml"
            path.write_text(yaml.safe_dump(_recipe(directory, options.epochs) | changes), encoding="utf-8")
            commands[name] = ["-m", "cwdpo", "train", str(path)]
        for number in range(options.rounds):
            for name, command in commands.items():
                say(f"round {number + 1} of {options.rounds}: {name}")
                for old in ("run", "trl"):
                    shutil.rmtree(directory / old, ignore_errors=True)
                result.seconds.setdefault(name, []).append(_cpu_seconds(command, directory, options.threads))
                if name != TRL:
                    summary = (directory / "run" / "summary.json").read_text(encoding="utf-8")
                    result.summaries[name] = json.loads(summary)
    return result


def whole_run_table(result: WholeRunResult) -> str:
    """Markdown: CPU seconds of each contestant (medians of the rounds), and their ratio to TRL's."""
    options = result.options
    epochs = f"{options.epochs} epoch{'' if options.epochs == 1 else 's'}"
    base = result.seconds[TRL]
    lines = [
        f"{options.rows} rows, {epochs}, one run after the other, {options.threads} threads, "
        f"{options.rounds} round{'' if options.rounds == 1 else 's'}",
        "",
        "| | CPU seconds | of TRL's |",
        "|---|--:|--:|",
    ]
    for name, seconds in result.seconds.items():
        ratio = median(own / other for own, other in zip(seconds, base, strict=True))
        lines.append(f"| {name} | {median(seconds):.1f} | {ratio:.2f} |")
    for name, summary in result.summaries.items():
        spent = {phase: float(seconds) for phase, seconds in summary["seconds"].items()}
        shares = ", ".join(f"{phase} {seconds / sum(spent.values()):.0%}" for phase, seconds in spent.items())
        lines += ["", f"{name}: {shares} of the time."]
    return "\n".join(lines)


def write_model(directory: Path) -> None:
    """A checkpoint of LLaVA's class, whose processor makes 576 tokens of each picture."""
    vocabulary = [*_SPECIAL, *(f"w{i}" for i in range(_WORDS)), "USER:", "ASSISTANT:", "SYSTEM:"]
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(vocabulary),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    sides: dict[str, Any] = {"size": {"shortest_edge": _PIXELS}, "crop_size": {"height": _PIXELS, "width": _PIXELS}}
    processor: Any = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**sides),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )
    size: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlavaConfig(
        text_config=LlamaConfig(
            **size,
            vocab_size=2000,
            intermediate_size=704,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_config=CLIPVisionConfig(**size, intermediate_size=1024, image_size=_PIXELS, patch_size=_PATCH),
        image_token_index=3,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def write_rows(directory: Path, count: int, *, seed: int = 0) -> None:
    """``train.jsonl`` with its pictures, and the settings that both sides train with."""
    words, noise = random.Random(seed), np.random.default_rng(seed)

    def text(length: int) -> str:
        return " ".join(f"w{words.randrange(_WORDS)}" for _ in range(length))

    lines = []
    for i in range(count):
        coarse = Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(directory / f"{i}.jpg", quality=90)
        answers = {
            name: [{"role": "assistant", "content": text(words.randint(31, 63))}] for name in ("chosen", "rejected")
        }
        prompt = [{"role": "user", "content": text(24)}]
        lines.append(json.dumps({"images": [f"{i}.jpg"], "prompt": prompt, **answers}) + "\n")
    (directory / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    (directory / "settings.json").write_text(json.dumps(_SETTINGS), encoding="utf-8")


def _recipe(directory: Path, epochs: int) -> dict[str, Any]:
    lora = _SETTINGS["lora"]
    trainer = {name: value for name, value in _SETTINGS["trainer"].items() if name != "seed"}
    return {
        "model": {
            "name_or_path": str(directory / "model"),
            "dtype": "float32",
            "lora": {"r": lora["r"], "alpha": lora["lora_alpha"], "dropout": 0.0, "target_modules": "language"},
        },
        "data": {"train": str(directory / "train.jsonl")},
        "stage2": {"beta": _SETTINGS["beta"], "cooling": {"floor": "mean", "temperature": 0.5}},
        "trainer": {**trainer, "num_train_epochs": epochs},
        "seed": _SETTINGS["trainer"]["seed"],
        "output_dir": str(directory / "run"),
    }


def _cpu_seconds(command: Sequence[str], directory: Path, threads: int) -> float:
    """Of a Python process and its children, from start to end; a ``UserError`` if it fails."""
    environment: Mapping[str, str] = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"`python {' '.join(command)}` failed: {done.stderr.strip()[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
