"""A model that is not made of numbers is no result, through ``cwdpo train``."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import disc_data

from cwdpo.cli import app
from cwdpo.config import checking
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.models.saving import save_checkpoint

pytestmark = pytest.mark.slow

Tiny = Callable[[str], Path]
Train = Callable[..., tuple[int, str]]
RECIPE = """\
model: {{name_or_path: {model}}}
data: {{train: {data}}}
stage1: {{objective: plain}}
probes: null
output_dir: {out}
trainer: {{max_steps: 4, save_strategy: steps, save_steps: 1, save_total_limit: 9, logging_steps: 1, use_cpu: true}}
"""


@pytest.fixture
def train(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """``cwdpo train`` on a tiny llava, at any learning rate; gives exit code and standard error."""
    monkeypatch.setattr(checking, "_MUST_BE", {})
    recipe = tmp_path / "recipe.yaml"
    data = disc_data.write(tmp_path, disc_data.records(8))
    recipe.write_text(RECIPE.format(model=tiny("llava"), data=data, out=tmp_path / "run"))

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", list(map(str, ["cwdpo", "train", recipe, *words])))
        with pytest.raises(SystemExit) as left:
            app.main()
        return int(left.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize("lora", ["null", "{r: 2}"])
def test_a_run_stops_before_a_ruined_model_is_saved(lora: str, train: Train, tmp_path: Path) -> None:
    code, err = train("--trainer.learning_rate", "1e30", "--lora", lora)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("step 2: the loss is not a finite number. Its rows: ")
    assert "Training stopped before the update, and nothing was saved over." in last
    checkpoints = tmp_path / "run" / "checkpoints" / "stage1"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-1"]
    assert not (tmp_path / "run" / "stage1").exists()
    code, err = train("--trainer.learning_rate", "1e30", "--lora", lora, "--resume")
    assert code == 2
    assert "the model's logits are not numbers (NaN)" in err  # a resumed run looks at a batch first


def test_a_stage_that_its_last_step_ruined_is_not_saved(train: Train, tmp_path: Path) -> None:
    code, err = train("--trainer.learning_rate", "1e39", "--trainer.save_strategy", "'no'", "--trainer.max_steps", 1)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("stage1 has ruined the model, which is not saved: ")
    assert "The log shows no loss that is not finite, so it happened after its last line." in last
    assert "There is no good checkpoint of this stage." in last
    assert "a lower learning rate (--stage1.trainer.learning_rate, which was 1e+39)" in last
    assert not (tmp_path / "run" / "stage1").exists()


@pytest.mark.parametrize("probes", ["null", "{rows: 2}"])  # the probes' own answers are sampled before any is scored
def test_a_model_without_numbers_is_named_as_such(probes: str, tiny: Tiny, train: Train, tmp_path: Path) -> None:
    model = load_policy(tiny("llava"))
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    broken = save_checkpoint(model, load_processor(tiny("llava")), tmp_path / "broken")
    code, err = train("--model.name_or_path", broken, "--probes", probes)
    assert code == 2
    assert "the model's logits are not numbers (NaN): its weights are broken. Take another checkpoint." in err
