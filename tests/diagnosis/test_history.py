"""What must not matter: step numbers, broken lines, other trainers' keys, the mixture of lines, length."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from diagnosis.histories import flat, line, metrics, probe, supervised
from diagnosis.test_signs import DPO, run
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.diagnosis import diagnose, examine, read_recording
from cwdpo.errors import DataError

RUNS = [run(**DPO), metrics(), supervised() + run(**DPO), run(rewards__rejected=line(0, 0.4), loss=flat(0.9))]

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    ["stage", "step", "group", "loss", "grad_norm", "entropy", "rewards/chosen", "rewards/rejected", "rewards/margins",
     "rewards/accuracies", "logps/chosen", "logps/rejected", "logps_mean/chosen", "logps_mean/rejected",
     "cooling/mean", "cooling/p90", "delta", "mean_logprob", "ece", "tv", "eval_rewards/chosen"]
)  # fmt: skip
strange_lines = st.lists(st.dictionaries(keys, json_values | st.floats(-100, 100), max_size=8), max_size=30)


def names(readings: Any) -> list[str]:
    return [finding.name for finding in diagnose(readings, beta=0.1)]


@pytest.mark.parametrize("readings", RUNS)
@pytest.mark.parametrize("factor", [3, 1000])
def test_the_scale_of_steps_does_not_matter(readings: list[dict[str, Any]], factor: int) -> None:
    assert names([{**item, "step": item["step"] * factor} for item in readings]) == names(readings)


@settings(deadline=None, max_examples=40)
@given(strange=st.lists(json_values, max_size=6), places=st.lists(st.integers(0, 39), min_size=6, max_size=6))
def test_strange_items_change_nothing_and_are_counted(strange: list[Any], places: list[int]) -> None:
    readings: list[Any] = list(RUNS[0])
    for item, place in zip(strange, places, strict=False):
        readings.insert(place, item)
    spoiled = examine(readings, beta=0.1)
    assert [finding.name for finding in spoiled.findings] == names(RUNS[0])
    left_out = [note for note in spoiled.notes if "left out" in note]
    assert left_out == (
        [f"{len(strange)} of the readings hold nothing that diagnosis knows, and were left out."] if strange else []
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(strange_lines)
def test_no_line_crashes_it(readings: list[dict[str, Any]]) -> None:
    said = examine(readings)
    json.dumps(said.to_json(), allow_nan=False)


def test_nothing_says_nothing() -> None:
    nothing = examine([])
    assert (nothing.findings, nothing.clear, nothing.not_judged, nothing.looked_at) == ([], [], [], [])


def test_a_step_told_twice_keeps_its_last_value() -> None:
    wrong = [{**item, "rewards/chosen": -9.0} for item in metrics()]
    assert names(wrong + metrics()) == []
    assert names(metrics() + wrong) != []


def test_trl_state(tmp_path: Path) -> None:
    history = [
        {key: value for key, value in item.items() if key != "stage" and "logps_mean" not in key} for item in RUNS[0]
    ]
    history.insert(20, {"eval_loss": 0.6, "eval_runtime": 3.0, "step": 95})
    history.append({"train_runtime": 10.0, "train_loss": 0.5, "total_flos": 1.0, "step": 195})
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"global_step": 195, "log_history": history}))
    for place in (path, tmp_path):
        recording = read_recording(place)
        said = examine(recording.readings)
        assert [finding.name for finding in said.findings][:2] == ["squeezing", "likelihood_displacement"]
        assert "nats per answer" in said.findings[0].evidence
        assert said.findings[0].evidence.startswith(f"step {said.findings[0].step}: ")
        assert "At step 195 they are" in said.findings[0].evidence
        assert said.notes == ["beta is not given, and was taken to be 0.1; rewards are divided by it."]


def test_lines_with_logps_alone() -> None:
    only = [
        {"logps/chosen": item["logps/chosen"] - 0.4 * i, "logps/rejected": item["logps/rejected"]}
        for i, item in enumerate(RUNS[0])
    ]
    assert "likelihood_displacement" in names(only)
    assert (
        names([{key: value for key, value in item.items() if key in ("step", "logps/chosen")} for item in RUNS[0]])
        == []
    )


def test_evaluation_rows_are_looked_at() -> None:
    fell = [
        {"stage": "stage2", "step": 40 * i, "eval_rewards/chosen": -0.2 * i, "eval_rewards/rejected": -0.5 * i}
        for i in range(5)
    ]
    assert "in held-out rows" in diagnose(metrics() + fell, beta=0.1)[0].evidence


def test_beta_sets_the_scale() -> None:
    little = run(**{**DPO, "rewards__chosen": line(0, -0.3), "rewards__rejected": line(0, -2.5)})
    found = diagnose(little, beta=1.0)
    assert "squeezing" not in [finding.name for finding in found]


def test_run_directory_with_half_a_line(tmp_path: Path) -> None:
    lines = [json.dumps(item) for item in RUNS[0]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "stage2", "ste')
    (tmp_path / "probes.jsonl").write_text(
        "\n".join(map(json.dumps, probe("chosen", "delta", flat(0)))) + "\nnot json\n"
    )
    (tmp_path / "recipe.yaml").write_text("stage2: {beta: 0.25}\n")
    recording = read_recording(tmp_path)
    assert recording.beta == 0.25
    assert len(recording.readings) == len(lines) + 6
    assert [note.split(":")[0] for note in recording.notes] == ["metrics.jsonl", "probes.jsonl"]
    assert "1 line could not be read" in recording.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "absent: no such file or directory"),
        ("a.jsonl", "", "holds no reading yet"),
        ("a.jsonl", "half\n", "a.jsonl:1: not a JSON object, nor is another line. Write a run's directory"),
        ("a.csv", "step,loss\n0,1\n", "a.csv: a .csv file is not read here. Write a run's directory"),
        ("a.json", "{", "is not readable JSON"),
        ("a.json", '{"epoch": 1}', "no list `log_history`"),
        ("runs/dpo/metrics.jsonl", "{}", "runs is a directory, and a run is needed. Did you mean .*/runs/dpo"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_recording(tmp_path / "runs" if name.startswith("runs") else path)


def test_recipes_that_tell_no_beta(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RUNS[0][0]))
    wrong = [(f"stage2: {{beta: {beta}}}", True) for beta in ("x", "0", "-1", ".inf", ".nan")]
    for recipe, noted in [("stage1: {}", False), ("- a", False), ("a: [", True), *wrong]:
        (tmp_path / "recipe.yaml").write_text(recipe)
        recording = read_recording(tmp_path)
        assert (recording.beta, bool(recording.notes)) == (None, noted)


def test_the_newest_checkpoint_of_a_trainers_output_directory_is_read(tmp_path: Path) -> None:
    for number in (9, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
        state = {"log_history": RUNS[0][:number]}
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-best").mkdir()
    assert len(read_recording(tmp_path).readings) == 10


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_lines_whatever_the_file_is_called(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(mark + "".join(json.dumps(item) + "\n" for item in RUNS[0]), encoding="utf-8")
    recording = read_recording(path)
    assert (len(recording.readings), recording.notes) == (len(RUNS[0]), [])


@pytest.mark.slow
def test_time_grows_no_faster_than_length() -> None:
    """10 times the lines in far less than 100 times the time; the figure itself is in docs/diagnosis.md."""

    def seconds(n: int) -> float:
        readings = metrics(n=n)
        begin = time.process_time()
        diagnose(readings, beta=0.1)
        return time.process_time() - begin

    assert min(seconds(5000) for _ in range(3)) < 40 * max(min(seconds(500) for _ in range(3)), 1e-3)
