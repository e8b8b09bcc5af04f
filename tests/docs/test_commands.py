"""Every command in the documents is one that the programs take, and the start pages' commands run as they are."""

import ast
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cwdpo.cli import app
from cwdpo.config.checking import build, check_trainer_section
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import known_settings
from cwdpo.demo import files
from cwdpo.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names what was once
OTHERS = (
    "pip",
    "source",
    "tensorboard",
    "vllm",
    "hf",
    "cd",
    "git",
    "docker",
    "torchrun",
    "accelerate",
    "ssh",
    "apt-get",
)
"""Programs that are not ours, or need a network or a GPU; of ``torchrun``, what it starts is ours."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def spans(page: Path) -> Iterator[str]:
    """Code inside the sentences, which may go over a line's end."""
    without = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without))


def in_block(page: Path) -> Iterator[str]:
    for language, text in blocks(page):
        if language in ("", "text", "sh", "bash", "console"):
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                yield line.strip().removeprefix("$ ")


def words_of(line: str) -> list[str]:
    """A command's words, without what a shell takes for itself: comments, redirections, a pipe, variables before it."""
    try:
        words = shlex.split(re.split(r"\s#\s|\s[|<>]\s|\s&$|\s&&\s|;\s", line)[0])
    except ValueError:
        return []
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


def texts_of(source: Path) -> Iterator[str]:
    """The texts in a file of code; what is filled in is `{}`."""
    tree = ast.parse(source.read_text("utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


OURS = ("cwdpo", "python", "make")
IN_BLOCKS = [
    (str(page.relative_to(ROOT)), line)
    for page in PAGES
    for line in in_block(page)
    if (words := words_of(line)) and (words[0] in OURS or (words[0] in OTHERS and "cwdpo" in words))
]
IN_SENTENCES = [
    (str(page.relative_to(ROOT)), span)
    for page in PAGES
    for span in dict.fromkeys(spans(page))
    if (words := words_of(span)) and words[0] in OURS and len(words) > 1
]


def problem_of(words: list[str], *, whole: bool) -> str:
    """Why a command would not be taken; of one in a sentence what is left out is not missed."""
    if words[0] == "make":
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no target {missing}" if missing else ""
    if "cwdpo" in words:
        return problem_of_cwdpo(words[words.index("cwdpo") + 1 :], whole=whole)
    return problem_of_script(words[1:])


def problem_of_cwdpo(words: list[str], *, whole: bool) -> str:
    group: Any = typer.main.get_command(app.app)
    context = group.make_context("cwdpo", list(words), resilient_parsing=True)
    rest = list(words)
    while hasattr(group, "commands"):
        if not rest or rest[0].startswith("-"):
            return ""  # --help, --version
        if rest[0] not in group.commands:
            return f"no command {rest[0]}"
        group, rest = group.commands[rest[0]], rest[1:]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    others = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    if group.name == "train":
        return problem_of_settings(others)
    if others or not whole:
        return f"no option {others}" if others else ""
    try:
        group.make_context(group.name, list(rest), parent=context)
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of click, which typer keeps a copy of
            raise
        return str(error.format_message())
    return ""


def problem_of_settings(words: list[str]) -> str:
    from cwdpo.trainers.arguments import argument_types

    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        above, _, last = name.rpartition(".")
        short = [full for full in known_settings() if full.rpartition(".")[2] == name]
        trainer = above in ("trainer", "stage1.trainer", "stage2.trainer")
        known = name in known_settings() or len(short) == 1 or (trainer and last in argument_types())
        if word.startswith("--") and not known:
            return f"no setting {name}"
    return ""


def problem_of_script(words: list[str]) -> str:
    """A script of this repository is there, and has the options."""
    if not words or words[0] in ("-c", "-"):
        return ""
    name = words[1].replace(".", "/") if words[0] == "-m" else words[0]
    found = [path for path in (ROOT / name, ROOT / f"{name}.py", ROOT / "tests" / name) if path.exists()]
    if not found:
        return "" if words[0] == "-m" and name.split("/")[0] in ("venv", "pip", "lmms_eval") else f"no script {name}"
    sources = [found[0]] if found[0].is_file() else list(found[0].rglob("*.py"))
    text = "".join(path.read_text("utf-8") for path in sources)
    missing = [word for word in words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
    return f"{name} has no {missing}" if missing else ""


ELSEWHERE = ("python run.py",)
"""Scripts of other repositories, as the page says."""


@pytest.mark.parametrize(("page", "line"), [each for each in IN_BLOCKS if not each[1].startswith(ELSEWHERE)])
def test_commands_in_blocks_are_taken(page: str, line: str) -> None:
    assert not problem_of(words_of(line), whole=True), f"{page}: {line}"


@pytest.mark.parametrize(("page", "span"), IN_SENTENCES)
def test_commands_in_sentences_are_taken(page: str, span: str) -> None:
    assert not problem_of(words_of(span), whole=False), f"{page}: {span}"


SOURCES = sorted((ROOT / "src").rglob("*.py"))
IN_MESSAGES = [
    (str(path.relative_to(ROOT)), span)
    for path in SOURCES
    for text in texts_of(path)
    for span in re.findall(r"`(cwdpo [^`]+)`", text)
    if len(words_of(span)) > 1
]


@pytest.mark.parametrize(("source", "span"), IN_MESSAGES)
def test_commands_in_messages_are_taken(source: str, span: str) -> None:
    words = words_of(span)
    is_open = words[1][0] in "{." or words[-1] == "..."  # a part that is filled in where it is said
    assert is_open or not problem_of(words, whole=False), f"{source}: {span}"


def test_the_check_finds_what_is_wrong() -> None:
    for line in (
        "cwdpo trian r.yaml",
        "cwdpo check",
        "cwdpo check a.jsonl --modle m",
        "cwdpo train r.yaml --stage2.bta 1",
        "cwdpo train r.yaml --trainer.lr 1",
        "cwdpo negatives soft a.jsonl",
        "torchrun --nproc_per_node 2 -m cwdpo train r.yaml --stage2.bta 1",
        "make demonstration",
        "python docs/no_such.py",
        "python docs/make_results.py --no-such-option",
    ):
        assert problem_of(words_of(line), whole=True), line
    assert len(IN_BLOCKS) > 60
    assert len(IN_SENTENCES) > 30


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Pieces of recipes in blocks and in sentences: keys of the top of a recipe, and no `...` to fill in."""
    top = {name for name in known_settings() if "." not in name}
    for page in PAGES:
        texts = [text for language, text in blocks(page) if language == "yaml"]
        texts += [span for span in spans(page) if re.match(r"\w+: \{", span)]
        for text in texts:
            if "..." in text or re.search(r"\b[A-Z]{3,}\b", text):
                continue
            try:
                found = yaml.safe_load(text)
            except yaml.YAMLError:
                continue
            if isinstance(found, dict) and found and set(found) <= top:
                yield str(page.relative_to(ROOT)), text


RECIPES = list(recipes())


@pytest.mark.parametrize(("page", "text"), RECIPES)
def test_recipes_have_only_known_keys_and_values(page: str, text: str) -> None:
    from cwdpo.config import located_yaml
    from cwdpo.trainers.arguments import argument_types

    values = located_yaml.load(text, page).values
    whole = {"model": {"name_or_path": "m"}, "data": {"train": "t"}}
    for section, needed in whole.items():
        values[section] = needed | values.get(section, {})
    if not {"stage1", "stage2"} & values.keys():
        values["stage2"] = {}
    values.setdefault("probes", {"every": 10})
    recipe = build(Recipe, values)
    for settings in (recipe.trainer, *(stage.trainer for stage in recipe.stages.values())):
        check_trainer_section(settings, argument_types(), lambda _: page)


def test_recipes_are_found() -> None:
    assert len(RECIPES) > 15
    with pytest.raises(ConfigError):
        build(Recipe, {"model": {"name_or_path": "m"}, "data": {"train": "t"}, "stage2": {"bta": 1}})


Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a line of a page, in a folder of its own, on fewer rows; gives exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "TRAIN_ROWS", 8)
    monkeypatch.setattr(files, "HELD_OUT_ROWS", 4)

    def call(line: str) -> tuple[int, str]:
        words = words_of(line)
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            return 0, ""
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("what is this?\n"))
        capsys.readouterr()
        try:
            app.main()
        except SystemExit as left:
            return int(str(left.code or 0)), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return call


def commands_of(page: str, start: str) -> list[str]:
    """The lines of a page's block from the one that starts so."""
    [text] = [found for _, text in blocks(ROOT / page) if start in text for found in [text[text.index(start) :]]]
    return text.splitlines()


@pytest.mark.slow
def test_the_first_screen_and_the_start_page_run_as_they_are(run: Run, tmp_path: Path) -> None:
    first, second = (commands_of(page, "cwdpo demo --files") for page in ("README.md", "docs/index.md"))
    names = [[words_of(line)[:2][-1] for line in lines] for lines in (first, second)]
    assert names[0] == ["demo", "play", "init", "check", "train", "chat"]
    assert names[1][:5] == names[0][:5]  # and once is enough
    assert {*names[1][5:]} == {"evaluate", "diagnose", "report", "merge", "negatives"}
    for line in [*first, *second[5:]]:
        code, out = run(line)
        assert code == 0, f"{line}\n{out}"
    left = tmp_path / "play" / "runs" / "tiny-vlm-cwdpo"
    for name in (
        "report.html",
        "evaluation.json",
        "stage1/README.md",
        "stage2/README.md",
        "stage2/adapter_config.json",
    ):
        assert (left / name).stat().st_size > 100
    assert (tmp_path / "play" / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Jupyter: lines for the shell are ours, and a cell's last value is not shown."""
    notebook = json.loads((ROOT / "examples" / "play.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    printed = ""
    for cell in cells:
        python = []
        for line in cell.splitlines():
            if line.startswith(("!cwdpo ", "%cd ")):
                code, out = run(line[1:])
                assert code == 0, f"{line}\n{out}"
            elif not line.startswith("!"):
                python.append(line)
        exec("\n".join(python), names)
        printed += capsys.readouterr().out
    assert (tmp_path / "play" / "runs" / "tiny-vlm-cwdpo" / "report.html").is_file()
    assert names["sheet"].size == (512, 128)
    assert printed.count("tuned: ") == 4
    assert not any(cell.get("outputs") for cell in notebook["cells"])
