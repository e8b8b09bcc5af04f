"""The recipe's ``negatives`` section: answers sampled from the policy while it trains."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from cwdpo.config.fractions import check_fraction
from cwdpo.config.judges import checked_judge
from cwdpo.config.limits import STRICT, is_quantile, limit
from cwdpo.errors import ConfigError


def _checked_share(share: float | list[list[float]]) -> float | list[list[float]]:
    check_fraction(share, "negatives.on_policy_fraction")
    return share


def _checked_level(level: float | list[list[float]] | str | None) -> float | list[list[float]] | str | None:
    if level is not None and not isinstance(level, str):
        check_fraction(level, "negatives.curriculum", "level")
    return level


def _checked_refresh(refresh: str | int) -> str | int:
    if isinstance(refresh, int) and refresh < 1:
        raise ConfigError(f"negatives.refresh is {refresh}, but counts steps. Write 1 or more, epoch or auto.")
    return refresh


def _checked_hardness(rule: float | str | None) -> float | str | None:
    if (isinstance(rule, str) and not is_quantile(rule)) or (isinstance(rule, float) and math.isnan(rule)):
        raise ConfigError(
            f"negatives.drop_easier_than is {rule!r}. Write quantile:q with 0 < q < 1 (such as quantile:0.1), a number "
            "of nats per token, at most 0, or null."
        )
    if isinstance(rule, int | float) and rule > 0:
        raise ConfigError(
            f"negatives.drop_easier_than is {rule}, but log-probabilities are never positive. Did you mean {-rule}?"
        )
    return rule


def _checked_similarity(rule: float | str | None) -> float | str | None:
    if (isinstance(rule, str) and not is_quantile(rule)) or (isinstance(rule, float) and math.isnan(rule)):
        raise ConfigError(
            f"negatives.drop_ches_above is {rule!r}. Write quantile:q with 0 < q < 1 (such as quantile:0.9), a number, "
            "or null."
        )
    return rule


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NegativesConfig:
    """On-policy negatives. ``negatives: null`` trains on the rows' own alone."""

    on_policy_fraction: Annotated[float | list[list[float]], AfterValidator(_checked_share)] = 0.5
    """Share of negatives that come from the policy, or a schedule: points ``[progress, share]`` joined by straight
    lines, such as ``[[0, 0], [0.5, 0.8]]``; progress goes from 0 to 1 over stage 2."""

    refresh: Annotated[int | Literal["epoch", "auto"], AfterValidator(_checked_refresh)] = "epoch"
    """When to sample anew: every epoch, every so many steps, or ``auto``: when the mean w_c of the sampled negatives
    has fallen to half of what it was, so that they hardly teach any more."""

    k: Annotated[int, limit("negatives.k", at_least=1, advice="Try 1.")] = 1
    """Answers sampled for each prompt; the more, the more prompts keep one after verification."""

    per_prompt: Annotated[
        int | None, limit("negatives.per_prompt", at_least=1, advice="Write null for as many as the row has.")
    ] = None
    """Negatives of a prompt in a step, from both sources; null takes as many as the row has. The loss is their mean."""

    temperature: Annotated[float, limit("negatives.temperature", above=0, advice="Try 1.0.")] = 1.0
    top_p: Annotated[float, limit("negatives.top_p", above=0, at_most=1, advice="Write 1.0 for all tokens.")] = 1.0
    """Sample from the smallest set of tokens with this probability only."""

    max_new_tokens: Annotated[int, limit("negatives.max_new_tokens", at_least=1, advice="Try 256.")] = 256
    """Longest sample; one that does not end by then is dropped, because the policy never said it."""

    batch_size: Annotated[int, limit("negatives.batch_size", at_least=1, advice="Try 64.")] = 64
    """Answers sampled at one time: fewer take less memory, more less time. Samples follow from it, as from the seed."""

    max_overlap: Annotated[
        float | None, limit("negatives.max_overlap", above=0, at_most=1, advice="Write null to keep close ones.")
    ] = None
    """Drop samples whose n-gram overlap with a right answer is at least this. Null: hard negatives are close ones."""

    length_gap: Annotated[
        float | None, limit("negatives.length_gap", above=0, advice="Write null to keep all lengths.")
    ] = None
    """Drop samples whose number of words differs from every right answer's by more than this share of it."""

    drop_easier_than: Annotated[float | str | None, AfterValidator(_checked_hardness)] = None
    """Drop negatives with lbar under the policy below this, nats per token, or below ``quantile:q`` of a refresh's: the
    samples, and the rows' own, which are only taken where nothing else is left."""

    drop_ches_above: Annotated[float | str | None, AfterValidator(_checked_similarity)] = None
    """The same for negatives whose length-normalised CHES similarity to the right answer under the policy (arXiv
    2410.08847) is above this, or above ``quantile:q``: pushing them down drags the right answer along."""

    curriculum: Annotated[float | list[list[float]] | Literal["auto"] | None, AfterValidator(_checked_level)] = None
    """Which of its candidates, ordered by lbar under the policy, a prompt takes: a level from 0, the easiest that is
    hard enough, to 1, the hardest; points ``[progress, level]``; or ``auto``: probes drive it. Null: any of them."""

    judge: Annotated[str | None, AfterValidator(checked_judge)] = None
    """What says which answers are right and so no negatives: ``module:function``, ``same_words``, or a server as
    ``URL#MODEL``; see docs/on_policy.md."""

    endpoint: str | None = None
    """Sample from this OpenAI-compatible server, which is told to load each refresh's adapter; null samples here."""

    on_error: Literal["continue", "stop"] = "continue"
    """Where sampling fails: go on with the negatives there are, or stop with a checkpoint."""

    @property
    def measures_own(self) -> bool:
        """Whether the rows' own negatives are measured under the policy at every refresh, beside the samples."""
        return any(rule is not None for rule in (self.curriculum, self.drop_easier_than, self.drop_ches_above))


def check_curriculum(
    negatives: NegativesConfig | None, *, every: int | str | None, groups: str | Sequence[str]
) -> None:
    """Refuse a curriculum that probes are to drive, where they cannot or would not do so alike in a resumed run.

    Args:
        negatives: the recipe's section.
        every: ``probes.every``; None where there are no probes.
        groups: ``probes.groups``.

    Raises:
        ConfigError: says what to write.
    """
    if negatives is None or negatives.curriculum != "auto":
        return
    told = "negatives.curriculum is auto, which the probes drive"
    if every is None:
        raise ConfigError(
            f"{told}, but probes is null. Write `probes: {{every: 10}}`, or `curriculum: [[0, 0], [1, 1]]`."
        )
    if not isinstance(every, int):
        raise ConfigError(
            f"{told}, but with `probes.every: {every}` the machine's speed would choose the negatives. Write a number "
            "of steps, such as `probes: {every: 10}`."
        )
    if not isinstance(groups, str) and not {"gentle", "rejected"} & set(groups):
        raise ConfigError(f"{told} by the margin, but probes.groups has no negatives. Add gentle or rejected to it.")
