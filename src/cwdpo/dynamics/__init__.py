"""Learning dynamics as formulae: what one gradient step does to log-probs, before any model is asked.

After Ren and Sutherland, "Learning Dynamics of LLM Finetuning" (ICLR 2025, arXiv 2407.10490), whose decomposition
arXiv 2510.11978 carries to vision-language models:

    Delta lbar(y|x_o) ~ -eta * A(x_o) K(x_o, x_u) G(x_u, y_u)

:mod:`cwdpo.evaluation.influence` measures it on a real model.
"""

from cwdpo.dynamics.decomposition import apply_belief_geometry, belief_geometry, contract, mean_logprob_direction
from cwdpo.dynamics.residuals import cw_dpo_pulls, loser_push, sft_pull, token_residual
from cwdpo.dynamics.squeezing import gains_share, push_down, push_down_repeatedly

__all__ = [
    "apply_belief_geometry",
    "belief_geometry",
    "contract",
    "cw_dpo_pulls",
    "gains_share",
    "loser_push",
    "mean_logprob_direction",
    "push_down",
    "push_down_repeatedly",
    "sft_pull",
    "token_residual",
]
