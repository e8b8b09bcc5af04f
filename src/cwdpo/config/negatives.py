"""The recipe's ``negatives`` section: answers sampled from the policy while it trains."""

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


def _checked_refresh(refresh: str | int) -> str | int:
    if isinstance(refresh, int) and refresh < 1:
        raise ConfigError(f"negatives.refresh is {refresh}, but counts steps. Write 1 or more, epoch or auto.")
    return refresh


def _checked_hardness(rule: float | str | None) -> float | str | None:
    if isinstance(rule, str) and not is_quantile(rule):
        raise ConfigError(
            f"negatives.drop_easier_than is {rule!r}. Write quantile:q with 0 < q < 1 (such as quantile:0.1), a number "
            "of nats per token, at most 0, or null."
        )
    if isinstance(rule, int | float) and rule > 0:
        raise ConfigError(
            f"negatives.drop_easier_than is {rule}, but log-probabilities are never positive. Did you mean {-rule}?"
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

    batch_size: Annotated[int, limit("negatives.batch_size", at_least=1, advice="Try 32.")] = 32
    """Answers sampled at one time. Part of what the samples follow from, like the seed."""

    max_overlap: Annotated[
        float | None, limit("negatives.max_overlap", above=0, at_most=1, advice="Write null to keep close ones.")
    ] = None
    """Drop samples whose n-gram overlap with a right answer is at least this. Null: hard negatives are close ones."""

    drop_easier_than: Annotated[float | str | None, AfterValidator(_checked_hardness)] = None
    """Drop samples with lbar under the policy below this, nats per token, or below ``quantile:q`` of a refresh's."""

    judge: Annotated[str | None, AfterValidator(checked_judge)] = None
    """What says which answers are right and so no negatives: ``module:function``, ``same_words``, or a server as
    ``URL#MODEL``; see docs/on_policy.md."""

    endpoint: str | None = None
    """Sample from this OpenAI-compatible server, which is told to load each refresh's adapter; null samples here."""

    on_error: Literal["continue", "stop"] = "continue"
    """Where sampling fails: go on with the negatives there are, or stop with a checkpoint."""
