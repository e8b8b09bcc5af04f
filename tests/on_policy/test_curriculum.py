"""The curriculum inside training: which negatives a step gets, and the same after an interruption."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy.scripted_sampling import SAMPLING, STEPS, Record, StopAfter, scripted

from cwdpo.config.recipe import NegativesConfig, ProbesConfig
from cwdpo.data.rows import Row
from cwdpo.engine import make_engine
from cwdpo.errors import ConfigError
from cwdpo.negatives.candidates import read_refreshes
from cwdpo.on_policy.schedule import level_readings, warn_without_choice
from cwdpo.probes.callback import Probing
from cwdpo.records import RunDirectory

Make = Callable[..., Any]
STATIC = {"on_policy_fraction": 0, "per_prompt": 1}
"""The rows' own negatives alone, one a step."""


@pytest.fixture(scope="module")
def several(rows: list[Row]) -> list[Row]:
    """Rows with three negatives each."""
    return [replace(row, rejected=(*row.rejected, f"Nothing {row.id}.", "A cube of ice in space.")) for row in rows]


def measured(directory: Path, number: int) -> dict[int, dict[str, float]]:
    """For each row its own negatives with lbar, as a refresh's file has them."""
    refresh = read_refreshes(directory)[number]
    found: dict[int, dict[str, float]] = {}
    for candidate in refresh.candidates:
        if candidate.source == "dataset":
            assert candidate.lbar is not None
            found.setdefault(candidate.row, {})[candidate.text] = candidate.lbar
    return found


def history(trainer: Any) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "negatives/on_policy", "negatives/level", "negatives/lbar", "logps_mean/rejected")
    return [{k: line[k] for k in names} for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("level", "place"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_a_level_chooses_among_the_rows_own(
    make_trainer: Make, several: list[Row], tmp_path: Path, level: float, place: int
) -> None:
    record = Record()
    trainer = record.watch(
        make_trainer(2, train_rows=several, **STEPS, on_policy=STATIC | {"curriculum": level, "refresh": 2})
    )
    trainer.train()
    seen = record.rejected(trainer)
    assert len(seen) == 6 * 4
    for step, row, text in seen:
        lbars = measured(tmp_path / "out/negatives", step // 2)[row]
        assert text == sorted(lbars, key=lambda answer: lbars[answer])[place]
    assert [refresh.step for refresh in read_refreshes(tmp_path / "out/negatives")] == [0, 2, 4]


@pytest.mark.slow
def test_lbar_is_the_policys_own_mean_log_prob(make_trainer: Make, several: list[Row], tmp_path: Path) -> None:
    """Against logits of whole rows of text, added up by hand, at the first refresh and after training has moved on."""
    settings = STEPS | {"max_steps": 3, "learning_rate": 1e-2}
    weights: dict[int, Any] = {}
    trainer = make_trainer(2, train_rows=several, **settings, on_policy=STATIC | {"curriculum": 1.0, "refresh": 2})
    keep = trainer.on_policy._refresher.run

    def run(number: int, **arguments: Any) -> Any:
        weights[number] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return keep(number, **arguments)

    trainer.on_policy._refresher.run = run
    trainer.train()
    row = next(index for index, one in enumerate(several) if one.images)
    for number in (1, 2):
        trainer.model.load_state_dict(weights[number])
        for text, lbar in measured(tmp_path / "out/negatives", number - 1)[row].items():
            encoded = trainer.encoder.encode(several[row], [text])
            answer = list(encoded.answers[0])
            ids = torch.cat([encoded.prompt["input_ids"], torch.tensor([answer])], dim=1)
            more = {k: v for k, v in encoded.prompt.items() if k not in ("input_ids", "attention_mask")}
            with torch.no_grad():
                logits = trainer.model.eval()(input_ids=ids, **more).logits[0].double().tolist()
            start, total = encoded.prompt["input_ids"].shape[1], 0.0
            for place, token in enumerate(answer):
                scores = logits[start + place - 1]
                top = max(scores)
                total += scores[token] - top - math.log(sum(math.exp(score - top) for score in scores))
            assert lbar == pytest.approx(total / len(answer), abs=1e-5)


@pytest.mark.slow
def test_what_is_logged_is_the_level_and_the_lbar_of_what_was_used(
    make_trainer: Make, several: list[Row], tmp_path: Path
) -> None:
    record = Record()
    schedule = [[0.0, 0.0], [0.5, 1.0]]
    trainer = record.watch(
        make_trainer(2, train_rows=several, **STEPS, on_policy=STATIC | {"curriculum": schedule, "refresh": 3})
    )
    trainer.train()
    lines = history(trainer)
    assert [line["negatives/level"] for line in lines] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    for step, line in enumerate(lines):
        used = [(row, text) for at, row, text in record.rejected(trainer) if at == step]
        lbars = [measured(tmp_path / "out/negatives", step // 3)[row][text] for row, text in used]
        assert line["negatives/lbar"] == pytest.approx(sum(lbars) / len(lbars), abs=1e-5)


@pytest.mark.slow
def test_samples_are_ordered_too_and_the_share_stays(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    record = Record()
    settings = SAMPLING | {"k": 3, "on_policy_fraction": 0.5, "curriculum": 1.0}
    trainer = record.watch(make_trainer(2, **STEPS, on_policy=settings))
    scripted(trainer, lambda row, n: [f"a disc {row.id}", f"sample {row.id} of call {n}", "another"])
    trainer.train()
    refreshes = read_refreshes(tmp_path / "out/negatives")
    sampled, seen = 0, record.rejected(trainer)
    for step, row, text in seen:
        of_row = [c for c in refreshes[step // 4].candidates if c.row == row]
        best = {source: max((c for c in of_row if c.source == source), key=lambda c: c.lbar, default=None)
                for source in ("on_policy", "dataset")}  # fmt: skip
        found = next(c for c in of_row if c.text == text)
        assert found is best[found.source]
        sampled += found.source == "on_policy"
    assert 0.2 < sampled / len(seen) < 0.8


@pytest.mark.slow
def test_own_negatives_that_are_too_easy_fill_in_last(make_trainer: Make, several: list[Row], tmp_path: Path) -> None:
    record = Record()
    rule = {"curriculum": 0.0, "drop_easier_than": "quantile:0.5"}
    trainer = record.watch(make_trainer(2, train_rows=several, **STEPS, on_policy=STATIC | rule))
    trainer.train()
    (first, *_) = read_refreshes(tmp_path / "out/negatives")
    middle = sorted(candidate.lbar for candidate in first.candidates)[23:25]
    for candidate in first.candidates:
        assert (candidate.reason == "too_easy") == (candidate.lbar < sum(middle) / 2)
    for step, row, text in record.rejected(trainer):
        of_row = [c for c in read_refreshes(tmp_path / "out/negatives")[step // 4].candidates if c.row == row]
        enough = [c for c in of_row if c.reason is None]
        expected = min(enough, key=lambda c: c.lbar) if enough else max(of_row, key=lambda c: c.lbar)
        assert text == expected.text


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "reference"), [(False, "cached"), (True, "live")])
def test_resumed_equals_uninterrupted(
    make_trainer: Make, several: list[Row], tmp_path: Path, lora: bool, reference: str
) -> None:
    def trainer(out: str, crash: bool = False) -> Any:
        made = make_trainer(
            2,
            lora=lora,
            out=out,
            train_rows=several,
            callbacks=[StopAfter(5)] if crash else [],
            **STEPS | {"learning_rate": 1e-2, "reference": reference},
            on_policy=SAMPLING | {"refresh": 2, "per_prompt": 2, "curriculum": [[0, 0], [1, 1]]},
        )
        scripted(made, lambda row, n: [f"sample {row.id}", "A disc, or not."])
        return made

    straight = trainer("straight")
    straight.train()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer("broken", crash=True).train()
    torch.manual_seed(99)
    resumed = trainer("broken")
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(straight)
    one, other = (
        [(r.step, [(c.text, c.reason, c.lbar, c.source) for c in r.candidates]) for r in read_refreshes(tmp_path / out)]
        for out in ("straight/negatives", "broken/negatives")
    )
    assert one == other


class Falling:
    """Readings as a schedule of its own: ``(step, chosen, gentle)``."""

    def __init__(self, *readings: tuple[int, float, float]) -> None:
        self.readings = readings

    def until(self, step: int) -> Sequence[dict[str, Any]]:
        return [
            {"step": at, "group": group, "mean_logprob": value}
            for at, chosen, gentle in self.readings
            for group, value in (("chosen", chosen), ("gentle", gentle))
            if at <= step
        ]


@pytest.mark.slow
def test_auto_follows_the_readings(make_trainer: Make, several: list[Row]) -> None:
    trainer = make_trainer(2, train_rows=several, **STEPS, on_policy=STATIC | {"curriculum": "auto"})
    # learned after step 2; chosen answers fall at step 4; what is read at step 5 does not count
    script = Falling((0, -1.0, -1.0), (2, -1.0, -1.2), (4, -1.1, -2.0), (5, -1.0, -9.0))
    trainer.on_policy.curriculum.follow(lambda: script.until(trainer.state.global_step), tolerance=0.05, every=2)
    trainer.train()
    assert [line["negatives/level"] for line in history(trainer)] == [0, 0, 0.25, 0.25, 0, 0]


@pytest.mark.slow
def test_auto_resumes_where_its_readings_had_brought_it(
    make_trainer: Make, several: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwdpo.negatives.mixing.auto_level.__kwdefaults__", {"growth": 1e-3, "patience": 2})

    def train(out: str, *, crash: bool = False, resume: bool = False) -> Any:
        trainer = make_trainer(
            2,
            out=out,
            train_rows=several,
            callbacks=[StopAfter(5)] if crash else [],
            **STEPS | {"learning_rate": 1e-2},
            on_policy=STATIC | {"curriculum": "auto", "refresh": 3},
        )
        run = RunDirectory(tmp_path / f"{out}-run")
        run.root.mkdir(exist_ok=True)
        probing = Probing(trainer, several[:5], run, "stage2", ProbesConfig(every=1), engine=make_engine(), beta=0.1)
        trainer.add_callback(probing)
        trainer.on_policy.curriculum.follow(lambda: probing.lines, tolerance=0.3)
        if crash:
            with pytest.raises(RuntimeError, match="power cut"):
                trainer.train()
        else:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = train("straight")
    train("broken", crash=True)
    resumed = train("broken", resume=True)
    assert history(resumed) == history(straight)
    assert len({line["negatives/level"] for line in history(straight)}) > 1


@pytest.mark.slow
def test_auto_without_readings_is_refused(make_trainer: Make, several: list[Row]) -> None:
    trainer = make_trainer(2, train_rows=several, **STEPS, on_policy=STATIC | {"curriculum": "auto"})
    with pytest.raises(ConfigError, match=r"this trainer has none.*follow\(lambda: probing.lines\)"):
        trainer.train()


def test_the_margin_is_to_the_rejected_answers_where_there_are_no_gentle_ones() -> None:
    lines = [
        {"step": 0, "group": "chosen", "mean_logprob": -1.0},
        {"step": 0, "group": "rejected", "mean_logprob": -3.0},
    ]
    (reading,) = level_readings(lines)
    assert (reading.chosen, reading.margin) == (-1.0, 2.0)
    (reading,) = level_readings([*lines, {"step": 0, "group": "gentle", "mean_logprob": -1.25}])
    assert (reading.chosen, reading.margin) == (-1.0, 0.25)


@pytest.mark.parametrize(
    ("own", "settings", "choice"),
    [
        (1, {"k": 1}, False),  # two candidates, but each is its source's only one
        (1, {"k": 2}, True),
        (2, {"k": 1}, True),
        (1, {"k": 1, "per_prompt": 2}, False),
        (1, {"k": 4, "per_prompt": 5}, False),
        (1, {"k": 4, "per_prompt": 4}, True),
        (3, {"k": 4, "on_policy_fraction": 0}, False),  # each step has all of them
        (3, {"k": 4, "on_policy_fraction": 0, "per_prompt": 1}, True),
        (1, {"k": 4, "on_policy_fraction": 0, "per_prompt": 1}, False),
    ],
)
def test_whether_there_is_anything_to_choose(
    own: int, settings: dict[str, Any], choice: bool, caplog: pytest.LogCaptureFixture
) -> None:
    row = Row(prompt=(), chosen="a", rejected=tuple(map(str, range(own))))
    config = NegativesConfig(**settings)
    warn_without_choice([row, row], config, samples=bool(config.on_policy_fraction))
    assert ("negatives.curriculum has no effect" not in caplog.text) == choice


@pytest.mark.slow
def test_where_it_has_no_effect_it_says_so(make_trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(2, **STEPS | {"max_steps": 1}, on_policy=SAMPLING | {"curriculum": 1.0, "k": 1})
        scripted(trainer, lambda row, n: ["a sample"])
        trainer.train()
    assert "negatives.curriculum has no effect" in caplog.text
    assert "(k is 1, per_prompt is null)" in caplog.text


@pytest.mark.slow
def test_a_failed_refresh_leaves_the_order_of_the_one_before(
    make_trainer: Make, several: list[Row], tmp_path: Path
) -> None:
    record = Record()
    settings = STATIC | {"on_policy_fraction": 1.0, "k": 1, "curriculum": 1.0, "refresh": 2}
    trainer = record.watch(make_trainer(2, train_rows=several, **STEPS, on_policy=SAMPLING | settings))

    def write(row: Row, call: int) -> list[str]:
        if call > 2:
            raise ConnectionError("the server hung up")
        return []

    scripted(trainer, write)
    trainer.train()
    refreshes = read_refreshes(tmp_path / "out/negatives")
    assert [refresh.error is None for refresh in refreshes] == [True, False, False]
    for _, row, text in record.rejected(trainer):
        lbars = measured(tmp_path / "out/negatives", 0)[row]
        assert text == max(lbars, key=lambda answer: lbars[answer])


@pytest.mark.slow
def test_before_a_first_refresh_per_prompt_holds(make_trainer: Make, several: list[Row]) -> None:
    """A schedule that begins at 0, or a first refresh that failed, leaves the number of negatives as asked for."""
    record = Record()
    settings = {"on_policy_fraction": [[0.5, 0.0], [1.0, 1.0]], "per_prompt": 2}
    trainer = record.watch(make_trainer(2, train_rows=several, **STEPS, on_policy=SAMPLING | settings))
    scripted(trainer, lambda row, n: ["a sample"])
    trainer.train()
    steps = [step for step, *_ in record.rejected(trainer)]
    assert {step: steps.count(step) for step in range(6)} == dict.fromkeys(range(6), 8)


@pytest.mark.slow
def test_an_lbar_that_is_not_a_number_fails_the_refresh(make_trainer: Make, several: list[Row], tmp_path: Path) -> None:
    settings = STATIC | {"curriculum": 0.0, "drop_easier_than": "quantile:0.5"}
    trainer = make_trainer(2, train_rows=several, **STEPS | {"max_steps": 1}, on_policy=settings)
    trainer.on_policy._refresher._score = lambda batch, candidates: [
        setattr(candidate, "lbar", math.nan) for candidate in candidates
    ]
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert "finite" in str(refresh.error)


@pytest.mark.parametrize(("settings", "message"), [({"refresh": "auto"}, "refresh: epoch")])
def test_settings_that_cannot_work(make_trainer: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(2, on_policy=STATIC | {"curriculum": 1.0} | settings)


@pytest.mark.slow
def test_the_file_says_what_a_refresh_cost(make_trainer: Make, several: list[Row], tmp_path: Path) -> None:
    make_trainer(2, train_rows=several, **STEPS | {"max_steps": 1}, on_policy=STATIC | {"curriculum": 0.5}).train()
    header = json.loads((tmp_path / "out/negatives/refresh-00001.jsonl").read_text().splitlines()[0])
    assert header["counts"] == {"dataset": 48}
    assert header["details"]["cpu_seconds"] > 0
    assert header["details"]["curriculum"] == 0.5
