"""Readings against the model's own full logits and Python's arithmetic."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine import make_engine
from cwdpo.errors import DataError
from cwdpo.probes import ProbeSet, Reading, StartDistributions, measure, probe_rows
from cwdpo.probes.measuring import scalars
from cwdpo.records import PROBE_GROUPS

Load = Callable[..., tuple[Any, Any]]
Make = Callable[..., ProbeSet]


def naive_distributions(model: Any, processor: Any, row: Row, text: str, images: Any) -> tuple[list[int], Any]:
    """Token ids of an answer and ``(T, V)`` probabilities as nested lists, from one plain forward pass."""
    shown = row if images is None else dataclasses.replace(row, images=images)
    encoded = Encoder(processor).encode(shown, [text])
    ids, prompt = encoded.answers[0], dict(encoded.prompt)
    joined = torch.cat([prompt.pop("input_ids"), torch.tensor([ids])], dim=1)
    pictures = {name: value for name, value in prompt.items() if name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        logits = model(input_ids=joined, **pictures).logits[0, -len(ids) - 1 : -1]
    return ids, logits.double().softmax(-1).tolist()


def lbar(ids: list[int], distributions: list[list[float]]) -> float:
    return statistics.fmean(math.log(p[token]) for token, p in zip(ids, distributions, strict=True))


def move(model: Any) -> None:
    """Change what the model says."""
    with torch.no_grad():
        torch.manual_seed(1)
        model.get_output_embeddings().weight.add_(torch.randn_like(model.get_output_embeddings().weight) * 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
def test_a_reading_by_hand(
    loaded: Load, rows: list[Row], probe_set: Make, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr("cwdpo.probes.measuring._WIDE_VOCABULARY", 10)
    model, processor = loaded()
    probes, start = probe_set(processor), StartDistributions(len(rows))
    first = measure(model, probes, make_engine("plain"), start=start)
    before = {r.index: naive_distributions(model, processor, r.row, r.row.chosen, None)[1] for r in probes.rows}
    move(model)
    lines = {
        line["group"]: line for line in measure(model, probes, make_engine("plain"), start=start).lines(first.means())
    }
    by_group: dict[str, list[float]] = {}
    for probe in probes.rows:
        for answer in probe.answers:
            ids, p = naive_distributions(model, processor, probe.row, answer.text, answer.images)
            by_group.setdefault(answer.group, []).append(lbar(ids, p))
    assert list(lines) == [group for group in PROBE_GROUPS if group in by_group]
    for group, values in by_group.items():
        assert lines[group]["n"] == len(values)
        assert lines[group]["mean_logprob"] == pytest.approx(statistics.fmean(values), abs=1e-4)
        assert lines[group]["p50"] == pytest.approx(statistics.median(values), abs=1e-4)
        assert lines[group]["delta"] == pytest.approx(statistics.fmean(values) - first.means()[group], abs=1e-4)
    expected = of_chosen(model, processor, probes, before)
    bins = lines["chosen"]["reliability"]
    assert {name: lines["chosen"][name] for name in expected} == pytest.approx(expected, abs=2e-4)
    count = sum(n for n, *_ in bins)
    assert count == sum(len(p) for p in before.values())
    assert sum(n * abs(sure - right) for n, sure, right in bins) / count == pytest.approx(expected["ece"], abs=2e-4)
    assert not [name for name in scalars(list(lines.values())) if "reliability" in name]
    assert lines["chosen"]["tv"] > 0.05  # it moved, so equality means something
    assert 0 < lines["chosen"]["moved_to_argmax"] < 1


def of_chosen(model: Any, processor: Any, probes: ProbeSet, before: dict[int, Any]) -> dict[str, float]:
    """The token measures of the chosen group in Python floats."""
    entropy, top, hit, tv, js, gain = [], [], [], [], [], []
    for probe in probes.rows:
        ids, now = naive_distributions(model, processor, probe.row, probe.row.chosen, None)
        for token, p, q in zip(ids, now, before[probe.index], strict=True):
            entropy.append(-sum(x * math.log(x) for x in p))
            top.append(max(p))
            hit.append(p.index(max(p)) == token)
            tv.append(sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2)
            middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
            js.append(sum(x * math.log(x / m) + y * math.log(y / m) for x, y, m in zip(p, q, middle, strict=True)) / 2)
            argmax = q.index(max(q))
            gain.append(max(0.0, p[argmax] - q[argmax]))
    bins: dict[int, list[int]] = {}
    for i, confidence in enumerate(top):
        bins.setdefault(min(14, int(confidence * 15)), []).append(i)
    return {
        "entropy": statistics.fmean(entropy),
        "argmax_mass": statistics.fmean(top),
        "top1": statistics.fmean(hit),
        "tv": statistics.fmean(tv),
        "js": statistics.fmean(js),
        "moved_to_argmax": sum(gain) / sum(tv),
        "ece": sum(abs(sum(top[i] for i in b) - sum(hit[i] for i in b)) for b in bins.values()) / len(top),
    }


def test_nothing_has_moved_at_the_start(loaded: Load, rows: list[Row], probe_set: Make) -> None:
    model, processor = loaded("qwen2_5_vl")
    reading = measure(model, probe_set(processor), make_engine(), start=StartDistributions(len(rows)))
    lines = reading.lines(reading.means())
    assert {line["delta"] for line in lines} == {0.0}
    assert [lines[0][name] for name in ("tv", "js", "moved_to_argmax")] == [0.0, 0.0, 0.0]


def test_without_a_start_there_is_no_drift(loaded: Load, probe_set: Make) -> None:
    model, processor = loaded()
    lines = measure(model, probe_set(processor), make_engine(), start=None).lines(None)
    assert not {"tv", "js", "moved_to_argmax", "delta"} & {name for line in lines for name in line}
    assert {"entropy", "ece"} <= lines[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4, 9])
def test_ranks_and_batches_do_not_change_a_reading(loaded: Load, rows: list[Row], probe_set: Make, ranks: int) -> None:
    model, processor = loaded()
    whole = measure(model, probe_set(processor, answers_in_a_pass=100), make_engine("plain"), start=None)
    parts = [
        measure(model, probe_set(processor, answers_in_a_pass=8, rank=r, ranks=ranks), make_engine("plain"), start=None)
        for r in range(ranks)
    ]
    joined = Reading().joined(parts)
    assert joined.means() == pytest.approx(whole.means(), abs=1e-5)
    assert [line["n"] for line in joined.lines(None)] == [line["n"] for line in whole.lines(None)]
    ours, theirs = joined.lines(None)[0], whole.lines(None)[0]
    bins = [value for each in (ours, theirs) for value in each.pop("reliability")]
    for our, their in zip(bins[:15], bins[15:], strict=True):
        assert our == pytest.approx(their, abs=1e-5)
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_measuring_leaves_no_trace(loaded: Load, probe_set: Make) -> None:
    model, processor = loaded("qwen2_5_vl")
    model.train()
    model.model.visual.eval()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure(model, probe_set(processor), make_engine(), start=StartDistributions(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.visual.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_answers_of_a_prompt_go_through_in_one_pass(loaded: Load, probe_set: Make) -> None:
    class Counting:
        def __init__(self) -> None:
            self.engine, self.calls, self.answers = make_engine("plain"), 0, 0

        def logprobs(self, model: Any, batch: Any, *, want: Any = ()) -> Any:
            self.calls += 1
            self.answers += len(batch["answer_ids"])
            assert len(batch["answer_ids"]) <= 24
            return self.engine.logprobs(model, batch, want=want)

    model, processor = loaded()
    probes, counting = probe_set(processor), Counting()
    measure(model, probes, counting, start=StartDistributions(6))  # type: ignore[arg-type]
    assert counting.answers == sum(len(row.answers) for row in probes.rows)
    assert counting.calls == 3  # two rows of at most ten answers in a pass


def test_made_answers_that_do_not_fit_are_left_out_and_said(
    loaded: Load, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = loaded()
    encoder = Encoder(processor)
    longest = max(
        encoder.encode(r, [r.chosen, r.rejected[0], *([r.gentle] if r.gentle else [])]).prompt_tokens
        + len(encoder.encode(r, [text]).answers[0])
        for r in rows
        for text in (r.chosen, r.rejected[0], r.gentle or r.chosen)
    )
    groups = ("chosen", "rejected", "gentle", "greedy", "shuffled")
    made = probe_rows(rows, groups=groups, greedy=["short", "many words " * 40, *["short"] * 4])
    probes = ProbeSet(made, Encoder(processor, max_length=longest + 2))
    with caplog.at_level(logging.WARNING):
        lines = {line["group"]: line for line in measure(model, probes, make_engine(), start=None).lines(None)}
        measure(model, probes, make_engine(), start=None)
    assert lines["greedy"]["n"] == 5
    assert lines["chosen"]["n"] == 6
    assert caplog.text.count("1 of group greedy") == 1
    with pytest.raises(DataError, match="more than the 10 allowed"):
        measure(model, ProbeSet(made, Encoder(processor, max_length=10)), make_engine(), start=None)
