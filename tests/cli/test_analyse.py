"""``cwdpo analyse`` from the command line to its files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from support import disc_data

from cwdpo.analysis.run import vulnerable_region
from cwdpo.cli import app
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "analyse", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "120")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return disc_data.write(tmp_path / "data", disc_data.records(6))


@pytest.mark.slow
def test_files_and_correlation(run: Run, data: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run(
        tiny("qwen2_5_vl"), "--data", data, "--pairs", 9, "--eta", 1e-3, "--eta", 1e-2, "--directions", 4, "--out", out
    )
    assert code == 0
    found = json.loads((out / "analysis.json").read_text())
    assert found["by_eta"][0]["n"] == 3 * 3 * 3  # rows trained on, observed, answers of each
    assert found["by_eta"][0]["correlation"] > 0.99
    assert found["check"]["worst_relative_error"] < 1e-5
    assert f"correlation {found['by_eta'][0]['correlation']:.4f}" in printed
    assert "The 20 largest of 27" in printed
    same = [i for i in found["influences"] if i["eta"] == 1e-3 and i["trained"] == i["observed"]]
    chosen = [i["measured_top"] for i in same if i["role"] == "chosen"]
    assert found["by_eta"][0]["means"]["same_row"]["chosen"]["argmax"] == pytest.approx(sum(chosen) / 3)
    assert found["rows"] == ["0", "2", "4"]  # spread over the six
    names = {"predicted_measured.svg", "learning_rate.svg", "loser_push.svg", "squeezing.svg", "analysis.json"}
    assert {path.name for path in out.iterdir()} == names
    for path in out.glob("*.svg"):
        ElementTree.fromstring(path.read_text())


@pytest.mark.slow
def test_adapters_reference_and_sft_without_negatives(
    run: Run, data: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        del row["rejected"], row["gentle"]
    only_chosen = data.with_name("chosen.jsonl")
    only_chosen.write_text("".join(json.dumps(row) + "\n" for row in rows))
    llava = tiny("llava")
    code, out, _ = run(llava, "--data", only_chosen, "--loss", "sft", "--pairs", 4, "--directions", 0, "--lora", 2)
    assert code == 0
    assert "correlation 0.99" in out or "correlation 1.0000" in out
    code, _, err = run(llava, "--data", only_chosen, "--loss", "dpo", "--pairs", 1)
    assert code == 2
    assert "no `rejected`" in err
    code, out, _ = run(llava, "--data", data, "--loss", "dpo", "--pairs", 1, "--directions", 0, "--reference", llava)
    assert code == 0


@pytest.mark.slow
def test_saved_adapters_train_alone(run: Run, data: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = add_lora(load_policy(tiny("llava"), dtype="float32"), r=2, alpha=4)
    adapted.save_pretrained(str(tmp_path / "adapters"))
    expected = sum(value.numel() for name, value in adapted.named_parameters() if "lora_" in name)
    words = ("--data", data, "--pairs", 1, "--directions", 0)
    code, _, _ = run(tmp_path / "adapters", *words, "--out", tmp_path / "out")
    assert code == 0
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["num_parameters"] == expected
    code, _, err = run(tmp_path / "adapters", *words, "--lora", 2)
    assert code == 2
    assert "has adapters already" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eta", "-1"], "--eta is -1.0"),
        (["--directions", "1"], "--directions 1"),
        (["--floor", "low"], "--floor is 'low'. Write chosen, gentle"),
        (["--out", "."], "nothing is overwritten"),
    ],
)
def test_bad_settings_exit_2(run: Run, data: Path, tiny: Callable[[str], Path], words: list[str], message: str) -> None:
    code, out, err = run(tiny("llava"), "--data", data, "--pairs", 1, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_the_vulnerable_region_by_hand() -> None:
    """First step, beta = 0.1: DPO pushes with 2 (0.05 (1 - p))^2 whatever lbar; cooling takes w_c^2 of it."""
    drawn = vulnerable_region(-2.0, 0.3, 0.1, 10)
    hot, cooled = (dict(curve.points) for curve in drawn.curves[:2])
    lbar = min(hot, key=lambda x: abs(x + 3))
    weight = torch.sigmoid(torch.tensor((lbar + 2) / 0.3)).item()
    assert hot[lbar] == pytest.approx(0.005 * (1 - 2.718281828**lbar) ** 2)
    assert cooled[lbar] == pytest.approx(hot[lbar] * weight**2, rel=1e-4)
