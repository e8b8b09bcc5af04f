"""Training on samples of a server that keeps adapters as vLLM does: loaded, asked, unloaded, and exact on resuming."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import ChatServer, serving
from transformers import TrainerCallback

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, UserError
from cwdpo.generation import Generated
from cwdpo.models.checkpoints import last_checkpoint
from cwdpo.negatives.candidates import read_refreshes
from cwdpo.negatives.server import Endpoint

Make = Callable[..., Any]
STEPS: dict[str, Any] = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lora": True,
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = functools.partial(Endpoint, sleep=lambda _: None)
    monkeypatch.setattr("cwdpo.on_policy.callback.Endpoint", patient)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """What it says follows from the adapter's weights, the conversation and the seed, as in a real one."""
    with serving(lambda body: ["overwritten below"]) as state:

        def answer(body: Any) -> list[str]:
            said_by = state.adapters[body["model"]], body["messages"], body["seed"]
            digest = hashlib.sha256(json.dumps(said_by, sort_keys=True).encode()).hexdigest()
            return [f"a tin {digest[:3]}", f"a cat {digest[3:6]}"][: body["n"]]

        state.answer = answer
        yield state


def on_policy(server: ChatServer, **settings: Any) -> dict[str, Any]:
    served = {"endpoint": server.url, "refresh": 2, "on_policy_fraction": 1.0, "k": 2, "batch_size": 8}
    return {"on_policy": served | settings}


class AtStep(TrainerCallback):
    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act()


def power_cut() -> None:
    raise RuntimeError("power cut")


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def sampled(directory: Path) -> list[tuple[int, Any, list[tuple[int, str, Any]]]]:
    refreshes = read_refreshes(directory / "negatives")
    return [(r.step, r.error, [(c.row, c.text, c.reason) for c in r.candidates]) for r in refreshes]


def loaded(server: ChatServer) -> list[str]:
    return [body["lora_name"] for path, body in server.requests if path.endswith("/load_lora_adapter")]


def left_on_disk(directory: Path) -> list[str]:
    return [path.name for path in (directory / "negatives").glob("adapter-*")]


@pytest.mark.slow
def test_every_refresh_is_sampled_from_the_adapter_of_its_step(
    make_trainer: Make, server: ChatServer, tmp_path: Path
) -> None:
    weights: list[set[str]] = []
    trainer = make_trainer(
        2,
        **STEPS | on_policy(server),
        callbacks=[AtStep(step, lambda: weights.append(set(server.adapters.values()))) for step in range(6)],
    )
    trainer.train()
    refreshes = sampled(tmp_path / "out")
    assert [(step, error) for step, error, _ in refreshes] == [(0, None), (2, None), (4, None)]
    assert all(any(reason is None for *_, reason in found) for *_, found in refreshes)
    assert [len(of_step) for of_step in weights] == [1] * 6  # never two adapters at a time
    assert weights[0] == weights[1] != weights[2] == weights[3] != weights[4] == weights[5]
    assert {body["model"] for body in server.chats()} == set(loaded(server))
    assert len(set(loaded(server))) == 3
    assert server.most_adapters == 1
    assert server.adapters == {}
    assert left_on_disk(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_resumed_equals_uninterrupted(make_trainer: Make, server: ChatServer, tmp_path: Path, killed: bool) -> None:
    """The refresh of step 4 is repeated, as the checkpoint is of step 3: the same negatives, the same losses.

    Whether the broken run could clean up or not: what it left is taken away, and nothing else is.
    """
    straight = make_trainer(2, out="straight", **STEPS | on_policy(server))
    straight.train()
    broken = make_trainer(2, out="broken", callbacks=[AtStep(5, power_cut)], **STEPS | on_policy(server))
    if killed:
        broken.on_policy.close = lambda: None  # nobody is asked when a process is killed
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    assert len(server.adapters) == len(left_on_disk(tmp_path / "broken")) == killed
    server.adapters["cwdpo-another-run"] = "theirs"
    resumed = make_trainer(2, out="broken", **STEPS | on_policy(server))
    resumed.train(resume_from_checkpoint=True)
    assert [step for step, *_ in sampled(tmp_path / "straight")] == [0, 2, 4]
    assert sampled(tmp_path / "broken") == sampled(tmp_path / "straight")
    assert losses(resumed) == losses(straight)
    assert len(set(loaded(server))) == len(loaded(server)) == 7
    assert server.adapters == {"cwdpo-another-run": "theirs"}
    assert left_on_disk(tmp_path / "broken") == []


@pytest.mark.slow
def test_a_server_that_is_restarted_between_refreshes(make_trainer: Make, server: ChatServer, tmp_path: Path) -> None:
    straight = make_trainer(2, out="straight", **STEPS | on_policy(server))
    straight.train()
    trainer = make_trainer(2, **STEPS | on_policy(server), callbacks=[AtStep(3, server.adapters.clear)])
    trainer.train()
    assert sampled(tmp_path / "out") == sampled(tmp_path / "straight")
    assert losses(trainer) == losses(straight)


@pytest.mark.slow
def test_a_server_that_is_restarted_while_it_is_asked(
    make_trainer: Make, server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = make_trainer(2, out="straight", **STEPS | on_policy(server))
    straight.train()
    answer, asked = server.answer, len(server.chats())

    def forget_once(body: Any) -> list[str]:
        found = answer(body)
        if len(server.chats()) == asked + 20:
            server.adapters.clear()
        return found

    server.answer = forget_once
    trainer = make_trainer(2, **STEPS | on_policy(server))
    trainer.train()
    assert "does not know the adapter any more" in caplog.text
    assert sampled(tmp_path / "out") == sampled(tmp_path / "straight")
    assert losses(trainer) == losses(straight)


@pytest.mark.slow
def test_runs_share_a_server(make_trainer: Make, server: ChatServer, tmp_path: Path) -> None:
    inner = make_trainer(2, out="inner", **STEPS | on_policy(server))
    outer = make_trainer(2, out="outer", **STEPS | on_policy(server), callbacks=[AtStep(3, inner.train)])
    outer.train()
    assert [error for _, error, _ in sampled(tmp_path / "outer") + sampled(tmp_path / "inner")] == [None] * 6
    assert sampled(tmp_path / "outer") == sampled(tmp_path / "inner")
    assert server.adapters == {}


@pytest.mark.slow
def test_a_refresh_that_fails_leaves_nothing_behind(
    make_trainer: Make, server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        server.script = ["ok"] + [503] * 6  # the last adapter is unloaded; the next cannot be loaded

    seen: list[list[str]] = []
    trainer = make_trainer(
        2,
        **STEPS | on_policy(server),
        callbacks=[AtStep(1, fail), AtStep(2, lambda: seen.append(left_on_disk(tmp_path / "out")))],
    )
    trainer.train()
    errors = [error for _, error, _ in sampled(tmp_path / "out")]
    assert (errors[0], errors[2]) == (None, None)
    assert errors[1].endswith('/load_lora_adapter failed 6 times; the last time: HTTP 503 \'{"error": "as said"}\'.')
    assert "training goes on" in caplog.text
    assert seen == [[]]
    assert server.adapters == {}


@pytest.mark.slow
def test_with_a_dead_server_training_goes_on_and_says_so(
    make_trainer: Make, server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_trainer(2, out="plain", **STEPS)
    plain.train()
    dead = on_policy(server, endpoint="http://127.0.0.1:9/v1")
    trainer = make_trainer(2, **STEPS | dead)
    trainer.train()
    assert "sampling negatives failed (http://127.0.0.1:9/v1/models failed 2 times" in caplog.text
    assert all("ConnectError" in error for _, error, _ in sampled(tmp_path / "out"))
    assert losses(trainer) == losses(plain)
    assert left_on_disk(tmp_path / "out") == []


@pytest.mark.slow
def test_a_server_that_dies_may_end_the_run_with_a_checkpoint(
    make_trainer: Make, server: ChatServer, tmp_path: Path
) -> None:
    straight = make_trainer(2, out="straight", **STEPS | on_policy(server))
    straight.train()

    def die() -> None:
        server.script = [500] * 100

    settings = STEPS | on_policy(server, on_error="stop")
    trainer = make_trainer(2, **settings, callbacks=[AtStep(1, die)])
    with pytest.raises(UserError, match=r"failed at step 2 .*HTTP 500.*resume"):
        trainer.train()
    checkpoint = last_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    server.script = []
    resumed = make_trainer(2, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert sampled(tmp_path / "out") == sampled(tmp_path / "straight")
    assert losses(resumed) == losses(straight)


@pytest.mark.slow
def test_a_server_may_judge(make_trainer: Make, tmp_path: Path, rows: list[Row]) -> None:
    """What it takes for right is dropped, and so is what it says nothing of, each under its own reason."""
    said = {"seems right": '{"verdict": "yes"}', "is wrong": '{"verdict": "no"}', "is odd": "Who knows?"}

    def verdict(body: Any) -> list[str]:
        question = body["messages"][-1]["content"][0]["text"]
        return [answer for text, answer in said.items() if f'"{text}"' in question]

    with serving(verdict) as judge:
        settings = {"judge": f"{judge.url}#tiny", "on_policy_fraction": 1.0, "batch_size": 16}
        trainer = make_trainer(2, **STEPS | {"max_steps": 1, "on_policy": settings})
        trainer.on_policy._sampler = Sampled(list(said))
        trainer.train()
        assert {body["model"] for body in judge.chats()} == {"tiny"}
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert refresh.error is None
    assert refresh.counts() == {"judged_right": len(rows), "kept": len(rows), "not_judged": len(rows)}
    assert {c.text for c in refresh.candidates if c.reason is None} == {"is wrong"}


@pytest.mark.slow
def test_right_answers_of_rows_that_are_not_trained_on(make_trainer: Make, tmp_path: Path, rows: list[Row]) -> None:
    also_right = [dataclasses.replace(row, chosen="In stage 1.") for row in rows]
    settings = STEPS | {"max_steps": 1, "on_policy": {"on_policy_fraction": 1.0}}
    trainer = make_trainer(2, also_right=also_right, **settings)
    trainer.on_policy._sampler = Sampled(["in stage 1", "in neither"])
    trainer.train()
    (refresh,) = read_refreshes(tmp_path / "out/negatives")
    assert refresh.counts() == {"right_but_for_form": len(rows), "kept": len(rows)}


class Sampled:
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        return [[Generated(text, True) for text in self.texts] for _ in rows]


@pytest.mark.slow
def test_a_wrong_key_is_reported_in_one_line(make_trainer: Make, server: ChatServer, tmp_path: Path) -> None:
    server.script = ["ok"] + [401] * 100  # adapters may be free to load
    make_trainer(2, **STEPS | {"max_steps": 1} | on_policy(server)).train()
    ((_, error, _),) = sampled(tmp_path / "out")
    assert "OPENAI_API_KEY" in error
    assert "\n" not in error
    assert len(server.chats()) <= 8


def test_a_whole_model_cannot_be_handed_over(make_trainer: Make, server: ChatServer) -> None:
    with pytest.raises(ConfigError, match="Add lora, or take the endpoint out"):
        make_trainer(2, **STEPS | {"lora": False} | on_policy(server))
