"""One refresh: sample the prompts that will want it, verify, measure, and share the result among all ranks.

With a curriculum the rows' own negatives are measured too: those of a sampled prompt in one pass with its samples.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.config.recipe import NegativesConfig
from cwdpo.config.secrets import redact
from cwdpo.data.chat_template import Frame
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine.layout import select_answers
from cwdpo.errors import UserError, shortened
from cwdpo.generation import Sampler, Sampling, chunks
from cwdpo.memory import FittingPasses
from cwdpo.negatives.candidates import Candidate, drop_easy, drop_similar
from cwdpo.negatives.filtering import RightAnswers, Rules
from cwdpo.negatives.hardness import batch_ches
from cwdpo.negatives.mixing import hashed, wants_samples
from cwdpo.negatives.verify import Judge, verify
from cwdpo.reference import Reference
from cwdpo.trainer_protocol import TrainerProtocol

Found = TypeVar("Found")


_GIVE_UP_AFTER = 2
"""Portions that fail one after another."""


class RefreshError(Exception):
    """A refresh failed, on this rank or another."""


def on_all_ranks(work: Callable[[], Found]) -> list[Found]:
    """What some work gives on each rank, on every rank; if it fails on any, every rank raises a RefreshError."""
    found: Found | None = None
    error: str | None = None
    try:
        found = work()
    except Exception as problem:  # whatever it is, the other ranks wait for an answer and training can go on
        error = _message(problem)
    gathered = gather_object([(found, error)])
    errors = [error for _, error in gathered if error is not None]
    if errors:
        raise RefreshError(errors[0])
    return [found for found, _ in gathered]


def sampling_seed(seed: int, refresh: int, chunk: int) -> int:
    """Seed of one portion of one refresh."""
    return hashed(seed, "sampling", refresh, chunk) % 2**63


Prompts: TypeAlias = list[tuple[int, tuple[Frame, dict[str, Tensor]]]]
"""Of some of a portion's rows, by their place in it, what an encoder makes of their prompts."""


def encoded_ahead(
    encoder: Encoder, rows: RowDataset, portions: Sequence[Sequence[int]], *, workers: int
) -> Iterator[Prompts]:
    """The prompts of portions of rows one after the other, encoded by worker processes while the model samples.

    Left out are those that the encoder remembers, those without images, all of a portion that cannot be encoded, and
    all without workers: the process that samples sees to them itself, and meets the error.
    """
    if not workers:
        yield from ([] for _ in portions)
        return
    yield from DataLoader(
        _Portions(encoder, rows, portions),
        batch_size=None,
        num_workers=min(workers, max(1, len(portions))),
        generator=torch.Generator(),  # the workers' seeds come from no state that samples are drawn from
    )


class _Portions(Dataset[Prompts]):
    def __init__(self, encoder: Encoder, rows: RowDataset, portions: Sequence[Sequence[int]]) -> None:
        self._encoder, self._rows, self._portions = encoder, rows, portions

    def __len__(self) -> int:
        return len(self._portions)

    def __getitem__(self, index: int) -> Prompts:
        try:
            rows = [self._rows[index][1] for index in self._portions[index]]
            return [
                (place, self._encoder.encode_prompt(row))
                for place, row in enumerate(rows)
                if row.images and not self._encoder.knows(row)
            ]
        except UserError:
            return []


class Refresher:
    """Makes refreshes for a trainer."""

    def __init__(self, trainer: TrainerProtocol, settings: NegativesConfig, *, judge: Judge | None) -> None:
        self.trainer, self.settings, self.judge = trainer, settings, judge
        self.reference: Reference | None = None
        """Asked once for each new negative; None where the reference runs at every step anyway."""
        self.right_answers = RightAnswers(())
        """To the prompts that are trained on."""

        self.encoder = copy.copy(trainer.encoder)
        self.encoder.limit, self._limit = None, trainer.encoder.limit  # the length of an answer is looked at afterwards
        self._collate = AnswerCollator(self.encoder, roles=(Role.REJECTED,))
        self._collate_with_chosen = AnswerCollator(self.encoder, roles=(Role.CHOSEN, Role.REJECTED))

    def run(self, number: int, *, share: float, sampler: Sampler) -> tuple[list[Candidate], list[str]]:
        """Sample and verify for an on-policy fraction of at most ``share``, on all ranks together.

        Returns:
            The candidates, and why portions have none. Where none was finished, or any error is to stop training, every
            rank raises a RefreshError.
        """
        ranks = on_all_ranks(lambda: self._part_of_rank(number, share, sampler))
        portions = dict(portion for finished, _ in ranks for portion in finished)
        failures = [failure for _, failed in ranks for failure in failed]
        if failures and (not portions or self.settings.on_error == "stop"):
            raise RefreshError(failures[0])
        candidates = [candidate for place in sorted(portions) for candidate in portions[place]]
        self._drop(candidates)
        return candidates, failures

    def _drop(self, candidates: Sequence[Candidate]) -> None:
        """A quantile is one of its own source: the policy's answers are likelier to it than others."""
        easy, similar = self.settings.drop_easier_than, self.settings.drop_ches_above
        try:
            for source in ("on_policy", "dataset"):
                of_source = [candidate for candidate in candidates if candidate.source == source]
                if easy is not None:
                    drop_easy(of_source, easy)
                if similar is not None:
                    drop_similar(of_source, similar)
        except ValueError as problem:  # an lbar that is not a number, on all ranks alike
            raise RefreshError(_message(problem)) from problem

    def _part_of_rank(
        self, number: int, share: float, sampler: Sampler
    ) -> tuple[list[tuple[int, list[Candidate]]], list[str]]:
        """This rank's portions, by the portion's number, and why others failed.

        After some failures in a row no more are tried: a server that is gone would be waited for again and again.
        """
        accelerator, seed = self.trainer.accelerator, self.trainer.args.seed
        rows = self.trainer.train_dataset
        assert rows is not None, "training has rows"
        wanted = [
            index
            for index in range(len(rows))
            if wants_samples(
                fraction=share,
                seed=seed,
                row_id=str(index),
                round=number,
                num_dataset=len(rows[index][1].rejected),
                count=self.settings.per_prompt,
            )
        ]
        size, k = self.settings.batch_size, self.settings.k
        portions = [(portion, True) for portion in chunks(wanted, Sampling(k=k, batch_size=size))]
        if self.settings.measures_own:
            others = sorted(set(range(len(rows))) - set(wanted))
            portions += [(portion, False) for portion in chunks(others, Sampling(k=1, batch_size=size))]
        # no rank may be left without one: an engine's first batch is where all ranks agree on how to compute
        share_all = len(portions) < accelerator.num_processes
        mine = [
            (place, portion, samples)
            for place, (portion, samples) in enumerate(portions)
            if share_all or place % accelerator.num_processes == accelerator.process_index
        ]
        passes = FittingPasses("rows' negatives")
        found: list[tuple[int, list[Candidate]]] = []
        failures: list[str] = []
        in_a_row = 0
        workers = self.trainer.args.dataloader_num_workers
        encoded = encoded_ahead(self.encoder, rows, [portion for _, portion, _ in mine], workers=workers)
        for (place, portion, samples), known in zip(mine, encoded, strict=True):
            if in_a_row >= _GIVE_UP_AFTER:
                failures.append("not tried, as those before it failed")
                continue
            try:
                of_portion = [rows[i][1] for i in portion]
                with self.encoder.remembering((of_portion[i], prompt) for i, prompt in known):
                    candidates: list[list[Candidate]] = [[] for _ in portion]
                    if samples:
                        candidates = self._sample(portion, of_portion, sampler, sampling_seed(seed, number, place))
                    found.append((place, self._measured(portion, of_portion, candidates, passes)))
                in_a_row = 0
            except Exception as problem:  # whatever it is, what is finished is of use
                failures.append(_message(problem))
                in_a_row += 1
        return found, failures

    def _sample(
        self, indices: Sequence[int], rows: Sequence[Row], sampler: Sampler, seed: int
    ) -> list[list[Candidate]]:
        with self.trainer.accelerator.autocast():
            answers = sampler.sample(rows, seed=seed)
        rules = Rules(overlap=self.settings.max_overlap, length_gap=self.settings.length_gap)
        reasons = verify(rows, answers, right_answers=self.right_answers, rules=rules, judge=self.judge)
        return [
            [Candidate(index, row.id, answer.text, why) for answer, why in zip(of_row, whys, strict=True)]
            for index, row, of_row, whys in zip(indices, rows, answers, reasons, strict=True)
        ]

    def _measured(
        self,
        indices: Sequence[int],
        rows: Sequence[Row],
        candidates: list[list[Candidate]],
        passes: FittingPasses,
    ) -> list[Candidate]:
        """All candidates of a portion, measured: in passes of no more answers than are sampled at one time."""
        if self.settings.measures_own:
            for index, row, of_row in zip(indices, rows, candidates, strict=True):
                of_row += [Candidate(index, row.id, text, source="dataset") for text in dict.fromkeys(row.rejected)]
        parts: list[list[tuple[Row, list[Candidate]]]] = [[]]
        answers = 0
        for row, of_row in zip(rows, candidates, strict=True):
            passed = sum(candidate.reason is None for candidate in of_row)
            if parts[-1] and answers + passed > self.settings.batch_size:
                parts.append([])
                answers = 0
            parts[-1].append((row, of_row))
            answers += passed
        for part in parts:
            passes.run(self._measure, part)
        return [candidate for of_row in candidates for candidate in of_row]

    @torch.no_grad()
    def _measure(self, part: Sequence[tuple[Row, Sequence[Candidate]]]) -> None:
        """Tokens, keys and log-probs of those that passed."""
        kept = [(row, [c for c in of_row if c.reason is None]) for row, of_row in part]
        items = [
            (of_row[0].row, replace(row, rejected=tuple(c.text for c in of_row))) for row, of_row in kept if of_row
        ]
        if not items:
            return
        batch = self._collate(items)
        flat = [candidate for _, of_row in kept for candidate in of_row]
        lengths = batch["lengths"].tolist()
        for place, candidate in enumerate(flat):
            candidate.key = batch["keys"][place]
            if candidate.source == "dataset":
                continue
            candidate.ids = batch["answer_ids"][place][: lengths[place]].tolist()
            prompt = batch["prompts"][int(batch["prompt_index"][place])]["input_ids"].shape[-1]
            if self._limit is not None and prompt + lengths[place] > self._limit:
                candidate.reason = "too_long"
        if any(candidate.reason for candidate in flat):
            self._measure(part)  # once more without them: the model has no positions for such
        else:
            self._score(send_to_device(batch, self.trainer.args.device), flat)
            if self.settings.drop_ches_above is not None:
                self._compare(items, flat)

    def _score(self, batch: Batch, candidates: Sequence[Candidate]) -> None:
        """Log-probs of candidates under the reference and under the policy, where they are needed."""
        with self.trainer.accelerator.autocast():
            sampled = [place for place, candidate in enumerate(candidates) if candidate.source == "on_policy"]
            if self.reference is not None and sampled:
                part = select_answers(batch, sampled)
                for place, total in zip(sampled, self.reference.totals(part).tolist(), strict=True):
                    candidates[place].reference_logprob = total
            if self.settings.measures_own:
                with eval_mode(self.trainer.model):
                    means = self.trainer.engine.logprobs(self.trainer.model, batch).mean.tolist()
                for candidate, mean in zip(candidates, means, strict=True):
                    candidate.lbar = mean

    def _compare(self, items: Sequence[tuple[int, Row]], candidates: Sequence[Candidate]) -> None:
        """How similar each candidate and its row's right answer are to the policy."""
        batch = send_to_device(self._collate_with_chosen(items), self.trainer.args.device)
        with self.trainer.accelerator.autocast(), eval_mode(self.trainer.model):
            found = [value for of_row in batch_ches(self.trainer.model, batch) for value in of_row]
        for candidate, value in zip(candidates, found, strict=True):
            candidate.ches = value


def _message(problem: Exception) -> str:
    text = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
    return shortened(redact(text), 500)  # it goes into the refresh's file
