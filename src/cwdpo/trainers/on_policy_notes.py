"""What users are told of on-policy negatives: settings that cannot work or do nothing, and what came of a refresh."""

import logging
from typing import TYPE_CHECKING, Any

from cwdpo.config.negatives import NegativesConfig
from cwdpo.errors import ConfigError
from cwdpo.negatives.refreshes import Refresh
from cwdpo.trainers.curriculum import has_choice

if TYPE_CHECKING:
    from cwdpo.trainers.cw_dpo import CWDPOTrainer

logger = logging.getLogger(__name__)


def check_settings(trainer: "CWDPOTrainer", settings: NegativesConfig, *, samples: bool) -> None:
    """Refuse settings that cannot work together, and name those that do nothing.

    Args:
        trainer: whose policy is sampled.
        settings: the recipe's ``negatives``.
        samples: whether any step asks for samples.

    Raises:
        ConfigError: says what to write.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "negatives are sampled from whole weights, which FSDP and DeepSpeed divide among the GPUs. Train with DDP "
            "(torchrun alone), or sample beforehand with `cwdpo negatives sample` and leave `negatives` out."
        )
    if settings.refresh == "auto" and not trainer.cools:
        raise ConfigError(
            "negatives.refresh is auto, which watches the cooling weight, but cooling is off or constant. "
            "Write `refresh: epoch` or a number of steps."
        )
    if samples:
        return
    if settings.curriculum is None:
        logger.warning(
            "negatives.on_policy_fraction is 0, so nothing is sampled. Write a share such as 0.5, or `negatives: null`."
        )
    elif settings.refresh == "auto":
        raise ConfigError(
            "negatives.refresh is auto, which watches sampled negatives, but negatives.on_policy_fraction is 0. Write "
            "`refresh: epoch` or a number of steps."
        )


def tell(refresh: Refresh) -> None:
    """Say what came of a refresh."""
    if refresh.error is not None:
        logger.warning("sampling negatives failed (%s); training goes on with what it has", refresh.error)
        return
    counts = refresh.counts()
    own, kept = counts.pop("dataset", 0), counts.pop("kept", 0)
    dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
    logger.info(
        "step %d: %d new negatives (dropped: %s); %d of the rows measured", refresh.step, kept, dropped or "none", own
    )
    if not kept and (dropped or not own):
        logger.warning("step %d: no sampled answer may be a negative (%s)", refresh.step, dropped or "none sampled")


def warn_without_choice(rows: Any, settings: NegativesConfig, *, samples: bool) -> None:
    """Say so where the curriculum has nothing to choose from."""
    if has_choice((rows[i][1] for i in range(len(rows))), settings, samples=samples):
        return
    logger.warning(
        "negatives.curriculum has no effect: no prompt has more candidates than it takes (%s, per_prompt is %s). Write "
        "a larger k, a smaller per_prompt, or give rows more negatives.",
        f"k is {settings.k}" if samples else "nothing is sampled",
        "null" if settings.per_prompt is None else settings.per_prompt,
    )
