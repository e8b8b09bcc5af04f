"""A metric that chooses the best model is one that evaluations have; the promise is compared with what they give."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, UserError
from cwdpo.trainers.step_metrics import check_best_metric

Make = Callable[..., Any]
FRAME = {"loss", "runtime", "samples_per_second", "steps_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "settings"), [(1, {}), (1, {"objective": "plain"}), (2, {}), (2, {"loss": {"sigmoid": 1.0, "nll": 1.0}})]
)
def test_evaluations_have_what_is_promised(
    make_trainer: Make, rows: list[Row], stage: int, settings: dict[str, Any]
) -> None:
    trainer = make_trainer(stage, eval_rows=rows, **settings)
    found = {name.removeprefix("eval_") for name in trainer.evaluate()}
    promised = set(trainer.metrics_of(trainer.args))
    if "cooling" in promised:
        promised = promised - {"cooling"} | {"cooling/mean", "cooling/p10", "cooling/p50", "cooling/p90"}
    assert found - {"model_preparation_time", "epoch"} == promised | FRAME
    for name in found & (promised | FRAME):
        trainer.args.metric_for_best_model, trainer.args.eval_strategy = name, "epoch"
        check_best_metric(trainer.args, trainer.metrics_of(trainer.args))


def test_another_is_refused_when_the_trainer_is_made(make_trainer: Make, rows: list[Row]) -> None:
    best = {"eval_strategy": "epoch", "metric_for_best_model": "eval_rewards/margin"}
    with pytest.raises(
        ConfigError, match=r"'eval_rewards/margin', which no evaluation of this stage has\. Did you mean re"
    ):
        make_trainer(2, eval_rows=rows, **best)
    sets: Any = {"few": rows[:2], "more": rows[2:4]}
    best["metric_for_best_model"] = "rewards/margins"
    with pytest.raises(ConfigError, match=r"several sets are evaluated\. Name one of them: eval_few_rewards/margins"):
        make_trainer(2, eval_rows=sets, **best)
    best["metric_for_best_model"] = "more_rewards/margins"
    assert make_trainer(2, eval_rows=sets, **best)


def test_gentle_answers_that_no_evaluated_row_has_choose_nothing(make_trainer: Make, rows: list[Row]) -> None:
    without: list[Row] = [replace(row, gentle=None) for row in rows[:3]]
    best = {"eval_strategy": "epoch", "metric_for_best_model": "eval_logps_mean/gentle"}
    with pytest.raises(ConfigError, match=r"no evaluated row has a `gentle` answer\. Add some, or write eval_logps"):
        make_trainer(1, eval_rows=without, **best)
    assert make_trainer(1, eval_rows=[*without, rows[3]], **best)
    sets: Any = {"bare": without, "whole": rows[:3]}
    assert make_trainer(1, eval_rows=sets, **best | {"metric_for_best_model": "eval_whole_logps_mean/gentle"})
    with pytest.raises(ConfigError, match="no evaluated row has a `gentle` answer"):
        make_trainer(1, eval_rows=sets, **best | {"metric_for_best_model": "bare_logps_mean/gentle"})


@pytest.mark.slow
def test_weights_alone_are_no_place_to_go_on_from(make_trainer: Make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make_trainer(1, out="weights", save_only_model=True, **saving)
    trainer.train()
    with pytest.raises(UserError, match=r"checkpoint-2 holds no state of the optimizer .*save_only_model"):
        make_trainer(1, out="weights", **saving).train(resume_from_checkpoint=True)
    make_trainer(1, out="whole", **saving).train()
    again = make_trainer(1, out="whole", **saving)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-1")
    assert again.state.global_step == 2
