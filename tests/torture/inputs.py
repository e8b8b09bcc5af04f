"""Random and damaged input of five sorts, each with the function that meets it: an answer, or one line for the user."""

import io
import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from report import synthetic

from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.images import open_image
from cwdpo.data.reading import read_rows
from cwdpo.diagnosis import examine, read_recording
from cwdpo.errors import UserError
from cwdpo.negatives.server import Endpoint
from cwdpo.report import write_report

Bytes = st.binary(max_size=30)
ODD = st.sampled_from(
    [None, True, 0, -1, 1e308, -1e-300, float("inf"), float("nan"), 10**30, "", " ", "\x00", "\ud800", "a" * 3000,
     "<b>&", "../x", "/etc/passwd", [], {}, [[]], [None], {"a": 1}]
)  # fmt: skip


@dataclass
class Outcome:
    """What became of one sort of input."""

    tried: int = 0
    taken: int = 0
    defects: Counter[str] = field(default_factory=Counter)
    """Errors that are no message for the user, by type and place, and how many there were of each."""

    def meet(self, work: Callable[[], object]) -> None:
        self.tried += 1
        try:
            work()
            self.taken += 1
        except UserError as error:
            if len(str(error)) > 4000:
                self.defects[f"a message of {len(str(error)):,} characters"] += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place if "/cwdpo/" in frame.filename][-1:]
            where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours)
            self.defects[f"{type(error).__name__} at {where}: {str(error)[:100]}"] += 1


def json_of(keys: list[str]) -> st.SearchStrategy[Any]:
    """JSON with the keys that its reader knows, and values that it may not."""
    leaf = ODD | st.floats() | st.integers() | st.text(max_size=12)
    named = st.sampled_from(keys)
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(named, inner, max_size=4), max_leaves=14
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with some places changed, cut, doubled or filled in."""
    place = st.integers(0, len(content))
    change = st.tuples(st.sampled_from(["set", "cut", "double", "insert"]), place, place, Bytes)
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: _change(content, changes))


def _change(content: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for what, one, other, new in changes:
        first, last = sorted((min(one, len(content)), min(other, len(content))))
        if what == "set":
            content = content[:first] + new + content[first + len(new) :]
        elif what == "cut":
            content = content[:first] + content[last:]
        elif what == "double":
            content = content[:last] + content[first:last][:10_000] + content[last:]
        else:
            content = content[:first] + new + content[first:]
    return content


ROW: dict[str, Any] = {
    "id": "a", "images": ["0.png"], "chosen": "yes", "rejected": "no", "gentle": "yes?", "negatives": ["never"],
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
}  # fmt: skip
ROW_KEYS = [*ROW, "image", "messages", "conversations", "question", "role", "content", "type", "text", "from", "value",
            "rejected_response", "kind", "tools", "longer"]  # fmt: skip


class Rows:
    """Files of rows: JSON with known keys, and damaged lines of a good file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"
        Image.new("RGB", (8, 8), "red").save(folder / "0.png")
        line = json.dumps(ROW).encode() + b"\n"
        swapped = st.tuples(st.sampled_from(ROW_KEYS), json_of(ROW_KEYS)).map(
            lambda change: ROW | {change[0]: change[1]}
        )
        objects = (json_of(ROW_KEYS) | swapped).map(lambda value: json.dumps(value).encode())
        self.strategy = st.tuples(objects | damaged(line * 2), st.sampled_from(["rows.jsonl", "rows.json"]))

    def __call__(self, given_: tuple[bytes, str]) -> None:
        content, name = given_
        path = self.path.with_name(name)
        path.write_bytes(content)
        read_rows(path)


class Recipes:
    """YAML files: settings of a good one exchanged for odd ones, damaged text, and odd overrides."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "recipe.yaml"
        good: dict[str, Any] = {
            "model": {"name_or_path": "x", "lora": {"r": 4}},
            "data": {"train": "rows.jsonl", "stage1_fraction": 0.5},
            "stage1": {"objective": "constrained", "penalty": 0.2},
            "stage2": {"beta": 0.1, "cooling": {"floor": "chosen - 2 tau"}, "loss": {"sigmoid": 1.0}},
            "negatives": {"refresh": "epoch", "curriculum": [[0, 0], [1, 1]], "endpoint": "http://h/v1"},
            "probes": {"rows": 4, "every": 2},
            "trainer": {"max_steps": 3},
        }
        keys = sorted({*good, *(key for section in good.values() for key in section), "seed", "engine", "output_dir"})
        one = st.tuples(st.sampled_from(sorted(good)), st.sampled_from(keys), json_of(keys))
        changed = one.map(
            lambda c: yaml.safe_dump({**good, c[0]: {**good[c[0]], c[1]: c[2]}}, allow_unicode=True).encode(
                "utf-8", "replace"
            )
        )
        text = yaml.safe_dump(good).encode()
        words = st.lists(
            st.sampled_from(["--beta", "--stage2.beta", "--x", "0.2", "", "--", "{", "[1", "!!python/x", "a" * 999]),
            max_size=3,
        )
        whole = json_of(keys).map(lambda value: json.dumps(value).encode())
        self.strategy = st.tuples(changed | damaged(text) | whole, words | st.just([]))

    def __call__(self, given_: tuple[bytes, list[str]]) -> None:
        content, words = given_
        self.path.write_bytes(content)
        read_recipe(self.path, words)


class Images:
    """Damaged files of the usual formats."""

    def __init__(self, folder: Path) -> None:
        picture = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
        files = []
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
            file = io.BytesIO()
            picture.save(file, kind)
            files.append(file.getvalue())
        self.strategy = st.sampled_from(files).flatmap(damaged) | st.binary(max_size=200)

    def __call__(self, content: bytes) -> None:
        open_image(content, source="rows.jsonl:1")


class RunDirectories:
    """Run directories with damaged and odd files, through diagnosis and report."""

    def __init__(self, folder: Path) -> None:
        self.root, self.page = folder / "run", folder / "page.html"
        rng = random.Random(0)
        synthetic.write_lines(
            self.root / "metrics.jsonl", synthetic.stage1(3, rng) + synthetic.stage2(12, rng, cooled=True)
        )
        synthetic.write_lines(self.root / "probes.jsonl", synthetic.probes(12, cooled=True))
        (self.root / "recipe.yaml").write_text("stage2: {beta: 0.1}\noutput_dir: x\n")
        (self.root / "summary.json").write_text(
            json.dumps({"title": "t", "stages": {"stage2": {"steps": 12}}, "wall_seconds": 3})
        )
        (self.root / "evaluation.json").write_text('{"measures": {"ece": 0.1}, "examples": [{"row": "a"}]}')
        (self.root / "audit.json").write_text('{"shortcuts": [{"name": "length", "accuracy": 0.5}]}')
        (self.root / "probes" / "stage2").mkdir(parents=True)
        (self.root / "probes" / "stage2" / "examples.jsonl").write_text(
            '{"row": "a", "pictures": ["0.png"], "prompt": "p", "answers": []}\n'
        )
        self.good = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        keys = ["stage", "step", "loss", "group", "mean_logprob", "delta", "n", "reliability", "cooling/histogram",
                "title", "stages", "measures", "examples", "answers", "tokens", "log_history", "grad_norm", "start",
                "row", "logps/chosen", "pictures", "shortcuts", "rewards/chosen", "entropy", "end", "text"]  # fmt: skip
        odd = st.lists(json_of(keys), min_size=1, max_size=3).map(
            lambda lines: b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        )
        names = sorted(path for path in self.good)
        self.strategy = st.sampled_from(names).flatmap(
            lambda path: st.tuples(st.just(path), damaged(self.good[path]) | odd)
        )

    def __call__(self, given_: tuple[Path, bytes]) -> None:
        path, content = given_
        path.write_bytes(content)
        try:
            recording = read_recording(self.root)
            examine(recording.readings, beta=recording.beta, notes=recording.notes)
        except UserError:
            pass
        finally:
            try:
                write_report([self.root], self.page)
            finally:
                path.write_bytes(self.good[path])


class Answers:
    """What a server may answer: JSON with known keys, damaged answers, any status."""

    def __init__(self, folder: Path) -> None:
        good = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
        keys = ["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "data", "id", "error"]
        body = json_of(keys).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(good).encode())
        status = st.sampled_from([200, 200, 200, 200, 302, 400, 401, 404, 429, 500])
        waits = st.sampled_from(["1", "-1", "nan", "inf", "1e999", "soon", "Thu, 99 Foo"])
        self.strategy = st.tuples(status, body, waits)
        self.endpoint = Endpoint("http://127.0.0.1:9/v1", model="m", retries=1, sleep=_wait, give_up_after=10**9)

    def __call__(self, given_: tuple[int, bytes, str]) -> None:
        status, body, wait = given_
        answer = httpx2.Response(status, headers={"retry-after": wait}, content=body)
        self.endpoint._within_deadline = lambda *_: answer  # type: ignore[method-assign]
        for ask in (
            lambda: self.endpoint.chat([{"role": "user", "content": "x"}], n=2, neutral=True),
            self.endpoint.models,
        ):
            try:
                ask()
                said = ""
            except UserError as error:
                said = str(error)
            assert "\n" not in said, "a message of several lines"


def _wait(seconds: float) -> None:
    assert 0 <= seconds <= 60, f"a wait of {seconds} seconds"


SORTS: Mapping[str, type[Any]] = {
    "rows": Rows,
    "recipes": Recipes,
    "images": Images,
    "run directories": RunDirectories,
    "server answers": Answers,
}


def fuzz(name: str, folder: Path, count: int, *, first: int = 0) -> Outcome:
    """Try so many inputs of a sort, which follow from ``first``; all of them, whatever becomes of any."""
    folder.mkdir(parents=True, exist_ok=True)
    meet, outcome = SORTS[name](folder), Outcome()
    how = settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @seed(first)
    @how
    @given(meet.strategy)
    def every(value: Any) -> None:
        outcome.meet(lambda: meet(value))

    every()
    return outcome


def lines_of(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """A row of a table each."""
    for name, outcome in outcomes.items():
        yield f"| {name} | {outcome.tried:,} | {outcome.taken:,} | {sum(outcome.defects.values())} |"
