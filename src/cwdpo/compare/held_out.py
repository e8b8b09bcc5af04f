"""How a model is measured where a grid names no function of its own: as ``cwdpo evaluate`` does."""

from pathlib import Path

from cwdpo.compare.grid import Outcome
from cwdpo.evaluation.run import Settings, evaluate_model


def measure(model: Path, *, start: Path, eval_rows: Path, seed: int) -> Outcome:
    """Every number of an evaluation beside the start model; docs/evaluation.md says what each is."""
    found = evaluate_model(Settings(model=str(model), data=eval_rows, against=str(start), seed=seed))
    values = {result["name"]: result["value"] for result in found["measures"]}
    return Outcome({}, {name: value for name, value in values.items() if value is not None})
