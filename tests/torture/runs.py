"""Four kinds of run, and whether one that was broken off and resumed equals one that was not."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from support import disc_data

from cwdpo.config.recipe_file import read_recipe
from cwdpo.generation import LocalSampler
from cwdpo.recipes import run_recipe
from cwdpo.records import LITTER, RunDirectory, read_jsonl
from torture.children import Moment, counting, fork, full_from, join, killed_at, last_line, log_of

_TRAINER = {
    "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "per_device_train_batch_size": 4,
    "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True, "report_to": "none",
}  # fmt: skip
_SHARED: dict[str, Any] = {"seed": 3, "probes": None, "features": None, "trainer": _TRAINER}

KINDS: Mapping[str, dict[str, Any]] = {
    "two stages": {"stage1": {}, "stage2": {}, "data": {"stage1_fraction": 0.5}},
    "negatives from the policy": {
        "model": {"lora": {"r": 2}},
        "stage2": {},
        "negatives": {"refresh": 1, "max_new_tokens": 4, "on_policy_fraction": 0.8},
    },
    "probes that keep the best": {
        "model": {"lora": {"r": 2}, "freeze_vision": True},
        "stage1": {"objective": "plain"},
        "probes": {"rows": 2, "every": 1, "groups": ["chosen", "rejected"], "keep_best": True},
        "features": {"memory_mb": 1, "disk_mb": 1},
    },
    "accumulation and running means": {
        "stage2": {"loss": {"sigmoid": 0.5, "bco": 0.5}, "reference": "live"},
        "trainer": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "length_buckets": True},
    },
}
"""What a kind has beyond the shared settings."""

_OF_TIME = ("seconds", "end_seconds", "time", "cpu_seconds")


@dataclass
class Kind:
    """One kind of run in a folder of its own, with what an uninterrupted one leaves."""

    name: str
    folder: Path
    recipe: Path = field(init=False)
    whole: dict[str, Any] = field(init=False)
    changes: int = field(init=False)
    """How many files an uninterrupted run makes, renames and removes."""
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        began = time.monotonic()
        code = join(self.start("whole", moment=counting(self.folder / "changes")))
        self.seconds = time.monotonic() - began
        assert code == 0, log_of(self.folder / "whole").read_text()
        self.changes = int((self.folder / "changes").read_text())
        self.whole = snapshot(self.folder / "whole")

    @classmethod
    def make(cls, name: str, folder: Path, model: Path) -> "Kind":
        """Write rows and a recipe, and run it once."""
        data = disc_data.write(folder, disc_data.records(8))
        settings: dict[str, Any] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in _SHARED.items()
        }
        for section, values in KINDS[name].items():
            known = settings.get(section)
            settings[section] = {**known, **values} if isinstance(known, dict) else values
        settings["model"] = {"name_or_path": str(model), **settings.get("model", {})}
        settings["data"] = {"train": str(data), **settings.get("data", {})}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return cls(name, folder)

    def start(self, run: str, *, resume: bool = False, moment: Moment = lambda number: None) -> int:
        """Start the run, or go on with it, in a process of its own."""
        recipe = read_recipe(self.folder / "recipe.yaml", {"output_dir": str(self.folder / run)})
        return fork(lambda: _run(recipe, resume=resume), watched=self.folder / run, moment=moment)

    def resumed_is_whole(self, run: str) -> str:
        """Go on with a run that was broken off: what is wrong with what it leaves; empty where it equals ``whole``."""
        try:
            code = join(self.start(run, resume=True))
        except TimeoutError as hanging:
            return f"{self.name}: --resume: {hanging}:\n{log_of(self.folder / run).read_text(errors='replace')}"
        if code != 0:
            return f"{self.name}: --resume ended with {code}: {last_line(self.folder / run)}"
        return difference(self.whole, snapshot(self.folder / run), self.name)

    def survives_kill_at(self, number: int, run: str) -> str:
        """The same after a kill before a change of a file."""
        code = join(self.start(run, moment=killed_at(number)))
        if code not in (0, -signal.SIGKILL):
            return f"{self.name}: the run ended with {code}: {last_line(self.folder / run)}"
        return self.resumed_is_whole(run)

    def survives_kill_after(self, seconds: float, run: str) -> str:
        """The same after a kill at a moment in time."""
        pid = self.start(run)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        join(pid)
        return self.resumed_is_whole(run)

    def survives_full_disk(self, number: int, run: str) -> str:
        """From a change on the disk is full: one line and exit code 2; with room again, the run equals a whole one."""
        code = join(self.start(run, moment=full_from(number)))
        said = last_line(self.folder / run)
        if code not in (0, 2) or (code == 2 and "space" not in said):
            return f"{self.name}: on a full disk the run ended with {code}: {said}"
        return self.resumed_is_whole(run)

    def refuses_second_start(self, run: str) -> str:
        """Two at once, then one that resumes beside a live one: one writes, the other says so; then a kill frees it."""
        both = [self.start(run) for _ in range(2)]
        codes = sorted(join(pid) for pid in both)
        if codes != [0, 2]:
            return f"{self.name}: two starts ended with {codes}"
        wrong = difference(self.whole, snapshot(self.folder / run), self.name)
        live = self.start(f"{run}-live")
        while not RunDirectory(self.folder / f"{run}-live").has_begun:
            time.sleep(0.01)
        os.kill(live, signal.SIGSTOP)
        beside = join(self.start(f"{run}-live", resume=True))
        said = last_line(self.folder / f"{run}-live")
        os.kill(live, signal.SIGKILL)
        join(live)
        if beside != 2 or "another process is writing" not in said:
            return f"{self.name}: --resume beside a live run ended with {beside}: {said}"
        return wrong or self.resumed_is_whole(f"{run}-live")


def _run(recipe: Any, *, resume: bool) -> None:
    sample = LocalSampler.sample

    def ended(self: LocalSampler, rows: Any, *, seed: int) -> Any:  # a random model never ends its answers
        return [[answer._replace(ended=True) for answer in of_row] for of_row in sample(self, rows, seed=seed)]

    LocalSampler.sample = ended  # type: ignore[method-assign]  # in the child alone
    run_recipe(recipe, resume=resume)


def snapshot(root: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on interruptions: weights, records, settings; and no litter."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*.safetensors")):
        if "checkpoints" not in path.parts and "features" not in path.parts:
            found[str(path.relative_to(root))] = {
                name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()
            }
    for path in [*root.glob("*.jsonl"), *(root / "negatives").glob("*.jsonl")]:
        found[str(path.relative_to(root))] = [_timeless(line) for line in read_jsonl(path).objects]
    found["recipe.yaml"] = {
        k: v for k, v in yaml.safe_load((root / "recipe.yaml").read_text()).items() if k != "output_dir"
    }
    found["findings.json"] = json.loads((root / "findings.json").read_text())
    found["litter"] = [path.name for path in root.rglob("*") if LITTER.fullmatch(path.name)]
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            if key not in _OF_TIME and not key.endswith(("_runtime", "_per_second"))
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def difference(whole: Mapping[str, Any], found: Mapping[str, Any], name: str) -> str:
    """The first part that differs, in words."""
    for key in sorted({*whole, *found}):
        if whole.get(key) != found.get(key):
            return f"{name}: {key} is not what an uninterrupted run leaves"
    return ""


def moments(kind: Kind, count: int, rng: random.Random) -> list[int]:
    """So many changes of files, spread over the run; all of them where there are no more."""
    every = range(1, kind.changes + 1)
    return sorted(rng.sample(every, count)) if count < len(every) else list(every)


def survive(tries: list[Callable[[], str]]) -> list[str]:
    """What went wrong in some tries."""
    return [problem for problem in (each() for each in tries) if problem]
