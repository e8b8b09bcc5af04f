"""Trainer settings that would end a run late are refused before a model is loaded."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import serving

import cwdpo
from cwdpo.compare.grid import Grid
from cwdpo.config.checking import build
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import known_settings
from cwdpo.errors import ConfigError, UserError
from cwdpo.recipes.preflight import check_endpoint, check_settings, read_model
from cwdpo.records import RunDirectory
from cwdpo.trainers.arguments import argument_types


def refusal(*, probes: Any = None, **sections: Any) -> ConfigError | None:
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
        return error
    return None


def complaint(**sections: Any) -> str:
    return str(refusal(**sections) or "")


def best(metric: str, **more: Any) -> dict[str, Any]:
    return {"metric_for_best_model": metric, "load_best_model_at_end": True, "save_strategy": "epoch", **more}


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        (
            {"stage2": {"trainer": {"load_best_model_at_end": True, "eval_strategy": "epoch"}}},
            "stage2.trainer.load_best_model_at_end chooses among checkpoints that are evaluated, but in stage2 "
            "eval_strategy is epoch and save_strategy steps. Write `eval_strategy: epoch` and `save_strategy: epoch`.",
        ),
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
    error = refusal(**sections)
    assert error is not None
    assert str(error).startswith(start)
    assert error.setting == start.split()[0], "by which its line is found"
    assert "\n" not in str(error)


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


def test_a_model_that_is_not_there_is_a_setting() -> None:
    with pytest.raises(UserError, match="there is no directory no/such/model") as caught:
        read_model("no/such/model", "language", trust_remote_code=False)
    assert caught.value.setting == "model.name_or_path"


def test_errors_name_settings_that_there_are() -> None:
    parts = [name.split(".") for name in known_settings()]
    known = {".".join(each[start:]) for each in parts for start in range(len(each))} | set(argument_types())
    known |= {each.name for each in dataclasses.fields(Grid)}
    sources = (path.read_text("utf-8") for path in Path(cwdpo.__file__).parent.rglob("*.py"))
    trees = [ast.parse(text) for text in sources if "setting=" in text or "about(" in text]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = set()
    for call in calls:
        kind = call.func.id if isinstance(call.func, ast.Name) else ""
        if kind in ("ConfigError", "UserError", "about"):
            values = call.args if kind == "about" else [word.value for word in call.keywords if word.arg == "setting"]
            inside = [node.value for value in values for node in ast.walk(value) if isinstance(node, ast.Constant)]
            named |= {name for name in inside if isinstance(name, str)}
    assert len(named) > 30
    assert named - known == set()
