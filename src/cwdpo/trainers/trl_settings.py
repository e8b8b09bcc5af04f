"""The settings of TRL's ``DPOConfig`` (1.16) that have another name here: each does what it says, has nothing to do and
says so once, or is refused with what to write instead.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from cwdpo.config.checking import problem_with
from cwdpo.config.foreign import NEAR_LOSSES
from cwdpo.config.recipe import LossParameters, PreferenceLoss, Stage2Config
from cwdpo.errors import ConfigError

logger = logging.getLogger(__name__)

_LOSSES: Mapping[str, PreferenceLoss] = {
    "sigmoid": "sigmoid", "ipo": "ipo", "robust": "robust", "bco_pair": "bco", "apo_zero": "apo_zero",
    "apo_down": "apo_down", "sft": "nll",
}  # fmt: skip
"""TRL's name of a loss, and ours."""

_NOT_THE_SAME = {
    "bco_pair": "loss_type bco_pair is `loss='bco'` here: its delta is a running mean of the rewards, and 0 in TRL.",
    "sft": "loss_type sft is `loss='nll'` here: a mean over each answer's tokens and then over answers; TRL's is one "
    "mean over all tokens of a batch.",
}

_SAME_LIMITS: Mapping[str, tuple[type, str]] = {
    "ld_alpha": (LossParameters, "ld_dpo_alpha"),
    "label_smoothing": (LossParameters, "robust_noise"),
    "precompute_ref_batch_size": (Stage2Config, "reference_batch_size"),
}
"""Whose limits hold for a setting of TRL's."""

_LOADING = ("dtype", "attn_implementation", "quantization_config", "trust_remote_code")
"""What ``model_init_kwargs`` may hold."""


@dataclass
class TRLSettings:
    """Fields of ``DPOConfig`` under TRL's names. None, where that is not TRL's default, is for ours to decide."""

    model_init_kwargs: dict[str, Any] | str | None = None
    """How a model that is given by its name is loaded: ``dtype``, ``attn_implementation``, ``quantization_config``."""

    trust_remote_code: bool = False
    router_aux_loss_coef: float | None = None
    disable_dropout: bool = True
    """Also of a model that is given loaded; dropout of the adapters stays as their configuration says."""

    dataset_num_proc: int | None = None
    truncation_mode: str = "keep_start"
    padding_free: bool = False
    pad_to_multiple_of: int | str | None = "auto"
    precompute_ref_log_probs: bool | None = None
    """True is ``reference="cached"``, False ``reference="live"``."""

    precompute_ref_batch_size: int | None = None
    """``reference_batch_size``."""

    loss_type: list[str] | None = None
    """TRL's names of losses: ``loss`` is filled from it and from ``loss_weights``, ``ld_alpha``, ``use_weighting``."""

    loss_weights: list[float] | None = None
    ld_alpha: float | None = None
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    label_smoothing: float = 0.0
    """``robust_noise``, in loss type ``robust``."""

    use_weighting: bool = False
    discopop_tau: float = 0.05
    activation_offloading: bool = False
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    pad_token: str | None = None

    def translated(self) -> dict[str, Any]:
        """Values of our own settings that these stand for; a ConfigError names one that nothing here does."""
        for name, (section, key) in _SAME_LIMITS.items():
            problem = "" if getattr(self, name) is None else problem_with(section, key, getattr(self, name))
            if problem:
                raise ConfigError(f"{name} {problem}")
        self._refuse_what_is_not_here()
        self._say_what_has_nothing_to_do()
        found: dict[str, Any] = {}
        if self.precompute_ref_log_probs is not None:
            found["reference"] = "cached" if self.precompute_ref_log_probs else "live"
        if self.precompute_ref_batch_size is not None:
            found["reference_batch_size"] = self.precompute_ref_batch_size
        return found | self._loss()

    def loading_options(self) -> dict[str, Any]:
        """The options of :func:`cwdpo.models.loading.load_policy` that ``model_init_kwargs`` name."""
        given: object = self.model_init_kwargs or {}
        if isinstance(given, str):  # from a command line
            with contextlib.suppress(ValueError):
                given = json.loads(given)
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"model_init_kwargs is {given!r}, but must be a dictionary such as {{'dtype': 'bfloat16'}}."
            )
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "dtype": "auto"}
        for name, value in given.items():
            if name in ("dtype", "torch_dtype"):
                options["dtype"] = "auto" if value is None else str(value).removeprefix("torch.")
            elif name in _LOADING:
                options["quantization" if name == "quantization_config" else name] = value
            elif name not in ("device_map", "use_cache"):  # the Trainer places models, and training has no cache
                advice = (
                    "Download that revision (`hf download MODEL --revision R`) and give its directory"
                    if name == "revision"
                    else "Load the model yourself, and give it as `model`"
                )
                raise ConfigError(f"model_init_kwargs holds {name!r}, which is not read here. {advice}.")
        return options

    def _loss(self) -> dict[str, Any]:
        """What ``loss`` and its parameters are, by TRL's settings of them; nothing where none is set."""
        if self.loss_type is None:
            for name in ("loss_weights", "ld_alpha", "label_smoothing"):
                if getattr(self, name):
                    raise ConfigError(
                        f"{name} belongs to loss_type, which is not set. Write loss_type=['sigmoid'] too."
                    )
        types = ["sigmoid"] if self.loss_type is None else list(self.loss_type)
        for name in types:
            if name not in _LOSSES:
                near = f"Write `loss={name!r}`" if name in get_args(PreferenceLoss) else NEAR_LOSSES.get(name)
                why = f"which is not computed here. {near}" if near else f"and known are {', '.join(_LOSSES)}"
                raise ConfigError(f"loss_type holds {name!r}, {why}; docs/losses.md lists all.")
            if name in _NOT_THE_SAME:
                say_once(_NOT_THE_SAME[name])
        if len(set(types)) < len(types):
            raise ConfigError(f"loss_type holds a name twice: {', '.join(types)}. Write each once, with its weight.")
        weights = [1.0] * len(types) if self.loss_weights is None else self.loss_weights
        if len(weights) != len(types):
            raise ConfigError(
                f"loss_weights has {len(weights)} numbers, and loss_type {len(types)} losses. Write as many."
            )
        names: list[PreferenceLoss] = [_LOSSES[name] for name in types]
        found: dict[str, Any] = {}
        if self.label_smoothing:
            if "robust" not in names:
                raise ConfigError("label_smoothing belongs to loss_type robust (as in TRL). Add it, or take this out.")
            found["robust_noise"] = self.label_smoothing
        elif "robust" in names:
            found["robust_noise"] = 0.0
        if self.ld_alpha is not None:
            if self.precompute_ref_log_probs:
                raise ConfigError(
                    "precompute_ref_log_probs is True, but ld_alpha reads log-probs of single tokens, and what is "
                    "precomputed are sums over answers. Take one of them out."
                )
            names = _replaced(names, "ld_dpo", "ld_alpha")
            # the cache holds sums over tokens
            found |= {"ld_dpo_alpha": self.ld_alpha, "reference": "live"}
        if self.use_weighting:
            names = _replaced(names, "wpo", "use_weighting")
        if self.loss_type is None and not self.use_weighting:
            return found
        total: dict[PreferenceLoss, float] = dict(zip(names, map(float, weights), strict=True))
        return found | {"loss": names[0] if list(total.values()) == [1.0] else total}

    def _refuse_what_is_not_here(self) -> None:
        refused = {
            "router_aux_loss_coef": (
                bool(self.router_aux_loss_coef),
                "the load-balancing loss of experts is not computed here. Write 0.0, or leave it out",
            ),
            "truncation_mode": (
                self.truncation_mode != "keep_start",
                "nothing is truncated here: a row longer than max_length stops the run. Leave it out",
            ),
            "f_divergence_type": (
                self.f_divergence_type != "reverse_kl",
                "the rewards here are those of reverse_kl. Leave it out",
            ),
            "activation_offloading": (
                self.activation_offloading,
                "activations are not moved to the CPU here. Write activation_checkpointing=True, or "
                "max_tokens_per_batch=8192",
            ),
            "sync_ref_model": (
                self.sync_ref_model,
                "the reference stays the model that training started from. Start a second training from the first "
                "one's result, which is then the reference",
            ),
        }
        for name, (is_wrong, why) in refused.items():
            if is_wrong:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but {why}.")

    def _say_what_has_nothing_to_do(self) -> None:
        idle = {
            "dataset_num_proc": (
                self.dataset_num_proc is not None,
                "rows are encoded when they are needed, by dataloader_num_workers processes",
            ),
            "padding_free": (self.padding_free, "a prompt and its answers share one row as it is"),
            "pad_to_multiple_of": (
                self.pad_to_multiple_of not in ("auto", None),
                "rows are padded to the longest of their pass",
            ),
            "f_alpha_divergence_coef": (self.f_alpha_divergence_coef != 0.5, "f_divergence_type is reverse_kl"),
            "discopop_tau": (self.discopop_tau != 0.05, "loss_type discopop is not here"),
            "ref_model_mixup_alpha": (self.ref_model_mixup_alpha != 0.6, "sync_ref_model is False"),
            "ref_model_sync_steps": (self.ref_model_sync_steps != 512, "sync_ref_model is False"),
            "pad_token": (self.pad_token is not None, "padding is masked, whatever token it is"),
        }
        for name, (is_set, why) in idle.items():
            if is_set:
                say_once(f"{name}={getattr(self, name)!r} has no effect: {why}.")


def _replaced(names: list[PreferenceLoss], by: PreferenceLoss, setting: str) -> list[PreferenceLoss]:
    """TRL changes a loss by a switch where it is a loss of its own here; both know it for DPO's loss alone."""
    others = [name for name in names if name != "sigmoid"]
    if others:
        raise ConfigError(
            f"{setting} changes loss_type sigmoid alone here ({by}), not {' and '.join(others)}. Take it out."
        )
    return [by]


@functools.cache
def say_once(text: str) -> None:
    """Log a warning, the first time in this process."""
    logger.warning("%s", text)
