"""Upload a finished run's model to the Hugging Face hub, with its card and its report; checked before training.

A recipe asks for it with the Trainer's own settings: ``trainer: {push_to_hub: true, hub_model_id: owner/name}``. The
Trainer itself would upload every checkpoint of both stages to one place, so these settings do not reach it.
"""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, yet not in its list

from cwdpo.config.recipe import Recipe
from cwdpo.errors import ConfigError, UserError
from cwdpo.models.loading import one_line
from cwdpo.records import RunDirectory

_SETTINGS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "hub_revision")
_NOT_USED = ("hub_strategy", "hub_always_push")
_UNREACHABLE = (HTTPError, OSError)
"""Of which offline mode is one."""

Api = Callable[[str | None], HfApi]


def is_of_hub(key: str) -> bool:
    """Whether a setting of the Trainer is about the hub, and so is not the Trainer's here."""
    return key in (*_SETTINGS, *_NOT_USED)


def hub_name(recipe: Recipe) -> str | None:
    """Where the model will be uploaded; without an owner, it is the user's. None where the recipe asks for nothing."""
    settings = _settings(recipe)
    if not settings.get("push_to_hub"):
        return None
    return str(settings.get("hub_model_id") or Path(recipe.output_dir).name)


def check_hub(recipe: Recipe, api: Api = lambda token: HfApi(token=token)) -> None:
    """Refuse, with a ConfigError, an upload that would fail at the end: its name, the login, the owner, the network."""
    name, settings = hub_name(recipe), _settings(recipe)
    if name is None:
        return
    for key in _NOT_USED:
        if key in settings:
            raise ConfigError(
                f"trainer.{key} has no effect: the finished model is uploaded once, and no checkpoint. Take it out.",
                setting=key,
            )
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(
            f"trainer.hub_model_id is {name!r}, which cannot be a name on the hub. Write owner/name, of letters, "
            "digits, -, _ and dots.",
            setting="hub_model_id",
        ) from None
    try:
        who = api(settings.get("hub_token")).whoami()
    except LocalTokenNotFoundError:
        raise _login("you are not logged in to the hub") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise _login("the hub does not accept your token") from None
        raise _unreachable(one_line(error)) from None
    except _UNREACHABLE as error:
        raise _unreachable(one_line(error)) from None
    owners = [str(who["name"]), *(str(one["name"]) for one in who.get("orgs", []))]
    owner = name.partition("/")[0]
    if "/" in name and owner not in owners:
        raise ConfigError(
            f"trainer.hub_model_id is {name}, but your token is of {', '.join(owners)}. Write one of these before the "
            "slash, or log in as another: `hf auth login`.",
            setting="hub_model_id",
        )
    if _role(who) == "read":
        raise _login("your token may only read")


def publish(run: RunDirectory, recipe: Recipe, api: Api = lambda token: HfApi(token=token)) -> None:
    """Upload the last stage's model, its card and the run's report, if the recipe asks for it; the run keeps where.

    A UserError where it fails, with the command that does it later: the run is whole.
    """
    name, settings = hub_name(recipe), _settings(recipe)
    if name is None:
        return
    folder = run.stage(list(recipe.stages)[-1])
    hub = api(settings.get("hub_token"))
    where: dict[str, Any] = {"revision": settings.get("hub_revision")}
    try:
        made = hub.create_repo(name, private=settings.get("hub_private_repo"), exist_ok=True)
        if where["revision"]:
            hub.create_branch(made.repo_id, branch=where["revision"], exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=str(folder), commit_message="Model by cwdpo", **where)
        if run.report.is_file():
            hub.upload_file(
                repo_id=made.repo_id, path_or_fileobj=str(run.report), path_in_repo=run.report.name, **where
            )
    except _UNREACHABLE as error:
        raise UserError(
            f"the run in {run.root} is done, but its model could not be uploaded to {name}: {one_line(error)}. Do it "
            f"later: `{shlex.join(['hf', 'upload', name, str(folder)])}`."
        ) from error
    run.keep("hub", {"page": str(made)})


def _settings(recipe: Recipe) -> Mapping[str, Any]:
    """The shared settings of the Trainer, and those of the last stage, whose model is uploaded."""
    return recipe.trainer | list(recipe.stages.values())[-1].trainer


def _role(who: Mapping[str, Any]) -> str:
    token = who.get("auth", {}).get("accessToken", {})
    return str(token.get("role", ""))


def _login(why: str) -> ConfigError:
    return ConfigError(
        f"trainer.push_to_hub is true, but {why}. Run `hf auth login` with a token that may write, or train without "
        "it: --trainer.push_to_hub false.",
        setting="push_to_hub",
    )


def _unreachable(why: str) -> ConfigError:
    return ConfigError(
        f"trainer.push_to_hub is true, but the hub cannot be reached ({why}). Train without it, "
        "--trainer.push_to_hub false, and upload the model later: `hf upload OWNER/NAME RUN/stage2`.",
        setting="push_to_hub",
    )
