"""What a run records: the names of stages, metrics, probe groups and signs, the lines of its files, and its directory.

These names are spelled here and nowhere else; what uses them takes them as types. Every file is written whole or not at
all, and nothing in a run directory is overwritten.
"""

import codecs
import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, TypeGuard, get_args

from cwdpo.errors import UserError

logger = logging.getLogger(__name__)

Stage: TypeAlias = Literal["stage1", "stage2"]
STAGES: tuple[Stage, ...] = get_args(Stage)

HUB: Final = "hf:"
"""Begins the name of a data set on the Hugging Face hub, which is no path."""

Side: TypeAlias = Literal["chosen", "rejected"]
"""The two answers of a preference pair."""

MetricName: TypeAlias = Literal[
    "loss", "grad_norm", "entropy", "num_tokens", "skipped_steps",
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
    "logps_mean/chosen", "logps_mean/rejected", "logps_mean/gentle",
    "cooling/mean", "cooling/p10", "cooling/p50", "cooling/p90",
    "negatives/on_policy", "negatives/level", "negatives/lbar",
]  # fmt: skip
"""The numbers of a logged step. Rewards are beta times log-ratios; ``logps`` sums and ``logps_mean`` means over tokens,
in nats. ``negatives`` are of on-policy sampling and its curriculum, see docs/curriculum.md. ``skipped_steps`` counts
the stage's steps that were not finite, where these are skipped. A line of ``metrics.jsonl`` has them beside ``stage``,
``step``, ``cooling/histogram`` (not for loggers) and what else the Trainer logs (``epoch``, ``learning_rate``, ...)."""

StepMetric: TypeAlias = MetricName | Literal["cooling"]
"""What a training step gives of each answer; of the weights ``cooling`` a line has mean, quantiles and histogram."""

METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
COOLING_QUANTILES: Mapping[MetricName, float] = {"cooling/p10": 0.1, "cooling/p50": 0.5, "cooling/p90": 0.9}
COOLING_HISTOGRAM: Final = "cooling/histogram"
HISTOGRAM_BINS: Final = 10
"""Equal bins of [0, 1] in which :data:`COOLING_HISTOGRAM` counts the w_c since the line before."""

ProbeGroup: TypeAlias = Literal[
    "chosen", "rejected", "gentle", "longer", "shorter",
    "greedy", "on_policy", "shuffled", "other_answer", "other_image", "blank",
]  # fmt: skip
PROBE_GROUPS: tuple[ProbeGroup, ...] = get_args(ProbeGroup)
"""Groups of answers that probes measure, in the order of a reading's lines."""

ProbeMeasure: TypeAlias = Literal[
    "mean_logprob", "delta", "p10", "p50", "p90",
    "entropy", "top1", "argmax_mass", "ece", "tv", "js", "moved_to_argmax",
]  # fmt: skip
"""The numbers of a :class:`ProbeLine`."""


class ProbeLine(TypedDict, total=False):
    """One group of answers in one probe reading; from ``entropy`` on they stand on the ``chosen`` group only."""

    stage: Stage
    step: int
    group: ProbeGroup
    n: int
    mean_logprob: float
    delta: float
    p10: float
    p50: float
    p90: float
    """lbar in nats per token: the group's mean, its change since the stage began, and quantiles over the answers."""

    entropy: float
    top1: float
    argmax_mass: float
    ece: float
    reliability: list[tuple[int, float, float]]
    """``ece`` by bin: tokens, their mean confidence, and the share of them that was right."""

    tv: float
    js: float
    moved_to_argmax: float
    """Of the probability that moved since the stage began, the share that went to the then likeliest token."""

    seconds: float
    """What the reading cost."""


SignName: TypeAlias = Literal[
    "non_finite_loss", "reward_at_start", "squeezing", "likelihood_displacement", "false_negatives", "overconfidence",
    "reference_drift", "image_blindness", "length_shortcut", "easy_negative_saturation", "over_cooling",
    "stale_contrast", "gradient_spikes", "stalled_learning",
]  # fmt: skip
SIGN_NAMES: tuple[SignName, ...] = get_args(SignName)
"""What a diagnosis can find, most harmful first: what spoils the run, the model, what it learns, and the time."""


class _Inside:
    """A path with a fixed name in a run directory, and what is there."""

    def __init__(self, name: str, content: str) -> None:
        self._name, self.__doc__ = name, content

    def __get__(self, run: "RunDirectory", owner: object = None) -> Path:
        return run.root / self._name


LITTER: Final = re.compile(
    r"\.stage[12]\.[a-z0-9_]{8}|\..+\.[a-z0-9_]{8}\.tmp|.+\.partial\d*|\.checkpoint-\d+\.removed|adapter-\d{5}"
)
"""Names in a run directory of what a killed process did not finish: models and files that have another name until they
are whole, checkpoints that are being removed, adapters on their way to a server."""

_LOGS: Final = (".log", ".out", ".err")
"""Endings of the files into which a shell or a scheduler writes what a run prints; no run writes such."""

_HELD: set[int] = set()
"""Open files that hold locks."""


def _forget_locks() -> None:
    """A forked process, such as a data loader's worker, would hold its parent's locks beyond the parent's end."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_locks)


def _who_locks(path: Path) -> str:
    """The number of the process that holds a lock on a path, in words; empty where the system does not say it."""
    try:
        place, locks = path.stat(), Path("/proc/locks").read_text("utf-8")
    except OSError:
        return ""
    name = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}:{place.st_ino}"
    found = re.search(rf"FLOCK +ADVISORY +WRITE +(\d+) +{name} ", locks)
    return f" (process {found[1]})" if found is not None else ""


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. Open it with :meth:`open` to write, or make it bare to read."""

    root: Path

    @classmethod
    def open(cls, root: str | Path, *, resume: bool) -> "RunDirectory":
        """Make the directory, or with ``resume`` continue the run in it; without any file in it, a new run starts.

        Raises:
            UserError: something is there and ``resume`` is off, it is not a run, or the directory cannot be made; of a
                run that another process writes just that is said.
        """
        run = cls(Path(root))
        if run.root.exists() and not run.root.is_dir():
            raise UserError(f"{run.root} is a file, not a directory. Give another --output_dir.")
        if run._files():
            if not resume:
                run._refuse_while_written()
                go_on = "Continue the run in it with --resume, or give" if run.recipe.is_file() else "Give"
                raise UserError(f"{run.root} is not empty, and nothing is overwritten. {go_on} another --output_dir.")
            if not run.recipe.is_file():
                raise UserError(f"{root} holds no run to resume: no recipe.yaml. Give a run's directory, or a new one.")
        try:
            run.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"the directory {run.root} cannot be made ({error.strerror}). Give another --output_dir."
            raise UserError(why) from error
        return run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this run; a UserError where one does already.

        The lock is the system's own and goes with the process, however that ends. It is on the directory, and leaves no
        file; where a file system cannot lock directories, as NFS, on the file ``.lock`` in it. Where that cannot be
        locked either, a warning says so.
        """
        handle = self._lock()
        try:
            yield
        finally:
            if handle is not None:
                _HELD.discard(handle)
                os.close(handle)

    def _lock(self) -> int | None:
        """An open file that holds the lock; None where the file system has no locks."""
        problem = ""
        for path, flags in ((self.root, os.O_RDONLY), (self._lock_file, os.O_RDWR | os.O_CREAT)):
            try:
                handle = os.open(path, flags, 0o666)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BaseException:
                    os.close(handle)
                    raise
            except BlockingIOError:
                raise UserError(
                    f"another process is writing {self.root}{_who_locks(path)}. Wait until it ends, or give another "
                    "--output_dir."
                ) from None
            except OSError as error:
                problem = error.strerror or type(error).__name__
            else:
                _HELD.add(handle)
                return handle
        logger.warning("%s cannot be locked (%s): make sure that no other process writes it", self.root, problem)
        return None

    def _refuse_while_written(self) -> None:
        """A UserError where another process holds the lock."""
        places = [path.stat() for path in (self.root, self._lock_file) if path.exists()]
        if not any(os.path.samestat(os.fstat(handle), place) for handle in _HELD for place in places):
            with self.locked():
                pass

    @property
    def has_begun(self) -> bool:
        """Whether a run got further here than to write down what it would do."""
        return self.recipe.is_file() and self._files(besides=self.recipe)

    def _files(self, *, besides: Path | None = None) -> bool:
        """Whether there is any file; directories alone are what a start that failed leaves, litter a killed one, and a
        log is where the user sends what is printed."""

        def counts(path: Path) -> bool:
            inside = path.relative_to(self.root).parts
            is_litter = any(LITTER.fullmatch(part) for part in inside)
            is_log = len(inside) == 1 and path.suffix in _LOGS
            return path not in (besides, self._lock_file) and not is_litter and not is_log

        return any(counts(path) and (path.is_symlink() or not path.is_dir()) for path in self.root.rglob("*"))

    recipe = _Inside("recipe.yaml", "The resolved recipe, with the measured floor.")
    metrics = _Inside("metrics.jsonl", "A line a logged step: see :data:`MetricName`.")
    probes = _Inside("probes.jsonl", "A :class:`ProbeLine` a reading and group.")
    engine = _Inside("engine.json", "How log-probs are computed, and on which numbers that was decided.")
    findings = _Inside("findings.json", "What went wrong, by name.")
    audit = _Inside("audit.json", "How far shortcuts get on the pairs, by ``cwdpo audit``.")
    summary = _Inside("summary.json", "The run's results in one object.")
    report = _Inside("report.html", "The page for people.")
    evaluation = _Inside(
        "evaluation.json", "What ``cwdpo evaluate`` measured; further ones are ``evaluation-2.json``, ..."
    )
    reference = _Inside("reference", "Cached log-probs of the reference; internal.")
    negatives = _Inside("negatives", "What was sampled from the policy, a file a refresh; see docs/on_policy.md.")
    features = _Inside("features", "Kept features of a frozen vision tower; internal.")
    _lock_file = _Inside(".lock", "Empty; only where the directory itself cannot be locked.")

    def evaluations(self) -> list[Path]:
        """Every evaluation of the run that is there, oldest name first."""
        further = [path for path in self.root.glob("evaluation-*.json") if path.stem.rpartition("-")[2].isdigit()]
        further.sort(key=lambda path: int(path.stem.rpartition("-")[2]))
        return [path for path in (self.evaluation, *further) if path.is_file()]

    def stage(self, stage: Stage) -> Path:
        """The model that a stage left: loads with ``from_pretrained``, or is a PEFT adapter directory."""
        return self.root / stage

    def checkpoints(self, stage: Stage) -> Path:
        """Where the Trainer keeps a stage's checkpoints; internal."""
        return self.root / "checkpoints" / stage

    def probe_files(self, stage: Stage) -> Path:
        """What a stage's probes are measured from, which is internal, and ``examples.jsonl`` with its pictures."""
        return self.root / "probes" / stage

    def tensorboard(self, stage: Stage) -> Path:
        """A stage's scalars for TensorBoard: ``tensorboard --logdir RUN/tensorboard``."""
        return self.root / "tensorboard" / stage

    def is_finished(self, stage: Stage) -> bool:
        """Whether a stage's model was saved whole, and is still there."""
        return self.was_finished(stage) and self.stage(stage).is_dir()

    def was_finished(self, stage: Stage) -> bool:
        """Whether a stage's model was saved whole, be it there or not."""
        return self._done(stage).is_file()

    def finished_at(self, stage: Stage) -> int:
        """When a finished stage's model was saved, in nanoseconds as file times are."""
        return self._done(stage).stat().st_mtime_ns

    def mark_finished(self, stage: Stage, note: Mapping[str, object] | None = None) -> None:
        """Say that a stage's model is saved whole, so that resuming skips the stage; the last thing a stage does."""
        self._done(stage).parent.mkdir(parents=True, exist_ok=True)
        write_text(self._done(stage), json.dumps(dict(note or {})) + "\n")

    def note(self, stage: Stage) -> dict[str, Any]:
        """What was said when the stage was finished; empty if it is not."""
        return object_in(self._done(stage))

    def keep(self, name: str, value: Mapping[str, object]) -> None:
        """Remember something of the run for the sessions that go on with it; internal."""
        path = self.root / "checkpoints" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def kept(self, name: str) -> dict[str, Any]:
        """What an earlier session remembered under this name; empty if none did."""
        return object_in(self.root / "checkpoints" / f"{name}.json")

    def _done(self, stage: Stage) -> Path:
        return self.root / "checkpoints" / f"{stage}.done"

    def write_findings(self, found: Mapping[str, object]) -> None:
        """Write ``findings.json``: a diagnosis, and under ``stopped`` what ended stages before their last step."""
        notes = [self.note(stage) for stage in STAGES]
        write_json(self.findings, {**found, "stopped": [note["stopped"] for note in notes if "stopped" in note]})

    def readings(self, stage: Stage, *, until: int) -> list[ProbeLine]:
        """A stage's probe lines up to a step, oldest first; other lines are left out."""

        def is_reading(line: Mapping[str, object]) -> TypeGuard[ProbeLine]:
            step, whole = line.get("step"), {"group", "mean_logprob"} <= line.keys()
            return whole and line.get("stage") == stage and isinstance(step, int) and step <= until

        return [line for line in read_jsonl(self.probes).objects if is_reading(line)]

    def truncate_after(self, stage: Stage, step: int) -> int:
        """Drop what a stage recorded after a step, and all of later stages: the resumed run records it again.

        The step is the last that the checkpoint holds; -1 drops the whole stage, 0 all but a reading before its first
        step. Broken lines, half-written by the interruption, go too. Returned is how many lines were dropped.
        """

        def stays(line: Mapping[str, object]) -> bool:
            if line.get("stage") == stage:
                at = line.get("step")
                return isinstance(at, int) and at <= step
            return not (stage == "stage1" and line.get("stage") == "stage2")

        total = 0
        for path in (self.metrics, self.probes):
            lines = read_jsonl(path)
            kept = [line for line in lines.objects if stays(line)]
            dropped = len(lines.objects) - len(kept) + lines.skipped
            if dropped:
                write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
            total += dropped
        return total


class JsonLines(NamedTuple):
    """What a file of JSON lines holds."""

    objects: list[dict[str, Any]]
    skipped: int
    """Lines that are not a JSON object: half-written when a run was killed, or damaged."""


def check_place(path: Path, *, option: str = "--out", is_directory: bool = False, is_new: bool = True) -> None:
    """A UserError where a file, or a directory and those above it, cannot be written, or where one ``is_new`` and
    something is there. Commands ask before their work, which may take hours."""
    holds = any(path.iterdir()) if is_directory and path.is_dir() else path.exists()
    if holds and is_new:
        raise UserError(f"{path} exists already, and nothing is overwritten. Give another {option}, or remove it.")
    if is_directory and path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a directory. Give another {option}.")
    above = next((one for one in (path, *path.parents) if one.exists()), path) if is_directory else path.parent
    if not above.is_dir():
        raise UserError(f"{path}: there is no directory {above}. Make it, or give another {option}.")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Give another {option}.") from error


def write_text(path: Path, text: str) -> None:
    """The same as :func:`write_bytes`, of a text."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there untouched: an OSError if the disk is full or may not be written."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        error.filename = str(path)  # the file that was asked for
        raise
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)  # there is no way to read it but to set it
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a directory, are on the disk, where the file system can say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF) or not path.is_dir():
            raise  # some file systems report only now that they are full
    finally:
        os.close(handle)


def put_in_place(written: Path, path: Path) -> None:
    """Rename a file that is written to its end, once it is on the disk: under its own name it is always whole."""
    sync(written)
    written.replace(path)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, objects: Iterable[Mapping[str, object]]) -> None:
    """Write objects, one a line, as a whole file or not at all; numbers that are not finite become null."""
    write_text(path, _lines(objects))


def append_jsonl(path: Path, objects: Iterable[Mapping[str, object]]) -> None:
    """Append objects as :func:`write_jsonl` writes them. A half-written last line, left by a run that was killed, is
    closed first, so that it spoils no good line."""
    lines = _lines(objects)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = "\n" + lines
        file.write(lines.encode("utf-8"))


LONGEST_LINE: Final = 64 * 2**20
"""Bytes; a longer line is none that a run wrote, and counts as one that cannot be read."""

LARGEST_RECORDS: Final = 4 * 2**30
LARGEST_OBJECT: Final = 256 * 2**20
"""Bytes of files that a run may have: of JSON lines, and of one JSON object."""


def read_jsonl(path: Path) -> JsonLines:
    """Every readable object of a file, in order; a missing file holds none. A UserError where it is absurdly large."""
    objects, skipped = [], 0
    try:
        with path.open("rb") as file:
            _check_size(path, LARGEST_RECORDS)
            file.seek(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
            while line := file.readline(LONGEST_LINE):
                is_cut = len(line) == LONGEST_LINE and not line.endswith(b"\n")
                while is_cut and (rest := file.readline(LONGEST_LINE)):
                    is_cut = not rest.endswith(b"\n")
                    line = b"?"
                if line.strip():
                    found = _parsed(line)
                    skipped += found is None
                    objects += [] if found is None else [found]
    except FileNotFoundError:
        pass
    return JsonLines(objects, skipped)


def read_object(path: Path) -> bytes:
    """The content of a file that holds one JSON object or the like; a UserError where it is absurdly large."""
    _check_size(path, LARGEST_OBJECT)
    return path.read_bytes()


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise UserError(
            f"{path} has {size:,} bytes, more than the {most:,} that are read. Give another run's directory."
        )


def object_in(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none."""
    try:
        return _parsed(path.read_bytes()) or {}
    except OSError:
        return {}


def _lines(objects: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(_finite(item), ensure_ascii=False, allow_nan=False) + "\n" for item in objects)


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _finite(value: object) -> object:
    """The value with null where a float is infinite or NaN, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
