"""Write the table of memory into docs/gpus.md: python docs/make_memory.py"""

from pathlib import Path

from cwdpo.recipes.memory import ModelFacts, StepPlan, step_memory

PAGE = Path(__file__).parent / "gpus.md"
MARK = "<!-- docs/make_memory.py -->\n"
TOKENS = 1024
SIZES = {  # billions of weights, hidden size, layers, vocabulary: of Qwen2.5-VL's configurations
    "3B": (3.75, 2048, 36, 151_936),
    "7B": (8.29, 3584, 28, 152_064),
    "32B": (33.5, 5120, 64, 152_064),
    "72B": (73.4, 8192, 80, 152_064),
}
PLANS = {
    "all weights": StepPlan(lora=False),
    "LoRA": StepPlan(),
    "QLoRA, 4 bits": StepPlan(bits=4),
}


def table() -> str:
    """A row a model, a column a way to train it."""
    lines = ["| model | " + " | ".join(PLANS) + " |", "|---|" + "---|" * len(PLANS)]
    for name, size in SIZES.items():
        found = (step_memory(facts(*size), plan, TOKENS)["total"] / 1e9 for plan in PLANS.values())
        lines.append(f"| {name} | " + " | ".join(f"{number:.0f}" for number in found) + " |")
    return "\n".join(lines) + "\n"


def facts(billions: float, hidden: int, layers: int, vocabulary: int) -> ModelFacts:
    """A model of this size, of which adapters are a hundredth."""
    weights = int(billions * 1e9)
    return {
        "name_or_path": "",
        "class": "",
        "dtype": "bfloat16",
        "max_length": None,
        "parts": {"all": {"total": weights, "trainable": weights}},
        "lora": {"r": 16, "targets": [], "weights": weights // 100},
        "shape": {"hidden_size": hidden, "num_layers": layers, "vocabulary_size": vocabulary},
    }


def with_table(text: str) -> str:
    """The page's text with the table between its marks."""
    before, _, after = text.split(MARK)
    return f"{before}{MARK}{table()}{MARK}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
