"""Trainer settings that would end a run late are refused before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
from support.chat_server import serving

from cwdpo.config.checking import build
from cwdpo.config.recipe import Recipe
from cwdpo.errors import ConfigError, UserError
from cwdpo.recipes.preflight import check_endpoint, check_settings
from cwdpo.records import RunDirectory


def complaint(*, probes: Any = None, **sections: Any) -> str:
    stages = {"stage1": {"objective": "plain"}, "stage2": {}}
    wanted = sections.pop("stages", list(stages))
    recipe = build(
        Recipe,
        {
            "model": {"name_or_path": "not/there"},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            "probes": probes,
            "trainer": {"use_cpu": True, "report_to": "none", **sections.pop("trainer", {})},
            **{stage: {**stages[stage], **sections.pop(stage, {})} for stage in wanted},
        },
    )
    try:
        check_settings(recipe, RunDirectory(Path("unused")))
    except ConfigError as error:
        return str(error)
    return ""


def best(metric: str, **more: Any) -> dict[str, Any]:
    return {"metric_for_best_model": metric, "load_best_model_at_end": True, "save_strategy": "epoch", **more}


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"trainer": {"save_only_model": True}}, "trainer.save_only_model is true, but a run that was interrupted"),
        ({"stage2": {"trainer": {"save_only_model": True}}}, "stage2.trainer.save_only_model is true"),
        (
            {"trainer": best("eval_rewards/margins")},
            "trainer.metric_for_best_model is 'eval_rewards/margins', which no evaluation of stage1 has. Evaluations",
        ),
        (
            {"trainer": best("logps/rejected")},
            "trainer.metric_for_best_model is 'logps/rejected', which no evaluation of st",
        ),
        (
            {"trainer": best("logps_mean/gentle")},
            "trainer.metric_for_best_model is 'logps_mean/gentle', which no evaluation",
        ),
        (
            {"trainer": best("probes/delta/chosen")},
            "trainer.metric_for_best_model is probes/delta/chosen, which the recipe's",
        ),
        (
            {"trainer": best("probes/delta/chosen"), "probes": {"groups": ["gentle"]}},
            "trainer.metric_for_best_model is probes/delta/chosen, which the recipe's probes do not",
        ),
        (
            {"trainer": best("probes/dleta/chosen"), "probes": {}},
            "trainer.metric_for_best_model is probes/dleta/chosen",
        ),
        (
            {"trainer": {"accelerator_config": {"dispatch_batches": True}}},
            "accelerator_config has dispatch_batches, which cu",
        ),
        (
            {"trainer": {"include_for_metrics": ["inputs", "loss"]}},
            "include_for_metrics holds `inputs`, but a batch here",
        ),
    ],
)
def test_it_is_refused(sections: dict[str, Any], start: str) -> None:
    text = complaint(**sections)
    assert text.startswith(start)
    assert "\n" not in text


def test_the_advice_is_the_stage_that_has_it() -> None:
    assert complaint(trainer=best("rewards/margins")).endswith("`stage2: {trainer: {...}}`.")
    assert "Did you mean rewards/margins?" in complaint(stages=["stage2"], trainer=best("rewards/margin"))
    assert "stage2: {" not in complaint(stages=["stage2"], trainer=best("rewards/margin"))


@pytest.mark.parametrize(
    "sections",
    [
        {"trainer": best("loss")},
        {"trainer": best("eval_logps_mean/chosen")},
        {"stage2": {"trainer": best("eval_rewards/margins")}},
        {"stage2": {"trainer": best("cooling/p50")}},
        {"stage1": {"objective": "constrained", "trainer": best("logps_mean/gentle")}},
        {"trainer": best("probes/delta/chosen"), "probes": {}},
        {"trainer": {"metric_for_best_model": "anything", "eval_strategy": "no"}},
        {"trainer": {"include_for_metrics": ["loss"], "accelerator_config": {"split_batches": True}}},
    ],
    ids=str,
)
def test_it_is_taken(sections: dict[str, Any]) -> None:
    assert complaint(**sections) == ""


def test_a_server_that_wants_another_key_stops_a_run_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def recipe(url: str) -> Recipe:
        sections = {"model": {"name_or_path": "m"}, "data": {"train": "t.jsonl"}, "stage2": {}}
        return build(Recipe, {**sections, "negatives": {"endpoint": url}})

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(lambda _: []) as server:
        check_endpoint(recipe(server.url))
        server.status_of_models = 401
        with pytest.raises(UserError, match="It wants a key, and OPENAI_API_KEY is not set"):
            check_endpoint(recipe(server.url))
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        with pytest.raises(UserError, match="The key in OPENAI_API_KEY is wrong"):
            check_endpoint(recipe(server.url))
        monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
        with pytest.raises(UserError, match="OPENAI_API_KEY has a line break"):
            check_endpoint(recipe(server.url))
        server.status_of_models = 404  # without a list of models, but with answers perhaps
        monkeypatch.delenv("OPENAI_API_KEY")
        check_endpoint(recipe(server.url))
    assert not caplog.records
    check_endpoint(recipe("http://127.0.0.1:9/v1"))
    assert "Stage 2 will ask it." in caplog.text
