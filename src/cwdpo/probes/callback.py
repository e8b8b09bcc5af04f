"""Probes while training: readings at the right steps, the best model kept, and an end before harm is done."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.config.recipe import ProbesConfig
from cwdpo.data.rows import Row
from cwdpo.diagnosis import Finding, Thresholds, diagnose
from cwdpo.engine import Engine
from cwdpo.errors import ConfigError
from cwdpo.probes.examples import Examples, Write, ranks_share, shared_answers
from cwdpo.probes.measuring import Reading, StartDistributions, measure, scalars, warm_up
from cwdpo.probes.probe_set import ProbeSet, probe_rows
from cwdpo.probes.schedule import Schedule, from_first_rank, idle_clock
from cwdpo.probes.size import ProbeSize, whole
from cwdpo.probes.snapshots import Keeper, StageFiles, Start
from cwdpo.records import PROBE_GROUPS, ProbeGroup, ProbeLine, RunDirectory, Stage, append_jsonl
from cwdpo.trainer_protocol import TrainerProtocol

logger = logging.getLogger(__name__)


class Probing(TrainerCallback):
    """Measures a probe set during one stage. Training itself is the same, to the last bit, with it and without."""

    def __init__(
        self,
        trainer: TrainerProtocol,
        rows: Sequence[Row],
        run: RunDirectory,
        stage: Stage,
        settings: ProbesConfig,
        *,
        engine: Engine,
        size: ProbeSize | None = None,
        beta: float | None = None,
        seed: int = 0,
        write_greedy: Write | None = None,
        write_sampled: Write | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Watch a trainer with a probe set, ``rows``; add the result to its callbacks.

        Args:
            engine: of the probes alone, see :func:`cwdpo.engine.separate_engine`.
            size: for how many of the rows the costlier questions are asked; None asks all of all.
            beta: of the preference loss, if the stage has one.
            seed: of what is made of the rows.
            write_greedy: lets the model answer as the stage begins and ends; None leaves the group ``greedy`` out.
            write_sampled: lets the model answer as it would by chance; None leaves the group ``on_policy`` out.
            interrupted: whether the user ends the run, which then needs no last reading.
            clock: seconds.
        """
        if settings.keep_best and trainer.args.load_best_model_at_end:
            raise ConfigError(
                "probes.keep_best and trainer.load_best_model_at_end would each choose the model that is kept. "
                "Take one of them out.",
                setting="probes.keep_best",
            )
        self._trainer, self._rows, self._run, self._stage = trainer, list(rows), run, stage
        self._engine, self._beta, self._seed, self._interrupted = engine, beta, seed, interrupted
        self._groups = PROBE_GROUPS if isinstance(settings.groups, str) else ("chosen", *settings.groups)
        self._write_greedy = write_greedy if "greedy" in self._groups else None
        self._write_sampled = write_sampled if "on_policy" in self._groups else None
        every = settings.every if isinstance(settings.every, int) else None
        self._schedule = Schedule(every, clock=clock or idle_clock, agree=from_first_rank)
        self._files = StageFiles(run.probe_files(stage))
        self._size = size or whole(len(rows))
        self._examples = Examples(
            trainer,
            self._files.directory,
            engine,
            write_greedy=self._write_greedy,
            count=self._size.own_rows,
        )
        self._keeper = Keeper(self._files, settings, is_main=trainer.is_world_process_zero())
        self._stopping = StoppingRule(settings.stop_on, patience=settings.patience, tolerance=settings.tolerance)
        self.lines: list[ProbeLine] = []
        """The stage's readings so far, oldest first: the same on every rank, and after an interruption."""
        self._probes: ProbeSet | None = None
        self._means: Mapping[ProbeGroup, float] = {}
        self._distributions = StartDistributions(len(rows))
        trainer.probe_metrics = self.metrics

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take the first reading, or take up an interrupted stage."""
        self._schedule.begin(state.global_step, state.max_steps)
        if state.global_step == 0:
            self._begin()
        else:
            self._resume(state)

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take a reading if one is due, and end the stage if it shows what must not go on."""
        if self._schedule.is_due(state.global_step):
            self._read_and_judge()

    def on_epoch_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take the last reading of a stage that something else ends early."""
        if control.should_training_stop and not self._interrupted() and self._read_at != state.global_step:
            self._read(state.global_step)

    def on_save(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """From now on a resumed run begins here, so that earlier best models are not needed again."""
        self._keeper.checkpointed()

    def finish(self) -> dict[str, Any]:
        """After training: put the weights of the reading that the stage leaves back, and write the examples.

        Gives what to note of the stage: ``probes`` with their time, ``stopped`` if a finding ended it, ``kept_step`` if
        another model than the last may be kept.
        """
        reason = self._stopping.reason
        note: dict[str, Any] = {} if reason is None else {"stopped": reason}
        step = self._keeper.to_leave(stopped=reason is not None)
        if step is not None:
            note["kept_step"] = step
            self._trainer.accelerator.wait_for_everyone()  # until the first rank has written them
            if step != self._trainer.state.global_step:
                self._files.restore_weights(self._trainer.model, step)
                logger.warning("%s: leaves the model of step %d", self._stage, step)
        with self._schedule.preparing():
            self._examples.end()
        seconds, share = self._schedule.spent, self._schedule.share
        logger.info("%s: probes took %.1f s, %.1f %% of the rest of the stage", self._stage, seconds, 100 * share)
        count = len({line["step"] for line in self.lines})
        return {"probes": {"readings": count, "seconds": round(seconds, 2), "share_of_time": round(share, 4)}, **note}

    def metrics(self) -> dict[str, float]:
        """The reading of this step as scalars, for an evaluation; taken now if it chooses the best model."""
        step = self._trainer.state.global_step
        wanted = str(self._trainer.args.metric_for_best_model).removeprefix("eval_").startswith("probes/")
        if self._probes is not None and wanted and self._read_at != step:
            self._read_and_judge()
        return scalars([line for line in self.lines if line["step"] == step])

    def _begin(self) -> None:
        is_main = self._trainer.is_world_process_zero()
        if is_main:
            self._files.clear()
            self._run.truncate_after(self._stage, -1)
        with self._schedule.preparing(again_at_end=True):
            asked = self._rows[: self._size.own_rows]
            greedy = shared_answers(self._trainer, self._write_greedy, asked)
        with self._schedule.preparing():
            on_policy = shared_answers(self._trainer, self._write_sampled, asked)
            self._probes = self._probe_set(greedy, on_policy)
            warm_up(self._trainer.model, self._probes, self._engine)
        self._read(0)
        with self._schedule.preparing(again_at_end=True):
            self._examples.begin(self._probes.rows)
        if is_main:
            self._files.write_answers(self._probes.rows)
            examples, owed = self._examples.start, self._schedule.owed
            self._files.write_start(Start(self._means, greedy, on_policy, examples, owed, self._distributions))

    def _resume(self, state: TrainerState) -> None:
        start = self._files.read_start(len(self._rows))
        self._means, self._distributions, self._schedule.owed = start.means, start.distributions, start.end_seconds
        self._probes = self._probe_set(start.greedy, start.on_policy)
        self._examples.resume(self._probes.rows, start.examples)
        self.lines = self._run.readings(self._stage, until=state.global_step)
        self._keeper.resume(self.lines)
        self._stopping.resume(self._history(state), beta=self._beta)

    def _probe_set(self, greedy: Sequence[str] | None, on_policy: Sequence[str] | None) -> ProbeSet:
        rows = probe_rows(
            self._rows,
            groups=self._groups,
            seed=self._seed,
            greedy=greedy,
            on_policy=on_policy,
            image_rows=self._size.image_rows,
        )
        return ranks_share(rows, self._trainer)

    def _read_and_judge(self) -> None:
        """Take this step's reading, and end the stage if it shows what must not go on; whoever asked for the reading,
        since a resumed stage counts all that it finds in the file."""
        state = self._trainer.state
        self._read(state.global_step)
        if state.global_step < state.max_steps and self._stopping.update(self._history(state), beta=self._beta):
            self._trainer.control.should_training_stop = True
            logger.warning("%s ends at step %d: %s", self._stage, state.global_step, self._stopping.sentence())

    def _read(self, step: int) -> None:
        with self._schedule.reading(step):
            assert self._probes is not None
            model, autocast = self._trainer.model, self._trainer.accelerator.autocast
            here = measure(model, self._probes, self._engine, start=self._distributions, autocast=autocast)
            reading = Reading().joined(gather_object([here]))
            is_first = not self._means
            self._means = self._means or reading.means()
            lines = [ProbeLine(stage=self._stage, step=step, **line) for line in reading.lines(self._means)]
            if is_first:
                for rows in gather_object([self._distributions]):
                    self._distributions.update(rows)
            self._keeper.update(step, lines, model)
        lines[0]["seconds"] = round(self._schedule.last_seconds, 4)
        self.lines += lines
        if self._trainer.is_world_process_zero():
            append_jsonl(self._run.probes, lines)
        control = self._trainer.control
        should_log = control.should_log  # any logging takes it for done
        with self._schedule.preparing():
            self._trainer.log(scalars(lines))
        control.should_log = should_log

    def _history(self, state: TrainerState) -> list[Mapping[str, Any]]:
        """Everything read of this stage so far, as its files say it."""
        logged = [{"stage": self._stage, **line} for line in state.log_history if "loss" in line]
        return [*logged, *self.lines]

    @property
    def _read_at(self) -> int | None:
        return self.lines[-1]["step"] if self.lines else None


class StoppingRule:
    """Asks the diagnosis after every reading whether something that must not go on has gone on for too long."""

    def __init__(self, stop_on: Sequence[str], *, patience: int, tolerance: float) -> None:
        """Stop where ``patience`` readings in a row show the same finding of ``stop_on``; a fall of the chosen answers
        of less than ``tolerance`` nats per token is none."""
        self._stop_on, self._patience = tuple(stop_on), patience
        self._thresholds = Thresholds(fall_least=tolerance)
        self._in_a_row: Counter[str] = Counter()
        self.reason: dict[str, Any] | None = None
        """What ended the stage: ``finding``, ``stage``, ``step``, ``readings`` in a row, ``evidence``, ``advice``."""

    def update(self, history: Sequence[Mapping[str, Any]], *, beta: float | None) -> dict[str, Any] | None:
        """Take in the history up to a new reading, its lines oldest first; the reason if the stage must end."""
        if not self._stop_on:
            return None
        step = max(line["step"] for line in history if "group" in line)
        # a step's own metrics are logged after its reading, or before it where an evaluation asks for it
        history = [line for line in history if line["step"] < step + ("group" in line)]
        found: dict[str, Finding] = {}
        for finding in diagnose(history, beta=beta, thresholds=self._thresholds):
            found.setdefault(finding.name, finding)
        self._in_a_row = Counter({name: self._in_a_row[name] + 1 for name in self._stop_on if name in found})
        for name, count in self._in_a_row.items():
            if count >= self._patience:
                finding = found[name]
                self.reason = {
                    "finding": name,
                    "stage": finding.stage,
                    "step": step,
                    "readings": count,
                    "evidence": finding.evidence,
                    "advice": finding.advice,
                }
                return self.reason
        return None

    def resume(self, history: Sequence[Mapping[str, Any]], *, beta: float | None) -> None:
        """Count again what an interrupted run had counted, from its readings."""
        steps = sorted({line["step"] for line in history if "group" in line and line["step"] > 0})
        for step in steps[-self._patience :]:
            self.update([line for line in history if line["step"] <= step], beta=beta)
        self.reason = None

    def sentence(self) -> str:
        assert self.reason is not None
        times = "reading" if self.reason["readings"] == 1 else "readings in a row"
        finding = self.reason["finding"].replace("_", " ")
        return f"{finding} in {self.reason['readings']} {times}. {self.reason['evidence']} {self.reason['advice']}"
