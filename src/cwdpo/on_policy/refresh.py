"""One refresh: sample the prompts that will want it, verify, measure, and share the result among all ranks.

With a curriculum the rows' own negatives are measured too: those of a sampled prompt in one pass with its samples.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, send_to_device

from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine.layout import select_answers
from cwdpo.errors import UserError
from cwdpo.generation import Sampler, Sampling, chunks
from cwdpo.negatives.candidates import Candidate, drop_easy, drop_similar
from cwdpo.negatives.filtering import RightAnswers, Rules
from cwdpo.negatives.hardness import batch_ches
from cwdpo.negatives.mixing import hashed, wants_samples
from cwdpo.negatives.verify import Judge, verify
from cwdpo.reference import Reference

if TYPE_CHECKING:
    from cwdpo.trainers.base import AnswerTrainer


class RefreshError(Exception):
    """A refresh failed, on this rank or another."""


def sampling_seed(seed: int, refresh: int, chunk: int) -> int:
    """Seed of one portion of one refresh."""
    return hashed(seed, "sampling", refresh, chunk) % 2**63


class Refresher:
    """Makes refreshes for a trainer."""

    def __init__(
        self,
        trainer: "AnswerTrainer",
        sampling: Sampling,
        *,
        rules: Rules,
        judge: Judge | None,
        drop_easier_than: float | str | None,
        drop_ches_above: float | str | None,
        per_prompt: int | None,
        measures_own: bool = False,
    ) -> None:
        self.trainer, self.sampling, self.rules, self.judge = trainer, sampling, rules, judge
        self.drop_easier_than, self.drop_ches_above = drop_easier_than, drop_ches_above
        self.per_prompt, self.measures_own = per_prompt, measures_own
        self.reference: Reference | None = None
        """Asked once for each new negative; None where the reference runs at every step anyway."""

        self.encoder = _without_limit(trainer.encoder)
        self._collator = AnswerCollator(self.encoder, roles=(Role.REJECTED,))
        self._with_chosen = AnswerCollator(self.encoder, roles=(Role.CHOSEN, Role.REJECTED))
        self._limit = trainer.encoder.limit
        self._right_answers: RightAnswers | None = None

    def run(self, number: int, *, share: float, sampler: Sampler) -> list[Candidate]:
        """Sample and verify, on all ranks together.

        Args:
            number: of the refresh.
            share: the largest on-policy fraction that the refresh may have to serve.
            sampler: where the answers come from.

        Raises:
            RefreshError: something went wrong on any rank; every rank raises it.
        """
        found: list[tuple[int, list[Candidate]]] = []
        error: str | None = None
        try:
            found = self._own_part(number, share, sampler)
        except Exception as problem:  # whatever it is, the other ranks wait for an answer and training can go on
            error = _told(problem)
        gathered = gather_object([(found, error)])
        errors = [told for _, told in gathered if told is not None]
        if errors:
            raise RefreshError(errors[0])
        parts = dict(part for rank, _ in gathered for part in rank)
        candidates = [candidate for place in sorted(parts) for candidate in parts[place]]
        self._drop(candidates)
        return candidates

    def _drop(self, candidates: Sequence[Candidate]) -> None:
        """A quantile is one of its own source: the policy's answers are likelier to it than others."""
        try:
            for source in ("on_policy", "dataset"):
                of_source = [candidate for candidate in candidates if candidate.source == source]
                if self.drop_easier_than is not None:
                    drop_easy(of_source, self.drop_easier_than)
                if self.drop_ches_above is not None:
                    drop_similar(of_source, self.drop_ches_above)
        except ValueError as problem:  # an lbar that is no number, on all ranks alike
            raise RefreshError(_told(problem)) from problem

    def _own_part(self, number: int, share: float, sampler: Sampler) -> list[tuple[int, list[Candidate]]]:
        """This rank's portions, by the portion's number."""
        trainer: Any = self.trainer
        rows = trainer.train_dataset
        if self._right_answers is None:
            self._right_answers = RightAnswers((rows[index][1] for index in range(len(rows))), also=trainer.also_right)
        accelerator = self.trainer.accelerator
        wanted = [index for index in range(len(rows)) if self._wants(index, rows[index][1], number, share)]
        portions = [(portion, True) for portion in chunks(wanted, self.sampling)]
        if self.measures_own:
            others = sorted(set(range(len(rows))) - set(wanted))
            portions += [(portion, False) for portion in chunks(others, replace(self.sampling, k=1))]
        # no rank may be left without one: an engine's first batch is where all ranks agree on how to compute
        share_all, found = len(portions) < accelerator.num_processes, []
        for place, (portion, samples) in enumerate(portions):
            if share_all or place % accelerator.num_processes == accelerator.process_index:
                seed = sampling_seed(self.trainer.args.seed, number, place)
                with self.encoder.remembering():
                    of_portion = [rows[i][1] for i in portion]
                    candidates = self._sampled(portion, of_portion, sampler, seed) if samples else [[] for _ in portion]
                    found.append((place, self._measured(portion, of_portion, candidates)))
        return found

    def _wants(self, index: int, row: Row, number: int, share: float) -> bool:
        return wants_samples(
            fraction=share,
            seed=self.trainer.args.seed,
            row_id=str(index),
            round=number,
            num_dataset=len(row.rejected),
            count=self.per_prompt,
        )

    def _sampled(
        self, indices: Sequence[int], rows: Sequence[Row], sampler: Sampler, seed: int
    ) -> list[list[Candidate]]:
        """Samples of a portion, verified."""
        assert self._right_answers is not None
        with self.trainer.accelerator.autocast():
            answers = sampler.sample(rows, seed=seed)
        reasons = verify(rows, answers, right_answers=self._right_answers, rules=self.rules, judge=self.judge)
        return [
            [Candidate(index, row.id, answer.text, why) for answer, why in zip(of_row, whys, strict=True)]
            for index, row, of_row, whys in zip(indices, rows, answers, reasons, strict=True)
        ]

    def _measured(
        self, indices: Sequence[int], rows: Sequence[Row], candidates: list[list[Candidate]]
    ) -> list[Candidate]:
        """All candidates of a portion, measured: in passes of no more answers than are sampled at one time."""
        if self.measures_own:
            for index, row, of_row in zip(indices, rows, candidates, strict=True):
                of_row += [Candidate(index, row.id, text, source="dataset") for text in dict.fromkeys(row.rejected)]
        part: list[tuple[Row, list[Candidate]]] = []
        answers = 0
        for row, of_row in zip(rows, candidates, strict=True):
            passed = sum(candidate.reason is None for candidate in of_row)
            if part and answers + passed > self.sampling.batch_size:
                self._measure(part)
                part, answers = [], 0
            part.append((row, of_row))
            answers += passed
        self._measure(part)
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
        batch = self._collator(items)
        flat = [candidate for _, of_row in kept for candidate in of_row]
        lengths = batch["answer_mask"].sum(dim=-1).tolist()
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
            if self.drop_ches_above is not None:
                self._compare(items, flat)

    def _score(self, batch: Batch, candidates: Sequence[Candidate]) -> None:
        trainer: Any = self.trainer
        with trainer.accelerator.autocast():
            sampled = [place for place, candidate in enumerate(candidates) if candidate.source == "on_policy"]
            if self.reference is not None and sampled:
                part = select_answers(batch, torch.tensor(sampled, device=batch["prompt_index"].device))
                for place, total in zip(sampled, self.reference.totals(part).tolist(), strict=True):
                    candidates[place].reference_logprob = total
            if self.drop_easier_than is not None or self.measures_own:
                with eval_mode(trainer.model):
                    means = trainer.engine.logprobs(trainer.model, batch).mean.tolist()
                for candidate, mean in zip(candidates, means, strict=True):
                    candidate.lbar = mean

    def _compare(self, items: Sequence[tuple[int, Row]], candidates: Sequence[Candidate]) -> None:
        """How alike each candidate and its row's right answer are to the policy."""
        trainer: Any = self.trainer
        batch = send_to_device(self._with_chosen(items), trainer.args.device)
        with trainer.accelerator.autocast(), eval_mode(trainer.model):
            found = [value for of_row in batch_ches(trainer.model, batch) for value in of_row]
        for candidate, value in zip(candidates, found, strict=True):
            candidate.ches = value


def _without_limit(encoder: Encoder) -> Encoder:
    """The same encoder, for answers whose length is looked at afterwards."""
    free = copy.copy(encoder)
    free.limit = None
    return free


def _told(problem: Exception) -> str:
    return str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
