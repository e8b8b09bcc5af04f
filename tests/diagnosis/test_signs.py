"""Each sign on a curve that has it and on its nearest neighbour that has not."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from diagnosis.histories import LOG2, Line, Shape, flat, line, metrics, probe, supervised

from cwdpo.diagnosis import Finding, diagnose, examine
from cwdpo.diagnosis.thresholds import Thresholds

Spoiled = tuple[list[Line], list[Line]]
"""Readings that have a problem, and readings as near to them as can be that have not."""


def run(**changed: Any) -> list[Line]:
    return metrics({name.replace("__", "/"): shape for name, shape in changed.items()})


DPO: Mapping[str, Any] = {  # what plain DPO with easy negatives does on the demo, magnified
    "rewards__chosen": line(0, -0.3),
    "rewards__rejected": line(0, -2.5),
    "logps__chosen": line(-20, -23),
    "logps__rejected": line(-120, -145),
    "logps_mean__chosen": line(-1, -1.15),
    "logps_mean__rejected": line(-6, -7.25),
    "entropy": line(0.95, 0.85),
    "rewards__accuracies": lambda t: 1 - 0.5 * math.exp(-8 * t),
    "cooling__mean": None,
    "cooling__p10": None,
    "cooling__p90": None,
}


LONGER: Mapping[str, Any] = {  # chosen answers of 13 tokens, rejected ones of 40; the summed margin grows by 13 nats
    "rewards__rejected": line(0, -1.2),
    "logps_mean__chosen": flat(-1.5),
    "logps__rejected": line(-60, -72),
}


def cooled(mean: float, tail: float, accuracy: Shape) -> list[Line]:
    return run(cooling__mean=flat(mean), cooling__p90=flat(tail), cooling__p10=flat(0), rewards__accuracies=accuracy)


def images(gap: Shape) -> list[Line]:
    chosen = probe("chosen", "mean_logprob", flat(-1.0))
    return metrics() + chosen + probe("other_image", "mean_logprob", lambda t: -1.0 - gap(t))


def both_gain(share: float) -> list[Line]:
    return probe("chosen", "mean_logprob", line(-1.0, -0.7)) + probe(
        "blank", "mean_logprob", line(-2.0, -2.0 + 0.3 * share)
    )


def with_value(lines: list[Line], name: str, values: dict[int, float | None]) -> list[Line]:
    return [{**item, name: values[i]} if i in values else item for i, item in enumerate(lines)]


SHAPES: dict[str, Spoiled] = {
    "non_finite_loss": (with_value(metrics(), "loss", {20: None}), with_value(metrics(), "grad_norm", {3: math.inf})),
    "reward_at_start": (
        with_value(metrics(), "rewards/chosen", {0: 0.1}),
        with_value(metrics(), "rewards/chosen", {0: 0.009}),
    ),
    # the same fall, but mass does not go to the argmax: entropy rises
    "squeezing": (run(**DPO), run(**{**DPO, "entropy": line(0.95, 1.1)})),
    "likelihood_displacement": (run(**DPO), run(**{**DPO, "rewards__chosen": flat(0)})),
    "false_negatives": (
        run(rewards__rejected=line(0, 0.4), rewards__accuracies=flat(0.4)),
        run(rewards__rejected=line(0, 0.05)),  # rises, as answers that share words do, but less than the chosen ones
    ),
    "overconfidence": (
        run(entropy=line(0.95, 0.6)),
        run(entropy=line(0.95, 0.6), logps_mean__chosen=line(-1, -0.65)),  # learned: the NLL fell with the entropy
    ),
    "reference_drift": (
        metrics() + probe("chosen", "tv", line(0, 0.15)),
        metrics() + probe("chosen", "tv", line(0, 0.05)),
    ),
    "image_blindness": (images(line(0.5, 0.1)), images(line(0.5, 0.4))),
    "length_shortcut": (
        run(**LONGER, logps_mean__rejected=flat(-1.5)),
        run(**LONGER, logps_mean__rejected=line(-1.5, -1.7)),
    ),
    "easy_negative_saturation": (run(**DPO), run(**{**DPO, "logps_mean__rejected": line(-2.5, -3.75)})),
    "over_cooling": (cooled(0.01, 0.03, flat(0.7)), cooled(0.01, 0.5, flat(0.7))),
    "stale_contrast": (cooled(0.01, 0.03, flat(0.99)), cooled(0.2, 0.8, flat(0.99))),
    "gradient_spikes": (
        with_value(metrics(), "grad_norm", {12: 14.0, 25: 11.0}),
        with_value(metrics(), "grad_norm", {12: 14.0}),
    ),
    "stalled_learning": (
        run(loss=flat(LOG2), rewards__chosen=flat(0), rewards__rejected=flat(0), rewards__accuracies=flat(0.5)),
        run(loss=flat(0.6), rewards__chosen=flat(0.2), rewards__rejected=flat(-0.1), rewards__accuracies=flat(0.7)),
    ),
}


def names(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings}


@pytest.mark.parametrize("name", SHAPES)
def test_the_sign_is_seen(name: str) -> None:
    found = {finding.name: finding for finding in diagnose(SHAPES[name][0], beta=0.1)}
    assert name in found
    finding = found[name]
    assert f"step {finding.step}" in finding.evidence
    assert any(letter.isdigit() for letter in finding.evidence.split(":", 1)[1])
    assert finding.advice.endswith(".")


@pytest.mark.parametrize("name", SHAPES)
def test_its_neighbour_is_let_be(name: str) -> None:
    assert name not in names(diagnose(SHAPES[name][1], beta=0.1))


def test_every_sign_has_its_pair() -> None:
    from cwdpo.diagnosis.signs import SIGNS

    assert [sign.name for sign in SIGNS] == list(SHAPES)


def test_a_healthy_run_has_no_finding() -> None:
    for seed in range(20):
        assert diagnose(metrics(seed=seed) + supervised(seed=seed), beta=0.1) == []


@pytest.mark.parametrize("n", [8, 12, 25, 60, 200])
def test_flat_noise_is_no_finding(n: int) -> None:
    level = {"rewards/chosen": 0.2, "rewards/rejected": -0.3, "rewards/accuracies": 0.75, "loss": 0.5}
    for seed in range(60):
        shapes: dict[str, Shape | None] = {
            name: flat(level.get(name, value))
            for name, value in metrics(n=2, noise=0)[0].items()
            if isinstance(value, float) and name != "rewards/margins"
        }
        assert diagnose(metrics(shapes, n=n + 1, seed=seed, noise=2.0)[1:], beta=0.1) == []


def test_most_harmful_first() -> None:
    assert [finding.name for finding in diagnose(run(**DPO), beta=0.1)] == [
        "squeezing",
        "likelihood_displacement",
        "overconfidence",
        "easy_negative_saturation",
    ]


def test_a_fall_that_came_back_is_no_displacement() -> None:
    dip = run(
        **{**DPO, "rewards__chosen": lambda t: 0.3 * (t - 0.3) if t > 0.3 else -0.3 * math.sin(t / 0.3 * math.pi)}
    )
    assert not names(diagnose(dip, beta=0.1)) & {"squeezing", "likelihood_displacement"}


def test_supervised_stages_have_no_displacement() -> None:
    falling = supervised({"logps/chosen": line(-20, -30), "logps_mean/chosen": line(-1, -1.5), "loss": line(1, 1.5)})
    probes = probe("chosen", "delta", line(0, -0.5), stage="stage1") + probe(
        "rejected", "delta", line(0, -2), stage="stage1"
    )
    assert not names(diagnose(falling + probes)) & {"squeezing", "likelihood_displacement"}
    assert "stalled_learning" in names(diagnose(falling))


def two(group: str, start: float, end: float, *, stage: str = "stage2") -> list[Line]:
    """The probe readings of a short run: one at each end."""
    common = {"stage": stage, "group": group}
    return [{**common, "step": 0, "mean_logprob": start, "delta": 0.0},
            {**common, "step": 40, "mean_logprob": end, "delta": end - start}]  # fmt: skip


@pytest.mark.parametrize(("chosen", "found"), [(-0.44, False), (-0.53, False), (-0.55, True), (-1.4, True)])
def test_two_readings_show_a_fall_by_a_tenth(chosen: float, found: bool) -> None:
    """By a tenth of the NLL and by 0.1 nats a token, here the larger of the two; a hair more and a hair less."""
    stages = (
        diagnose(two("chosen", -0.44, chosen, stage="stage1")),
        diagnose(two("chosen", -0.44, chosen) + two("rejected", -2.0, -3.0)),
    )
    assert ("stalled_learning" in names(stages[0])) == found
    assert ("likelihood_displacement" in names(stages[1])) == found
    if found:
        assert f"right answers lost {-0.44 - chosen:.3g} nats per token" in stages[0][0].evidence
        assert "Meanwhile rejected answers fell by 1 nats per token" in stages[1][0].evidence


def test_two_readings_of_a_longer_answer_must_fall_by_a_tenth_of_its_nll() -> None:
    assert diagnose(two("chosen", -3.0, -3.29, stage="stage1")) == []
    assert names(diagnose(two("chosen", -3.0, -3.31, stage="stage1"))) == {"stalled_learning"}


def test_right_answers_that_fall_in_a_supervised_stage_are_named_though_the_loss_falls() -> None:
    learned = supervised() + probe("chosen", "mean_logprob", line(-1.0, -0.7), stage="stage1")
    assert diagnose(learned) == []
    forgot = supervised() + probe("chosen", "mean_logprob", line(-1.0, -1.3), stage="stage1")
    (finding,) = diagnose(forgot)
    assert finding.name == "stalled_learning"
    assert "in probes" in finding.evidence
    held_out = [
        {"stage": "stage1", "step": s, "eval_logps_mean/chosen": -1 - 0.3 * s / 40} for s in (0, 10, 20, 30, 40)
    ]
    assert "in held-out rows" in diagnose(supervised() + held_out)[0].evidence


def test_nothing_found_is_no_comfort_where_most_could_not_be_judged() -> None:
    few = examine(two("chosen", -1.0, -0.9) + two("rejected", -2.0, -3.0), beta=0.1)
    assert not few.found_nothing
    assert few.clear
    assert few.headline.startswith("Too few readings to say much: 12 of 14 signs")
    # what was judged in one stage is not judged in the other
    both = examine(supervised() + metrics()[:3], beta=0.1)
    assert not both.found_nothing
    assert examine(metrics(), beta=0.1).found_nothing
    assert not examine(run(**DPO), beta=0.1).found_nothing


def test_held_out_answers_tell_what_training_rows_hide() -> None:
    fell = probe("chosen", "delta", line(0, -0.2)) + probe("rejected", "delta", line(0, -1.0))
    found = {finding.name: finding for finding in diagnose(metrics() + fell, beta=0.1)}
    assert "are 0.16 nats per token below" in found["squeezing"].evidence  # which the last two readings share
    assert "in probes" in found["squeezing"].evidence


def test_squeezing_tells_where_the_mass_went() -> None:
    fell = probe("chosen", "delta", line(0, -0.2)) + probe("rejected", "delta", line(0, -1.0))
    gathers = diagnose(fell + probe("chosen", "argmax_mass", line(0.6, 0.8)))
    assert "`argmax_mass` went from 0.6 to 0.8 since then" in gathers[0].evidence
    scatters = diagnose(fell + probe("chosen", "argmax_mass", line(0.6, 0.5)))
    assert "squeezing" not in names(scatters)
    assert "likelihood_displacement" in names(scatters)


def test_advice_knows_whether_the_run_cools() -> None:
    [plain, *_] = diagnose(run(**DPO), beta=0.1)
    assert "stage2.cooling: {floor" in plain.advice
    cools = {"cooling__mean": flat(0.5), "cooling__p10": flat(0.1), "cooling__p90": flat(0.9)}
    [cooling, *_] = diagnose(run(**{**DPO, **cools}), beta=0.1)
    assert "Raise `stage2.cooling.floor`" in cooling.advice
    constant = [{**item, **{f"cooling/{part}": 0.2 for part in ("mean", "p10", "p90")}} for item in run(**DPO)]
    assert "stage2.cooling.constant" in diagnose(constant, beta=0.1)[0].advice


def test_calibration_error_and_entropy_collapse() -> None:
    assert "overconfidence" in names(diagnose(metrics() + probe("chosen", "ece", line(0.017, 0.044)), beta=0.1))
    assert "overconfidence" not in names(diagnose(metrics() + probe("chosen", "ece", line(0.1, 0.14)), beta=0.1))
    without_lengths = {"logps_mean__chosen": None, "logps_mean__rejected": None}
    assert "overconfidence" in names(diagnose(run(**without_lengths, entropy=line(1.0, 0.3)), beta=0.1))


def test_blind_from_the_start_and_gains_that_owe_nothing_to_the_image() -> None:
    assert "image_blindness" in names(diagnose(images(flat(0.02)), beta=0.1))
    assert "image_blindness" in names(diagnose(both_gain(0.95)))
    assert "image_blindness" not in names(diagnose(both_gain(0.3)))


def test_rejected_answers_that_stay_likelier() -> None:
    likelier = run(
        logps_mean__chosen=flat(-2.0), logps_mean__rejected=flat(-1.5), rewards__accuracies=flat(0.5),
        rewards__chosen=flat(0), rewards__rejected=flat(0), loss=flat(LOG2),
    )  # fmt: skip
    assert "0.48 nats per token likelier" in next(f for f in diagnose(likelier) if f.name == "false_negatives").evidence


def test_free_fall_of_answers_nobody_would_say() -> None:
    found = diagnose(metrics() + probe("shuffled", "delta", line(0, -3)), beta=0.1)
    assert names(found) == {"easy_negative_saturation"}


def test_lengths_by_paraphrases() -> None:
    longer = probe("longer", "delta", line(0, 0.3)) + probe("shorter", "delta", line(0, -0.1))
    [finding] = diagnose(metrics() + longer, beta=0.1)
    assert finding.name == "length_shortcut"
    assert "longer paraphrases of the chosen answers gained 0.4" in finding.evidence


def test_margins_past_the_bend_without_cooling() -> None:
    far = {**DPO, "rewards__chosen": line(0, 0.5), "rewards__rejected": line(0, -6)}
    assert "stale_contrast" in names(diagnose(run(**far), beta=0.1))


def test_too_little_is_said_to_be_too_little() -> None:
    short = examine(metrics(n=5), beta=0.1)
    assert short.findings == []
    needs = {missing.name: missing.needs for missing in short.not_judged}
    assert "8 readings or more (5 found)" in needs["gradient_spikes"]
    assert "squeezing" in needs


def test_the_start_must_be_seen_to_be_judged() -> None:
    late = examine(metrics()[2:], beta=0.1)
    assert "logging_first_step" in {m.name: m.needs for m in late.not_judged}["reward_at_start"]


def test_every_value_that_is_no_number_counts() -> None:
    for value in (None, math.nan, math.inf, -math.inf, 1e300):
        [finding] = diagnose(with_value(metrics(), "loss", {20: value}), beta=0.1)
        assert (finding.name, finding.step) == ("non_finite_loss", 100)


def test_likely_mistakes_rise_with_right_answers() -> None:
    right = probe("chosen", "delta", line(0, 0.5))
    assert diagnose(right + probe("rejected", "delta", line(0, 0.4))) == []
    assert names(diagnose(right + probe("rejected", "delta", line(0, 0.6)))) == {"false_negatives"}


def test_easy_negatives_that_are_left_alone_are_no_problem() -> None:
    alone = {**DPO, "rewards__chosen": flat(0), "rewards__rejected": flat(0), "entropy": flat(0.95)}
    assert diagnose(run(**{**alone, "logps_mean__chosen": flat(-1.0)}), beta=0.1) == []


def test_cooled_and_unsolved_is_not_stale() -> None:
    assert names(diagnose(cooled(0.01, 0.03, flat(0.7)), beta=0.1)) == {"over_cooling"}


def test_a_cooled_loss_near_log_2_that_learns_is_not_stalled() -> None:
    assert diagnose(run(loss=flat(LOG2), rewards__accuracies=flat(0.7)), beta=0.1) == []
    small = run(loss=flat(LOG2), rewards__chosen=flat(0), rewards__rejected=flat(0), rewards__accuracies=flat(0.7))
    assert diagnose(small, beta=0.1) == []


def test_answers_that_only_became_less_likely_are_not_overconfident() -> None:
    assert "overconfidence" not in names(diagnose(run(logps_mean__chosen=line(-1, -1.5), entropy=flat(0.95)), beta=0.1))


def test_a_supervised_stage_may_learn_the_format_first() -> None:
    assert diagnose([{**item, "stage": "stage1"} for item in both_gain(0.95)]) == []


def test_harm_orders_findings_of_all_stages() -> None:
    spiky = with_value(supervised(), "grad_norm", {12: 14.0, 25: 11.0})
    found = diagnose(spiky + run(**DPO), beta=0.1)
    assert (found[0].name, found[-1].name, found[-1].stage) == ("squeezing", "gradient_spikes", "stage1")


FALLS = {"squeezing", "likelihood_displacement"}
RECORDED = Path(__file__).parent / "recorded"
"""Runs of the demo and of the habit world, a little thinned out."""


def rises_and_falls(top: float, end: float) -> Shape:
    return lambda t: top * t / 0.35 if t < 0.35 else top + (end - top) * (t - 0.35) / 0.65


@pytest.mark.parametrize("end", [11.3 - 5.6, 0.0, -7.0])
@pytest.mark.parametrize("form", ["rewards", "log-probs", "probes"])
def test_a_fall_from_the_best_level_is_named_though_the_start_is_still_passed(end: float, form: str) -> None:
    """As language models do it: chosen answers of 152 nats rise by 7 %, then lose half of that or more."""
    lines: list[Line] = []
    for i in range(50):
        chosen, rejected = rises_and_falls(11.3, end)(i / 49), -1.6 * i
        if form == "probes":
            lines += [{"step": i, "group": "chosen", "delta": chosen / 90, "mean_logprob": (chosen - 152) / 90},
                      {"step": i, "group": "rejected", "delta": rejected / 90, "mean_logprob": (rejected - 121) / 90},
                      {"step": i, "group": "greedy", "delta": 0.8 * i / 90}]  # fmt: skip
            continue
        line: Line = {"step": i, "logps/chosen": chosen - 152, "logps/rejected": rejected - 121}
        if form == "rewards":
            line |= {"rewards/chosen": 0.1 * chosen, "rewards/rejected": 0.1 * rejected}
        lines.append(line)
    found = {finding.name: finding for finding in diagnose(lines, beta=0.1)}
    assert set(found) == FALLS
    assert found["squeezing"].step in range(16, 24)
    assert "greedy answers moved" in found["squeezing"].evidence or form != "probes"


def test_squeezing_is_named_while_it_happens() -> None:
    best, lengths = 35, (10, 20, 30, *range(34, 101, 2))
    lines = metrics({"rewards/chosen": rises_and_falls(0.14, -0.4), "entropy": line(0.95, 0.9)}, n=100, noise=0.7)
    named = [n for n in lengths if names(diagnose(lines[:n], beta=0.1)) & FALLS]
    assert best <= named[0] <= best + 10
    assert named == [n for n in lengths if n >= named[0]]


def test_a_witness_halves_the_fall_that_counts_and_a_contradiction_doubles_it() -> None:
    def least(**entropy: Shape) -> float:
        falls = [0.01 * i for i in range(1, 20)]
        return next(
            fall
            for fall in falls
            if names(diagnose(metrics({"rewards/chosen": line(0, -2 * fall), **entropy}, noise=0.001), beta=0.1))
            & FALLS
        )

    # chosen answers of 20 tokens at 1 nat each; a fall of 0.02 nats/token is 0.04 of reward
    unseen, gathers, scatters = least(entropy=flat(0.95)), least(entropy=line(1, 0.8)), least(entropy=line(0.8, 1))
    limits = Thresholds()
    assert gathers == pytest.approx(unseen * limits.fall_witnessed, abs=0.0051)
    assert scatters == pytest.approx(unseen / limits.fall_witnessed, abs=0.0151)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_runs(path: Path) -> None:
    found = names(diagnose(map(json.loads, path.read_text().splitlines()), beta=0.1))
    if path.stem.endswith(("cw_dpo", "sft")):
        assert found == set()
    else:
        assert found >= FALLS


def reliable(tokens: int, *eces: float) -> list[Line]:
    bins = [[tokens // 2, 0.9, 0.85], [tokens - tokens // 2, 0.6, 0.6]]
    return [
        {"stage": "stage1", "step": 10 * i, "group": "chosen", "n": 64, "ece": ece, "reliability": bins}
        for i, ece in enumerate(eces)
    ]


def test_a_calibration_error_must_be_more_than_few_tokens_make_of_chance() -> None:
    jumps = (0.02, 0.025, 0.03, 0.035, 0.045, 0.044)
    assert diagnose(reliable(564, *jumps)) == []
    [finding] = diagnose(reliable(20_000, *jumps))
    # by hand: (10,000 * .85 * .15 + 10,000 * .6 * .4) / 20,000**2 = 9.19e-6, its root .00303, times root 2: .0043
    assert "standard error of 0.004" in finding.evidence


def test_three_readings_of_the_calibration_error_are_too_few() -> None:
    assert diagnose(probe("chosen", "ece", line(0.02, 0.2), n=4, stage="stage1")) == []
    assert names(diagnose(probe("chosen", "ece", line(0.02, 0.2), n=5, stage="stage1"))) == {"overconfidence"}


@pytest.mark.parametrize(
    "bins", [None, 3, [], [[1, 2]], [[10, 0.5, 1.5]], [[10, 0.5, None]], [[-1, 0.5, 0.5]], ["abc"]]
)
def test_bins_that_are_none_are_passed_over(bins: Any) -> None:
    lines = [{**one, "reliability": bins} for one in probe("chosen", "ece", line(0.02, 0.2), stage="stage1")]
    assert names(diagnose(lines)) == {"overconfidence"}


def test_answers_that_are_learned_are_no_drift_and_long_answers_may_move() -> None:
    learned = run(rewards__chosen=line(0, 6), logps__chosen=line(-200, -140), logps_mean__chosen=None)
    assert "reference_drift" not in names(diagnose(learned, beta=0.1))
    long = {"logps_mean__chosen": None, "logps_mean__rejected": None, "rewards__rejected": line(0, -7)}
    assert "reference_drift" not in names(diagnose(run(**long, logps__rejected=line(-121, -191)), beta=0.1))
    assert "reference_drift" in names(diagnose(run(**long, logps__rejected=line(-60, -130)), beta=0.1))
