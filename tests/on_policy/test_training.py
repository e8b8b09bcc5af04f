"""On-policy negatives inside training: what a batch gets, resuming exactly, and going on after errors."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy.scripted_sampling import SAMPLING, STEPS, Record, StopAfter, scripted

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, UserError
from cwdpo.generation import Generated, LocalSampler
from cwdpo.models.checkpoints import last_checkpoint
from cwdpo.negatives.candidates import Refresh, read_refreshes, refresh_path
from cwdpo.reference import FrozenCopy

Make = Callable[..., Any]


def history(trainer: Any) -> list[dict[str, float]]:
    keys = ("loss", "grad_norm", "rewards/margins", "logps_mean/rejected", "cooling/mean", "negatives/on_policy")
    return [{k: line[k] for k in keys} for line in trainer.state.log_history if "loss" in line]


def negatives(directory: Path) -> list[tuple[int, Any, Any]]:
    return [
        (r.step, r.error, [(c.row, c.text, c.reason, c.reference_logprob) for c in r.candidates])
        for r in read_refreshes(directory)
    ]


@pytest.fixture
def _ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never ends an answer; take what it says as if it had."""
    sample = LocalSampler.sample

    def ended(self: LocalSampler, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        return [[Generated(answer.text, True) for answer in of_row] for of_row in sample(self, rows, seed=seed)]

    monkeypatch.setattr(LocalSampler, "sample", ended)


@pytest.mark.slow
@pytest.mark.usefixtures("_ended")
@pytest.mark.parametrize("refresh", ["epoch", 2])
@pytest.mark.parametrize(("lora", "reference"), [(False, "cached"), (True, "cached"), (False, "live")])
def test_resumed_equals_uninterrupted(
    make_trainer: Make, tmp_path: Path, lora: bool, reference: str, refresh: Any
) -> None:
    settings = STEPS | {
        "on_policy": SAMPLING | {"refresh": refresh, "on_policy_fraction": 0.7},
        "reference": reference,
        "learning_rate": 1e-2,
    }
    straight = make_trainer(2, lora=lora, out="straight", **settings)
    straight.train()
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(2, lora=lora, out="broken", callbacks=[StopAfter(5)], **settings).train()
    torch.manual_seed(99)  # what happened before must not matter
    resumed = make_trainer(2, lora=lora, out="broken", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(straight)
    assert negatives(tmp_path / "broken/negatives") == negatives(tmp_path / "straight/negatives")
    found = negatives(tmp_path / "straight/negatives")
    assert [step for step, *_ in found] == ([0, 4] if refresh == "epoch" else [0, 2, 4])
    assert all(any(reason is None for *_, reason, _ in lines) for *_, lines in found)
    assert 0 < sum(line["negatives/on_policy"] for line in history(straight)) < 6
    one, other = (dict(trainer.model.named_parameters()) for trainer in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.usefixtures("_ended")
def test_files_after_the_checkpoint_are_sampled_again(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"on_policy": SAMPLING | {"refresh": 1}, "learning_rate": 1e-2}
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(2, out="broken", callbacks=[StopAfter(3)], **settings).train()
    directory = tmp_path / "broken/negatives"
    before = negatives(directory)
    assert [step for step, *_ in before] == [0, 1, 2, 3]
    late = refresh_path(directory, 4)
    late.write_text(late.read_text().replace('"step": 3', '"step": 3', 1) + "{half a li")
    make_trainer(2, out="broken", **settings).train(resume_from_checkpoint=True)
    assert negatives(directory)[:4] == before


@pytest.mark.slow
@pytest.mark.usefixtures("_ended")
def test_a_damaged_file_is_not_passed_over(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"on_policy": SAMPLING}
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(2, out="broken", callbacks=[StopAfter(3)], **settings).train()
    path = refresh_path(tmp_path / "broken/negatives", 1)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"refresh-00001\.jsonl: not a whole record"):
        make_trainer(2, out="broken", **settings).train(resume_from_checkpoint=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_ended")
def test_sampling_leaves_training_as_it_is(make_trainer: Make) -> None:
    """With samples that may not be used, every loss is that of a run without on-policy negatives."""
    plain = make_trainer(2, out="plain", **STEPS)
    plain.train()
    trainer = make_trainer(2, out="sampled", judge=lambda rows, answers: [True] * len(rows), **STEPS | {
        "on_policy": SAMPLING | {"refresh": 1, "on_policy_fraction": 1.0}
    })  # fmt: skip
    trainer.train()
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (plain, trainer)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}])
def test_new_negatives_reach_the_next_batch(make_trainer: Make, workers: dict[str, Any]) -> None:
    """Also with workers that persist and run ahead: what is put in afterwards cannot come late."""
    record = Record()
    trainer = record.watch(
        make_trainer(2, **STEPS, **workers, on_policy=SAMPLING | {"refresh": 2, "on_policy_fraction": 1.0})
    )
    sampler = scripted(trainer, lambda row, n: [f"sample {row.id} of call {n}"])
    trainer.train()
    calls = {(step, int(text.rsplit(" ", 1)[1])) for step, _, text in record.rejected(trainer)}
    portions = sampler.calls // 3
    assert {step // 2 for step, call in calls} == {0, 1, 2}
    assert all((call - 1) // portions == step // 2 for step, call in calls)
    assert {line["negatives/on_policy"] for line in trainer.state.log_history if "loss" in line} == {1.0}


@pytest.mark.slow
def test_new_negatives_are_measured_against_the_reference(make_trainer: Make) -> None:
    """The cached reference of a sampled answer is the starting model's log-prob, and so its first reward is 0."""
    trainer = make_trainer(2, **STEPS, on_policy=SAMPLING | {"on_policy_fraction": 1.0})
    scripted(trainer, lambda row, n: [f"sample {row.id}", "another"])
    trainer.train()
    first = next(line for line in trainer.state.log_history if "loss" in line)
    assert first["rewards/rejected"] == pytest.approx(0, abs=1e-5)
    assert first["negatives/on_policy"] == 1.0
    assert trainer.state.log_history[-2]["rewards/rejected"] != pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_negatives_without_room_are_measured_in_halves(make_trainer: Make, tmp_path: Path) -> None:
    measured = []
    for most in (99, 3):
        trainer = make_trainer(2, **STEPS, on_policy=SAMPLING | {"on_policy_fraction": 1.0}, out=f"most-{most}")
        scripted(trainer, lambda row, n: [f"sample {row.id}", "another"])
        passes: list[int] = []
        trainer.measure_reference()
        totals = trainer.on_policy._refresher.reference.totals

        def with_room(batch: Any, totals: Any = totals, most: int = most, passes: list[int] = passes) -> Any:
            passes.append(len(batch["prompts"]))
            if passes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return totals(batch)

        trainer.on_policy._refresher.reference.totals = with_room
        trainer.train()
        refresh = read_refreshes(tmp_path / f"most-{most}/negatives")[0]
        assert refresh.error is None
        assert "failed_portions" not in refresh.details
        measured.append([candidate.reference_logprob for candidate in refresh.candidates])
    assert passes[:3] == [4, 2, 2]
    assert measured[1] == pytest.approx(measured[0], abs=1e-4)


def test_a_frozen_tower_is_shared_with_the_reference(make_trainer: Make) -> None:
    trainer = make_trainer(2, **STEPS, on_policy=SAMPLING)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("vision" not in name)
    trainer.measure_reference()
    reference = trainer.on_policy._refresher.reference
    assert isinstance(reference, FrozenCopy)
    copied = dict(reference.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert (copied[name] is parameter) == ("vision" in name), name
        assert torch.equal(copied[name], parameter)


@pytest.mark.slow
def test_several_negatives_a_prompt(make_trainer: Make) -> None:
    record = Record()
    trainer = record.watch(
        make_trainer(2, **STEPS, on_policy=SAMPLING | {"on_policy_fraction": 1.0, "k": 3, "per_prompt": 3})
    )
    scripted(trainer, lambda row, n: ["first", "second", "second"])  # the repetition is dropped, the row's own fills in
    trainer.train()
    of_prompt: dict[tuple[int, int], list[str]] = {}
    for step, row, text in record.rejected(trainer):
        of_prompt.setdefault((step, row), []).append(text)
    assert all(len(texts) == 3 and {"first", "second"} < set(texts) for texts in of_prompt.values())


@pytest.mark.slow
def test_a_schedule_begins_to_sample_when_it_needs_to(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(
        2, **STEPS, on_policy=SAMPLING | {"on_policy_fraction": [[0.0, 0.0], [0.5, 0.0], [0.51, 1.0]]}
    )
    scripted(trainer, lambda row, n: ["a sample"])
    trainer.train()
    assert [r.step for r in read_refreshes(tmp_path / "out/negatives")] == [4]
    shares = [line.get("negatives/on_policy") for line in trainer.state.log_history if "loss" in line]
    assert shares == [0, 0, 0, 0, 1, 1]


@pytest.mark.slow
def test_what_was_sampled_is_on_file_with_its_reasons(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(2, **STEPS | {"max_steps": 2}, on_policy=SAMPLING | {"on_policy_fraction": 1.0})
    scripted(trainer, lambda row, n: [row.chosen, row.chosen.upper(), "", "wrong"])
    trainer.train()
    header, *lines = map(json.loads, refresh_path(tmp_path / "out/negatives", 1).read_text().splitlines())
    assert header["counts"] == {"same_as_right": 16, "right_but_for_form": 16, "empty": 16, "kept": 16}
    assert (header["step"], header["seed"], header["error"]) == (0, 42, None)
    assert {"model", "time", "seconds", "temperature", "top_p", "k"} <= header["details"].keys()
    assert [line["reason"] for line in lines[:4]] == ["same_as_right", "right_but_for_form", "empty", None]
    assert lines[3]["id"] == "0"


@pytest.mark.slow
def test_easy_samples_are_dropped_by_the_policy_itself(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(
        2,
        **STEPS | {"max_steps": 2},
        on_policy=SAMPLING | {"on_policy_fraction": 1.0, "drop_easier_than": "quantile:0.5"},
    )
    scripted(trainer, lambda row, n: [f"sample {row.id}"])
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    by_source = {source: [c for c in refresh.candidates if c.source == source] for source in ("on_policy", "dataset")}
    for candidates in by_source.values():  # the rows' own as well, by a quantile of their own
        middle = sorted(candidate.lbar for candidate in candidates)[7:9]
        for candidate in candidates:
            assert (candidate.reason == "too_easy") == (candidate.lbar < sum(middle) / 2)
    for candidate in by_source["on_policy"]:
        total = candidate.lbar * len(candidate.ids)
        assert total == pytest.approx(candidate.reference_logprob, rel=1e-4)  # at step 0 policy and reference are one


def break_at(call: int) -> Callable[[Row, int], list[str]]:
    def write(row: Row, n: int) -> list[str]:
        if n == call:
            raise ConnectionError("the server hung up")
        return [f"sample {row.id} of call {n}"]

    return write


@pytest.mark.slow
def test_an_error_is_logged_and_training_goes_on(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record()
    settings = {"refresh": 2, "on_policy_fraction": 1.0, "batch_size": 32}
    trainer = record.watch(make_trainer(2, **STEPS, on_policy=SAMPLING | settings))
    scripted(trainer, break_at(2))
    trainer.train()
    assert trainer.state.global_step == 6
    assert "the server hung up" in caplog.text
    refreshes = read_refreshes(tmp_path / "out/negatives")
    assert [refresh.error for refresh in refreshes] == [None, "ConnectionError: the server hung up", None]
    calls = {(step, text[-1]) for step, _, text in record.rejected(trainer)}
    assert calls == {(0, "1"), (1, "1"), (2, "1"), (3, "1"), (4, "3"), (5, "3")}


@pytest.mark.slow
def test_a_failed_portion_leaves_the_finished_ones(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"refresh": 9, "on_policy_fraction": 1.0, "batch_size": 8}  # 4 rows a portion, 4 portions
    trainer = make_trainer(2, **STEPS | {"max_steps": 1}, on_policy=SAMPLING | settings)
    sampler = scripted(trainer, break_at(2))
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert refresh.error is None
    assert refresh.details["failed_portions"] == ["ConnectionError: the server hung up"]
    assert sorted({candidate.row for candidate in refresh.candidates}) == [*range(4), *range(8, 16)]
    assert sampler.calls == 4
    assert "1 portions of the sampled negatives failed (ConnectionError: the server hung up)" in caplog.text


@pytest.mark.slow
def test_after_failures_in_a_row_no_more_are_tried(make_trainer: Make, tmp_path: Path) -> None:
    def write(row: Row, n: int) -> list[str]:
        if n > 1:
            raise ConnectionError("gone")
        return ["a sample"]

    settings = {"refresh": 9, "on_policy_fraction": 1.0, "batch_size": 8}
    trainer = make_trainer(2, **STEPS | {"max_steps": 1}, on_policy=SAMPLING | settings)
    sampler = scripted(trainer, write)
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert sampler.calls == 3
    assert refresh.details["failed_portions"] == ["ConnectionError: gone"] * 2 + [
        "not tried, as those before it failed"
    ]
    assert {candidate.row for candidate in refresh.candidates} == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_stage_resumed_at_its_end_samples_no_more(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"max_steps": 2, "on_policy": SAMPLING | {"refresh": 1, "on_policy_fraction": 1.0}}
    for resume in (False, True):
        trainer = make_trainer(2, **settings)
        sampler = scripted(trainer, lambda row, n: [f"sample {row.id}"])
        trainer.train(resume_from_checkpoint=resume)
        assert [refresh.step for refresh in read_refreshes(tmp_path / "out/negatives")] == [0, 1]
    assert sampler.calls == 0


@pytest.mark.slow
def test_a_failed_refresh_is_resumed_as_failed(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"on_policy": SAMPLING | {"refresh": 2, "on_policy_fraction": 1.0, "batch_size": 32}}
    straight = make_trainer(2, out="straight", **settings)
    scripted(straight, break_at(2))
    straight.train()
    broken = make_trainer(2, out="broken", callbacks=[StopAfter(3)], **settings)
    scripted(broken, break_at(2))
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = make_trainer(2, out="broken", **settings)
    scripted(resumed, lambda row, n: [f"sample {row.id} of call 3"])
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(straight)


@pytest.mark.slow
def test_an_error_may_stop_the_run_with_a_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"save_strategy": "no"}
    on_policy = SAMPLING | {"refresh": 3, "on_policy_fraction": 1.0, "batch_size": 32, "on_error": "stop"}
    trainer = make_trainer(2, **settings, on_policy=on_policy)
    scripted(trainer, break_at(2))
    with pytest.raises(UserError, match=r"failed at step 3 \(ConnectionError: the server hung up\).*resume"):
        trainer.train()
    checkpoint = last_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    resumed = make_trainer(2, **settings, on_policy=on_policy)
    scripted(resumed, lambda row, n: [f"sample {row.id}"])
    resumed.train(resume_from_checkpoint=True)
    assert [refresh.step for refresh in read_refreshes(tmp_path / "out/negatives")] == [0, 3]


@pytest.mark.slow
def test_an_error_before_the_first_step_stops_at_once(make_trainer: Make) -> None:
    trainer = make_trainer(2, **STEPS, on_policy=SAMPLING | {"batch_size": 32, "on_error": "stop"})
    scripted(trainer, break_at(1))
    with pytest.raises(UserError, match="failed at step 0"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_auto_samples_again_once_the_weight_has_halved(make_trainer: Make, tmp_path: Path) -> None:
    weights = iter([0.8] * 10 + [0.5] * 5 + [0.3] * 100)
    trainer = make_trainer(
        2,
        **STEPS | {"max_steps": 40, "save_steps": 100},
        on_policy=SAMPLING | {"refresh": "auto", "on_policy_fraction": 1.0},
    )
    scripted(trainer, lambda row, n: ["a sample"])
    trainer._weight = lambda means: torch.full_like(means, next(weights))
    trainer.train()
    # mean of steps 11-20 is 0.4, just half; one step on it is 0.38. Afterwards the weight stays where it is.
    assert [refresh.step for refresh in read_refreshes(tmp_path / "out/negatives")] == [0, 21]


@pytest.mark.slow
def test_auto_resumes_with_what_it_had_seen(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"max_steps": 30, "save_steps": 5, "save_total_limit": 1}
    on_policy = SAMPLING | {"refresh": "auto", "on_policy_fraction": 1.0}
    steps = []
    for out, breaks in (("straight", False), ("broken", True)):
        for part in range(1 + breaks):
            callbacks = [StopAfter(17)] if breaks and part == 0 else []
            trainer = make_trainer(2, out=out, callbacks=callbacks, **settings, on_policy=on_policy)
            scripted(trainer, lambda row, n: ["a sample"])
            trainer._weight = lambda means, t=trainer: torch.full_like(means, 1 / (1 + t.state.global_step))
            if callbacks:
                with pytest.raises(RuntimeError, match="power cut"):
                    trainer.train()
            else:
                trainer.train(resume_from_checkpoint=part == 1)
        steps.append([refresh.step for refresh in read_refreshes(tmp_path / out / "negatives")])
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_policy": {"refresh": "auto"}, "cooling": False}, "refresh: epoch"),
        ({"on_policy": {"refersh": 2}}, "unknown key 'on_policy.refersh'"),
        ({"on_policy": {"judge": "no.such.module:f"}}, "cannot be imported"),
        ({"on_policy": {"judge": "json:decoder"}}, "not a function"),
    ],
)
def test_settings_that_cannot_work(make_trainer: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(2, **arguments)


@pytest.mark.slow
def test_evaluation_keeps_the_rows_own_negatives(make_trainer: Make, rows: list[Row]) -> None:
    without = make_trainer(2, out="without", eval_rows=rows, **STEPS | {"max_steps": 1}).evaluate()
    trainer = make_trainer(
        2,
        eval_rows=rows,
        **STEPS | {"max_steps": 1, "learning_rate": 0.0},
        on_policy=SAMPLING | {"on_policy_fraction": 1.0},
    )
    scripted(trainer, lambda row, n: ["a sample"])
    trainer.train()
    assert trainer.evaluate()["eval_logps/rejected"] == pytest.approx(without["eval_logps/rejected"])


def test_refresh_counts(tmp_path: Path) -> None:
    assert Refresh(number=1, step=0, epoch=0, seed=0).counts() == {}
