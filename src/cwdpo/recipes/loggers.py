"""Where a recipe's runs are logged beside their own files: TensorBoard, or what ``trainer.report_to`` says."""

import difflib
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from cwdpo.errors import ConfigError

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"

_INSTALL = {
    "azure_ml": "azureml-core",
    "flyte": "flytekit",
    "trackio": "'cwdpo[trackio]'",
    "wandb": "'cwdpo[wandb]'",
}
"""What to install for a logger whose package has another name, or is an extra of ours."""


def wanted_loggers(trainer: Mapping[str, Any]) -> list[str]:
    """The loggers of a stage, by transformers' names; TensorBoard where ``report_to`` is not given.

    Args:
        trainer: the recipe's ``trainer`` settings, under the stage's own.

    Raises:
        ConfigError: one is unknown, or not installed.
    """
    if "report_to" not in trainer:
        if find_spec(TENSORBOARD) is not None:
            return [TENSORBOARD]
        logger.warning("no TensorBoard files: tensorboard is not installed. Run `pip install tensorboard`.")
        return []
    given = trainer["report_to"]
    names = [str(name) for name in (given if isinstance(given, list | tuple) else [given]) if name is not None]
    if names == ["all"]:
        return _installed()
    if names in ([], ["none"]):
        return []
    for name in names:
        _check(name)
    return list(dict.fromkeys(names))


def _check(name: str) -> None:
    known = sorted(INTEGRATION_TO_CALLBACK)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Write none, all or a list of: {', '.join(known)}."
        raise ConfigError(f"trainer.report_to: unknown logger `{name}`. {hint}")
    if name not in _installed():
        raise ConfigError(
            f"trainer.report_to names `{name}`, which is not installed. Run `pip install {_INSTALL.get(name, name)}`, "
            "or take it out of trainer.report_to."
        )


def _installed() -> list[str]:
    """Loggers that can be used here."""
    found: list[str] = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if TENSORBOARD in found and find_spec(TENSORBOARD) is None:  # tensorboardX, which is not what writes here
        found.remove(TENSORBOARD)
    return found + ["flyte"] * (find_spec("flytekit") is not None)
