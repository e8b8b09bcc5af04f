"""Every limit that decides whether something is a finding, with its unit and its reason. Nowhere else is one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The limits of all signs. Nats are natural-log units of probability; "per token" is a mean over an answer."""

    # --- noise ---

    # logged steps a stage must have: each is one batch or a few, and a trend needs some noise to be held against
    min_metric_readings: int = 8
    min_probe_readings: int = 3  # of a probe group: the answers are the same each time, so little noise is in them
    # a change must be this many of its own standard errors: about one false alarm in 15,000 on white noise
    sigmas: float = 4.0

    # --- chosen answers losing probability ---

    min_fall_readings: int = 6  # logged steps: a fall is held against the noise of its own curve, so fewer will do
    # of the chosen answers' NLL at the start: a fall by this much from their best level counts. Of the recorded runs
    # of language models those under DPO fell by 4 to 200 %, and healthy ones wander by less than 1
    fall_share: float = 0.02
    fall_least: float = 0.02  # nats per token: a smaller fall is never a finding, however sure the model was at first
    # nats an answer: the same where lengths are unknown
    fall_answer: float = 0.5
    # share of what rejected answers moved, where only rewards are there and the NLL is unknown: a smaller fall is none
    fall_of_rejected: float = 0.03
    # of these limits where readings show that probability gathers on the argmax: the fall has a witness. Where they
    # show the opposite, the limits are larger by as much: cooled runs dip in their first third while entropy rises
    fall_witnessed: float = 0.5
    sigmas_witnessed: float = 3.5  # standard errors that a fall must be, with a witness
    fall_short: float = 1.5  # times the limit where there are too few readings to know their noise
    min_fall_same: int = 2  # readings of answers that are the same each time: a short run has one at each end
    # times the limit where there are but two of these, as nothing says that the second is no exception: a tenth of the
    # NLL, and 0.1 nats per token
    fall_two: float = 5.0
    # nats an answer (reward / beta): a first reading this near to 0 means that log-ratios began at 0
    start_near: float = 1.0
    margin_rise: float = 1.0  # nats an answer (reward margin / beta): less is no growth of the margin
    margin_rise_token: float = 0.1  # the same in nats per token
    entropy_rise: float = 0.05  # share of the starting entropy: a rise by this much contradicts squeezing
    entropy_fall: float = 0.025  # a fall by this much supports it; half, as falls are the usual thing
    mass_shift: float = 0.01  # probability: the same for `argmax_mass` and `top1`

    # --- negatives ---

    # nats per token between chosen and rejected at the start: e^2, a token 7 times less likely, needs no lesson
    easy_gap: float = 2.0
    easy_ratio: float = 2.0  # the same where lengths are unknown: rejected NLL over chosen, both summed over answers
    # share of the rejected answers' NLL at the start by which it rose. Plain DPO on the demo: 0.3; cooled: 0.04
    easy_fall: float = 0.15
    easy_accuracy: float = 0.95  # share of pairs in the right order above which they have nothing left to teach
    # nats per token that shuffled or unrelated probe answers fell: they were never going to be said
    free_fall: float = 1.0
    shut_weight: float = 0.05  # w_c below which a negative plays no part: 1/20 of the pull it has in DPO
    # `cooling/p90` above this: a tenth of the negatives still count, so cooling picks and does not smother
    open_tail: float = 0.2
    saturated_margin: float = 4.0  # beta included: sigmoid(-4) = 0.018 of the first step's gradient is left
    hard_accuracy: float = 0.9  # share of pairs in the right order below which hard negatives are left
    # nats per token between chosen and negatives (or less): these are hard by the model's own account
    hard_gap: float = 1.0
    chance_accuracy: float = 0.55  # share of pairs in the right order up to which it is at chance
    # nats per token by which rejected answers are likelier than chosen ones, beyond differences of style
    likelier: float = 0.1

    # --- the distribution ---

    ece_rise: float = 0.02  # probability: on the demo's scale DPO adds .027, SFT and cooled runs nothing
    # probe readings: two of them next to each other are often far apart
    min_calibration_readings: int = 5
    ece_sigmas: float = 3.0  # standard errors, as the number of tokens gives them, by which it must have risen
    ece_ratio: float = 1.5  # ... and times its start, so that a badly calibrated base is not blamed on the run
    # NLL over entropy of chosen tokens, against the start; a calibrated model keeps it, being surer and no better
    # raises it
    surprise_ratio: float = 1.25
    # share of the starting entropy that is left, where no NLL per token is there to hold against it
    entropy_collapse: float = 0.5
    # total variation to the reference: a tenth of all next-token probability has moved (demo: SFT .02, DPO .055, a
    # collapsed run .10)
    drift_tv: float = 0.1
    drift_js: float = 0.03  # nats, Jensen-Shannon to the reference; its most is log 2
    drift_chosen: float = 0.5  # nats per token by which chosen answers fell from the reference; rising is learning
    # nats per token that rejected answers moved: e^3, a token 20 times less likely than the reference has it
    drift_rejected: float = 3.0
    drift_answer: float = 50.0  # nats an answer, for either side, where lengths are unknown
    # and of the NLL at the start: a long answer moves by 50 nats in every run
    drift_share_chosen: float = 0.3
    drift_share_rejected: float = 1.0

    # --- shortcuts ---

    # difference of the mean lengths of chosen and rejected over their mean: below it length cannot explain much
    length_imbalance: float = 0.2
    # growth per token over what the summed margin promises per token; below it the margin is made of length
    length_share: float = 0.2
    length_bias: float = 0.2  # nats per token by which `longer` paraphrases gained on `shorter` ones, or lost
    # nats per token between an answer under its own image and under another or none: less, and nobody looked
    blind_gap: float = 0.05
    blind_shrink: float = 0.5  # share of the starting gap that is left
    blind_track: float = 0.9  # share of the chosen answers' change that also comes about under another image
    blind_move: float = 0.1  # nats per token of change before tracking means anything; also the gap that may shrink

    # --- optimisation ---

    # nats an answer (reward / beta) at step 0 or 1, when policy and reference should be one model, ...
    start_reward: float = 0.1
    start_reward_token: float = 0.01  # ... or nats per token if that is more: half precision rounds each a little
    # gradient norms that are not finite: half precision's loss scaling makes one or two, and skips them
    bad_gradients: int = 3
    stall_readings: int = 20  # logged steps before a run is called stalled; fewer may all lie in the warm-up
    stall_loss: float = 0.01  # share of log 2, the loss of a policy that has not moved, within which the loss is
    stall_move: float = 0.1  # nats an answer: below it neither side's log-probs have moved at all
    sft_rise: float = 0.1  # share by which a supervised loss rose: it should fall
    spike_ratio: float = 8.0  # gradient norm over the median of its neighbours, ...
    spike_scatter: float = 4.0  # ... and above it by so many times the neighbours' scatter, on a logarithmic scale
    spike_readings: float = 0.02  # share of readings that are spikes; fewer are ordinary bad luck, ...
    spike_least: int = 2  # ... and at least so many
    spike_huge: float = 50.0  # one of these is a finding by itself
