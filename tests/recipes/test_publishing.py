"""Uploads: what would fail at the end is refused before training; what is uploaded, and what is said if it fails."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from cwdpo.config.recipe import DataConfig, ModelConfig, Recipe, Stage2Config
from cwdpo.errors import ConfigError, UserError
from cwdpo.recipes.publishing import check_hub, hub_name, is_of_hub, publish
from cwdpo.records import RunDirectory

ME = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}


class Hub(HfApi):
    """The hub in memory: who is logged in, or what it raises; and what was uploaded."""

    def __init__(self, answer: Any = ME) -> None:
        super().__init__()
        self.answer, self.uploads = answer, list[Any]()

    def whoami(self, *_: object, **__: object) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.uploads.append(("repo", repo_id, options["private"]))
        return type("Url", (str,), {"repo_id": f"me/{repo_id.rpartition('/')[2]}"})("https://hub/me/mine")

    def upload_folder(self, **options: Any) -> Any:
        self.uploads.append(("folder", options["repo_id"], Path(options["folder_path"]).name))

    def upload_file(self, **options: Any) -> Any:
        self.uploads.append(("file", options["repo_id"], options["path_in_repo"]))


def recipe(tmp_path: Path, **trainer: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path="m"),
        data=DataConfig(train="rows.jsonl"),
        stage2=Stage2Config(),
        trainer={"push_to_hub": True} | trainer,
        output_dir=str(tmp_path / "mine"),
    )


def refused(status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://hub")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request))


def test_a_good_start(tmp_path: Path) -> None:
    assert hub_name(recipe(tmp_path)) == "mine"
    for name in ("mine", "me/mine", "lab/mine"):
        check_hub(recipe(tmp_path, hub_model_id=name), lambda token: Hub())
    assert hub_name(recipe(tmp_path, push_to_hub=False)) is None
    check_hub(recipe(tmp_path, push_to_hub=False), lambda token: Hub(AssertionError()))


@pytest.mark.parametrize(
    ("trainer", "answer", "expected"),
    [
        ({"hub_model_id": "a b"}, ME, "trainer.hub_model_id is 'a b', which cannot be a name on the hub"),
        ({"hub_model_id": "you/mine"}, ME, "is you/mine, but your token is of me, lab"),
        ({"hub_strategy": "all_checkpoints"}, ME, "trainer.hub_strategy has no effect"),
        ({}, LocalTokenNotFoundError("x"), "you are not logged in to the hub. Run `hf auth login`"),
        ({}, refused(401), "the hub does not accept your token"),
        ({}, refused(500), "the hub cannot be reached (no)"),
        ({}, OfflineModeIsEnabled("offline mode is on"), "the hub cannot be reached (offline mode is on)"),
        ({}, httpx2.ConnectError("no route"), "the hub cannot be reached (no route). Train without it"),
        ({}, ME | {"auth": {"accessToken": {"role": "read"}}}, "your token may only read"),
    ],
)
def test_what_would_fail_is_refused_in_a_line(
    tmp_path: Path, trainer: dict[str, Any], answer: object, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_hub(recipe(tmp_path, **trainer), lambda token: Hub(answer))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_card_and_report_are_uploaded(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    run.root.mkdir()
    run.report.write_text("page")
    hub = Hub()
    publish(run, recipe(tmp_path, hub_private_repo=True), lambda token: hub)
    assert hub.uploads == [("repo", "mine", True), ("folder", "me/mine", "stage2"), ("file", "me/mine", "report.html")]
    assert run.kept("hub") == {"page": "https://hub/me/mine"}


def test_a_failed_upload_says_how_to_do_it_later(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    with pytest.raises(
        UserError, match=r"is done, but .* could not be uploaded to mine: cut off\. Do it later: `hf upl"
    ):
        publish(run, recipe(tmp_path), lambda token: Hub(httpx2.ConnectError("cut off")))


def test_the_trainer_does_not_upload_too() -> None:
    assert is_of_hub("push_to_hub")
    assert is_of_hub("hub_token")
    assert not is_of_hub("learning_rate")
