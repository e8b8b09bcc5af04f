"""Run directories written by hand: curves of known shape, and scenes drawn with Pillow."""

import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def stage1(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "stage": "stage1",
            "step": step,
            "loss": 2 * math.exp(-step / 40) + 0.4 + rng.gauss(0, 0.05),
            "grad_norm": 1 + rng.expovariate(2),
            "entropy": 1.2 * math.exp(-step / 60) + 0.3 + rng.gauss(0, 0.02),
            "num_tokens": 640 * step,
        }
        for step in range(1, steps + 1)
    ]


def stage2(steps: int, rng: random.Random, *, cooled: bool) -> list[dict[str, Any]]:
    """A cooled run keeps its chosen answers at -0.5 nats per token; the other loses one nat a hundred steps."""
    records = []
    for step in range(1, steps + 1):
        fall = 0.0 if cooled else (step - 1) / 100
        margin = (step - 1) / (80 if cooled else 20)
        record = {
            "stage": "stage2",
            "step": step,
            "loss": math.log1p(math.exp(-margin)) + rng.gauss(0, 0.02),
            "rewards/chosen": -fall + min(step / 40, 1) * rng.gauss(0, 0.02),
            "rewards/rejected": -fall - margin + min(step / 40, 1) * rng.gauss(0, 0.05),
            "rewards/margins": margin + rng.gauss(0, 0.08),
            "rewards/accuracies": min(1.0, 0.5 + margin / 4),
            "logps_mean/chosen": -0.5 - fall + rng.gauss(0, 0.03),
            "logps_mean/rejected": -2 - margin + rng.gauss(0, 0.1),
            "grad_norm": (1.5 if cooled else 4) + rng.expovariate(1),
            "entropy": 0.3 + 0.1 * fall + rng.gauss(0, 0.01),
        }
        if cooled:
            mean = 0.35 - 0.1 * step / steps + rng.gauss(0, 0.02)
            record |= {"cooling/mean": mean, "cooling/p10": 0.02, "cooling/p90": 0.9 + rng.gauss(0, 0.02)}
            easy = 20 + 30 * step // steps
            record["cooling/histogram"] = [easy, 9, 5, 4, 3, 3, 3, 4, 8, 60 - easy]
        records.append(record)
    return records


def probes(steps: int, *, cooled: bool) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 20):
        fall = step / steps * (0.005 if cooled else 1.5)
        for group, factor in (("chosen", 1.0), ("rejected", 3.0), ("gentle", 1.6), ("shuffled", 5.0)):
            mean = -0.5 - factor * fall
            reading = {"stage": "stage2", "step": step, "group": group, "n": 64, "mean_logprob": mean}
            reading |= {"delta": -factor * fall, "p10": mean - 0.4 - fall, "p50": mean + 0.05, "p90": mean + 0.3}
            if group == "chosen":
                reading |= {"entropy": 0.3 - 0.05 * fall, "top1": 0.9 - 0.1 * fall, "argmax_mass": 0.8 + 0.1 * fall}
                reading |= {"ece": 0.02 + 0.05 * fall, "tv": 0.08 * fall, "js": 0.02 * fall}
                reading |= {"moved_to_argmax": 0.3 if cooled else 0.8, "reliability": reliability(fall)}
            records.append(reading)
    return records


def reliability(fall: float) -> list[list[float]]:
    """15 bins, the two lowest of them empty; the more ``fall``, the surer than right."""
    middles = [(i + 0.5) / 15 for i in range(15)]
    return [[8 * i * i, m, m - 0.1 * min(fall, 1) * m] if i > 1 else [0, 0.0, 0.0] for i, m in enumerate(middles)]


def example(row: str, picture: str, colour: str, ends: dict[str, float]) -> dict[str, Any]:
    """A line of examples.jsonl whose chosen, gentle and rejected answers end at these log-probs a token."""
    answers = []
    for group, word in (("chosen", colour), ("gentle", "purple"), ("rejected", "nothing"), ("greedy", colour)):
        tokens = ["a", " large", f" {word}", " disc", "<end>"]
        end = [ends.get(group, -0.2) + shift for shift in (0.15, -0.05, -0.1, 0.0, 0.0)]
        start = [value + 0.3 if group == "rejected" else value - 0.2 for value in end]
        answers.append({"group": group, "text": f"a large {word} disc", "tokens": tokens, "start": start, "end": end})
    said = {"group": "greedy_end", "text": "a small disc", "tokens": ["a", " small", " disc", "<end>"]}
    answers.append({**said, "end": [-0.01, -0.8, -2.5, -6.0]})
    pictures = [picture] if picture else []
    return {"row": row, "pictures": pictures, "prompt": "Describe the picture.", "answers": answers}


def write_examples(run: Path) -> None:
    """Three rows of stage 2: the chosen log-probs fall from row to row, the margins do not; one has no picture."""
    folder = run / "probes/stage2"
    draw_scene(folder / "pictures/00.png", "red")
    draw_scene(folder / "pictures/01.png", "blue")
    rows = [
        example("red", "pictures/00.png", "red", {"chosen": -0.3, "gentle": -0.5, "rejected": -4.0}),
        example("blue", "pictures/01.png", "blue", {"chosen": -0.9, "gentle": -3.0, "rejected": -4.0}),
        example("text", "", "green", {"chosen": -1.5, "gentle": -1.4, "rejected": -7.0}),
    ]
    write_lines(folder / "examples.jsonl", rows)


def draw_scene(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).ellipse((4, 4, 14, 14), fill=colour)
    picture.save(path)


def comparison() -> dict[str, Any]:
    columns = [
        {"key": "exact", "label": "Exact captions", "better": "up", "format": ".3f"},
        {"key": "halluc", "label": "Hallucination rate", "better": "down", "format": ".1%"},
        {"key": "delta_w", "label": "Chosen delta", "better": None, "format": "+.2f"},
        {"key": "ece", "label": "ECE", "better": "down", "format": ".3f"},
        {"key": "steps", "label": "Steps", "better": None, "format": "d"},
    ]
    rows = [
        {"name": "SFT", "exact": 0.583, "halluc": 0.112, "delta_w": 0.11, "ece": 0.017, "steps": 240},
        {"name": "DPO", "exact": 0.421, "halluc": 0.199, "delta_w": -1.62, "ece": 0.044, "steps": 240},
        {"name": "CW-DPO", "exact": 0.604, "halluc": 0.094, "delta_w": -0.08, "ece": 0.017, "steps": 240},
    ]
    return {"columns": columns, "rows": rows}


def write_demo(root: Path, *, steps: int = 120) -> Path:
    """A directory with one run a method (``sft``, ``dpo``, ``cw_dpo``), a table and four pictures."""
    rng = random.Random(0)
    first = stage1(steps, rng)
    write_lines(root / "sft/metrics.jsonl", first)
    for name, cooled in (("dpo", False), ("cw_dpo", True)):
        write_lines(root / name / "metrics.jsonl", [*first, *stage2(steps, rng, cooled=cooled)])
        write_lines(root / name / "probes.jsonl", probes(steps, cooled=cooled))
        write_examples(root / name)
        (root / name / "recipe.yaml").write_text(f"stage2:\n  cooling: {'{floor: -1.9}' if cooled else 'null'}\n")
    gallery = []
    for colour in ("red", "blue", "green", "orange"):
        draw_scene(root / f"pictures/{colour}.png", colour)
        right = f"at the top left there is a large {colour} disc"
        wrong = "at the top left there is a large purple disc"
        answers = [("SFT", right, True), ("DPO", wrong, False), ("CW-DPO", right, True)]
        gallery.append(
            {
                "image": f"pictures/{colour}.png",
                "prompt": "Describe the picture.",
                "chosen": right,
                "answers": [{"name": name, "text": text, "right": ok} for name, text, ok in answers],
            }
        )
    summary = {
        "title": "Drawn scenes: SFT, DPO and CW-DPO",
        "seed": 0,
        "hardware": "2 CPU cores",
        "cwdpo_version": "0.1.0",
        "wall_seconds": 402.5,
        "stages": {"stage1": {"steps": steps, "seconds": 130.5}, "stage2": {"steps": steps, "seconds": 210.0}},
        "table": comparison(),
        "gallery": gallery,
    }
    (root / "summary.json").write_text(json.dumps(summary))
    return root


def measure(name: str, group: str, value: float, **more: Any) -> dict[str, Any]:
    """A number as ``evaluation.json`` has it."""
    found = {
        "name": name,
        "group": group,
        "label": f"the {name}",
        "better": "up",
        "value": value,
        "low": 0.25,
        "high": 0.75,
    }
    return found | {"base": None, "difference": None, "verdict": None} | more


EVALUATION = {
    "against": "/home/someone/base",
    "question": {"data": "held_out.jsonl"},
    "rows": 40,
    "words": "Better beyond chance: the match.",
    "measures": [
        measure(
            "match",
            "answers",
            0.5,
            base={"value": 0.4},
            difference={"value": 0.1, "low": 0.05, "high": 0.15},
            verdict="better",
        ),
        measure("tv", "drift", 1e-4, better=None),
    ],
    "reliability": {"base": [[75, 0.5, 0.5], [25, 1.0, 0.0]], "model": [[0, 0, 0], [100, 0.75, 0.25]]},
    "skipped": {"yes_or no": "no row's chosen answer is yes or no"},
}
