"""Answers of a model to prompts: batched generation for rows, for any processor of transformers."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, ProcessorMixin

from cwdpo.batch import eval_mode
from cwdpo.data.collate import estimate_lengths
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.decoding import decode
from cwdpo.engine import FeatureCache
from cwdpo.engine.layout import pass_groups
from cwdpo.memory import FittingPasses

logger = logging.getLogger(__name__)

_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("exponential_decay_length_penalty", "min_p", "top_h", "min_new_tokens", "bad_words_ids")),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias")),
    **dict.fromkeys(("guidance_scale", "watermarking_config")),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0.0),
    **dict.fromkeys(("num_beams", "num_return_sequences"), 1),
}
"""Every setting of a generation config that would change what is sampled, as it changes nothing."""


class Generated(NamedTuple):
    """One answer as a model gave it."""

    text: str
    """Without special tokens or surrounding space; a think block is whole, also where the prompt begins it."""

    ended: bool
    """False where it ran into ``max_new_tokens``, so that it is the beginning of an answer only."""


def generate_answers(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
    warn_of_cut: bool = True,
    encoder: Encoder | None = None,
    features: FeatureCache | None = None,
) -> list[str]:
    """The texts of :func:`generate`; how many answers ran into ``max_new_tokens`` is logged as a warning, unless
    ``warn_of_cut`` is False."""
    found = generate(
        model,
        processor,
        rows,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        encoder=encoder,
        features=features,
    )
    cut = sum(not answer.ended for answer in found)
    if cut and warn_of_cut:
        logger.warning("%d of %d answers were cut at max_new_tokens=%d; raise it", cut, len(rows), max_new_tokens)
    return [answer.text for answer in found]


def generate(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[Row],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    encoder: Encoder | None = None,
    features: FeatureCache | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Generated]:
    """Let the model answer every row's prompt; its train and eval modes are restored.

    Prompts are encoded as in training. Special tokens other than the end token (image placeholders, turn markers) are
    forbidden: a policy can sample them, and an answer that holds one cannot be scored. Samples come from the
    model's own distribution, changed by ``temperature`` and ``top_p`` alone: penalties and cut-offs of the checkpoint's
    generation config are switched off. In greedy decoding they stay in force.

    Args:
        model: a generative vision-language model, bare or with an adapter.
        processor: the model's processor, which is not changed.
        rows: only their prompts and images are read, with and without images mixed. The prompt of neighbours that are
            the same row is read once for all of them.
        batch_size: most answers at one time; those to prompts that may not share a pass
            (:func:`cwdpo.engine.layout.pass_groups`) are decoded apart. Prompts of similar length go together, unless
            answers are sampled: the samples of a row follow from its place.
        temperature: None decodes greedily; a number > 0 samples from the whole vocabulary (no top-k).
        top_p: sample only from the smallest set of tokens with this probability; needs a temperature.
        seed: the samples follow from it; torch's global random state is left as it was.
        encoder: of this processor, where one is at hand.
        features: of images that other passes keep and look up.
        progress: called with the number of answers so far.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be > 0; for greedy decoding write None")
    if top_p is not None and (temperature is None or not 0 < top_p <= 1):
        raise ValueError(
            f"top_p is {top_p} and temperature {temperature}; top_p needs a temperature and lies in (0, 1]"
        )
    if not rows:
        return []
    encoder = encoder or Encoder(processor)
    config = _generation_config(model, encoder, rows[0])
    config.update(
        **({} if temperature is None else _NEUTRAL),
        do_sample=temperature is not None,
        temperature=temperature or 1.0,
        top_p=top_p or 1.0,
        top_k=50 if temperature is None else 0,  # 50 is the default; greedy decoding warns of any other
        max_new_tokens=max_new_tokens,
    )
    order = list(range(len(rows)))
    if temperature is None and len(rows) > batch_size:
        lengths = estimate_lengths(
            rows.__getitem__, len(rows), lambda row: encoder.encode(row).prompt_tokens, answers=False
        )
        order.sort(key=lengths.__getitem__)
    answers: dict[int, Generated] = {}
    passes = FittingPasses("answers")
    device: torch.device = model.device  # type: ignore[assignment]  # of every model of transformers
    ends = torch.tensor(config.eos_token_id, device=device)
    with (
        eval_mode(model),
        _instead_of_own(model, config),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            batch = order[start : start + batch_size]
            prompts: list[dict[str, torch.Tensor]] = []
            openings: list[str] = []
            owners: list[int] = []
            for before, position in zip([None, *batch], batch, strict=False):
                if before is None or rows[position] is not rows[before]:
                    encoded = encoder.encode(rows[position])
                    prompts.append(encoded.prompt)
                    openings.append(encoded.opening)
                owners.append(len(prompts) - 1)
            for group in pass_groups(prompts):
                answered = [i for i, owner in enumerate(owners) if owner in group]
                together = [prompts[owner] for owner in group]
                places = [group.index(owners[i]) for i in answered]
                ids = decode(model, together, places, config, features=features, passes=passes)
                ended = torch.isin(ids, ends).any(dim=1).tolist()
                texts = processor.batch_decode(ids, skip_special_tokens=True)
                for i, text, end in zip(answered, texts, ended, strict=True):
                    answers[batch[i]] = Generated((openings[owners[i]] + text).strip(), end)
            progress(len(answers))
    return [answers[position] for position in range(len(rows))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    k: int = 1
    """Answers a prompt."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 32
    """Answers at one time; the samples of a local model depend on it, as they do on the seed."""


class Sampler(Protocol):
    """Draws answers to prompts."""

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """``k`` answers for each row; fewer where some could not be had."""
        ...


class LocalSampler:
    """Draws from a model in memory, with torch's random state left as it was."""

    def __init__(
        self,
        model: nn.Module,
        processor: ProcessorMixin,
        sampling: Sampling,
        *,
        encoder: Encoder | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        self.model, self.processor, self.sampling = model, processor, sampling
        self.encoder, self.features = encoder or Encoder(processor), features

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        settings = asdict(self.sampling)
        k = settings.pop("k")
        repeated = [row for row in rows for _ in range(k)]
        found = generate(
            self.model,
            self.processor,
            repeated,
            **settings,
            seed=seed,
            encoder=self.encoder,
            features=self.features,
        )
        return [found[start : start + k] for start in range(0, len(found), k)]


def chunks(indices: Sequence[int], sampling: Sampling) -> list[Sequence[int]]:
    """Rows in the portions that are sampled at one time, each with a seed of its own, so that samples do not depend on
    how many processes share the work, nor on where an interruption fell."""
    size = max(1, sampling.batch_size // sampling.k)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _generation_config(model: nn.Module, encoder: Encoder, row: Row) -> GenerationConfig:
    """The model's own, with the end token that training teaches among its ends, and special tokens forbidden."""
    theirs: Any = model.generation_config
    config: GenerationConfig = copy.deepcopy(theirs)
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    taught = encoder.encode(row, ["a"]).answers[0][-1]
    ends = sorted({taught, *(token for token in own if token is not None)})
    tokenizer = encoder.tokenizer
    controls: Any = tokenizer.convert_tokens_to_ids(encoder.template.control_tokens)
    forbidden = sorted(set(controls) - set(ends))
    pad = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
    config.update(
        eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad,
        suppress_tokens=forbidden or None,
        max_length=None,
        use_cache=True,
    )
    return config


@contextmanager
def _instead_of_own(model: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """The config as the model's own, since ``generate`` fills in from that what a config leaves open."""
    owners: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [module.generation_config for module in owners]
    for module in owners:
        module.generation_config = config
    try:
        yield
    finally:
        for module, own in zip(owners, before, strict=True):
            module.generation_config = own
