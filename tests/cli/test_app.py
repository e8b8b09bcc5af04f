"""The command line from outside: exit codes, what is printed where, and what is not imported."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cwdpo.__main__
from cwdpo.cli import app
from cwdpo.cli.app import explain
from cwdpo.errors import UserError

Run = Callable[..., tuple[int, str, str]]
RECIPE = "model: {name_or_path: m}\ndata: {train: rows.jsonl}\nstage2: {}\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call ``cwdpo`` in this process; gives exit code, standard output and standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        code = left.value.code
        return (0 if code is None else int(code)), printed.out, printed.err

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x"], "cwdpo: No such command 'trian'. Did you mean 'train'? See: cwdpo --help"),
        (["r.yaml"], "cwdpo: No such command 'r.yaml'. Did you mean `cwdpo train r.yaml`?"),
        (["export", "x"], "cwdpo: No such command 'export'. Did you mean `cwdpo merge`?"),
        (["DPO"], "cwdpo: No such command 'DPO'. Did you mean `cwdpo train`?"),
        (["infer"], "cwdpo: No such command 'infer'. Did you mean `cwdpo chat`?"),
        (["negatives", "export"], "cwdpo negatives: No such command 'export'."),
        (["check", "x.jsonl", "--modle", "m"], "cwdpo check: there is no option --modle. Did you mean --model? See"),
        (["check", "--modle", "m", "x.jsonl"], "cwdpo check: there is no option --modle. Did you mean --model? See"),
        (["train"], "cwdpo train: RECIPE is missing. Write it: the recipe, a YAML file. See: cwdpo train --help"),
        (["check"], "cwdpo check: DATA is missing. Write it: a file, pattern or directory of rows, hf:OWNER"),
        (["check", "x", "y"], "cwdpo check: there is no place for 'y'. cwdpo check takes DATA alone. See: cwdpo check"),
        (["evaluate", "x", "y.jsonl"], "cwdpo evaluate: there is no place for 'y.jsonl'. Write --data y.jsonl."),
        (["chat", "x", "--image", "a", "b"], "cwdpo chat: there is no place for 'b'. Repeat the option for each: --im"),
        (["evaluate", "--model", "x"], "cwdpo evaluate: RUN_OR_MODEL is written without --model. See: cwdpo evaluate"),
        (["probe", "x", "-d", "y"], "cwdpo probe: there is no option -d. Did you mean --data?"),
        (["evaluate", "x", "--no-generate=yes"], "cwdpo evaluate: --no-generate takes no value. Write --no-generate a"),
        (["chat", "x", "a.png"], "cwdpo chat: there is no place for 'a.png'. Write --image a.png. See"),
        (["init", "x", "--force"], "cwdpo init: there is no option --force. Nothing is overwritten: remove the file"),
        (["init", "x", "--output", "y"], "cwdpo init: there is no option --output. Did you mean --out? See"),
        (["schema", "--out", "x"], "cwdpo schema: there is no option --out. It prints: write cwdpo schema > FILE. See"),
        (["probe", "x", "--base", "y"], "cwdpo probe: there is no option --base. Did you mean --reference? See"),
        (["evaluate", "x", "--base", "y"], "cwdpo evaluate: there is no option --base. Did you mean --against? See"),
        (["audit", "x", "--model", "y"], "cwdpo audit: RUN is written without --model, after DATA. See"),
        (["audit", "x", "--batchsize=3"], "cwdpo audit: there is no option --batchsize. Did you mean --batch-size? S"),
        (
            ["chat", "x", "--prompt", "hi"],
            "cwdpo chat: there is no option --prompt. Pipe the question in: echo",
        ),
        (["check", "x", "--nonsense"], "cwdpo check: there is no option --nonsense. See: cwdpo check --help"),
        (["demo", "x"], "cwdpo demo: there is no place for 'x'. cwdpo demo takes options alone."),
        (
            ["chat", "m", "Why blue?", "--image", "a.png"],
            "cwdpo chat: there is no place for 'Why blue?'. Pipe the question in: "
            'echo "Why blue?" | cwdpo chat m --image a.png.',
        ),
        (
            ["bench", "--rows", "x"],
            "cwdpo bench: --rows is 'x', but must be a whole number. Write for example --rows 4",
        ),
        (["chat", "x", "--temperature=hot"], "cwdpo chat: --temperature is 'hot', but must be a number. Write for ex"),
        (
            ["analyse", "x", "--data", "y", "--eta", "fast"],
            "cwdpo analyse: --eta is 'fast', but must be a number. Write for example --eta 1e-3.",
        ),
        (["bench", "--setting", "x"], "cwdpo bench: --setting is 'x', but must be one of ii, "),
        (["init", "x", "--model"], "cwdpo init: --model has no value. Write --model MODEL. See: cwdpo init --help"),
        (
            ["analyse", "x", "--data", "y", "--loss", "dop"],
            "cwdpo analyse: --loss is 'dop', but must be one of sft, dpo",
        ),
        (["judge", "x", "y"], "cwdpo judge: --data is missing. Write it: a file or directory of rows. See:"),
        (["judge", "x", "y", "--data", "z", "--seed=-1"], "cwdpo judge: --seed is '-1', but must be at least 0. Write"),
        (["demo", "--files", "--seed", "1"], "cwdpo demo: --files has no value. Write --files DIR."),
        (["negatives", "mix", "x", "--out"], "cwdpo negatives mix: --out has no value. Write --out OUT."),
        (["evaluate", "x", "--data", "-h"], "cwdpo evaluate: --data has no value. Write --data DATA."),
        (["negatives", "mix", "--nothing"], "cwdpo negatives mix: there is no option --nothing. See"),
        (["demo", "--sed", "1"], "cwdpo demo: there is no option --sed. Did you mean --seed? See: cwdpo demo --help"),
        (["demo", "--seed", "-1"], "cwdpo demo: --seed is '-1', but must be at least 0. Write for example --seed 0."),
    ],
)
def test_wrong_use_is_one_line(run: Run, words: list[str], said: str) -> None:
    code, out, printed = run(*words)
    assert (code, out) == (2, "")
    assert printed.startswith(said)
    assert printed.count("\n") == 1
    assert "--help" in printed


def test_runs_are_not_compared_by_compare(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("output_dir: a\ndata: {train: t.jsonl}\nmodel: {}\n")
        (tmp_path / name / "metrics.jsonl").write_text("")
    runs = [str(tmp_path / name) for name in ("a", "b")]

    for words in (runs, [*runs, "--out", "c"], runs[:1]):
        code, _, printed = run("compare", *words)

        assert code == 2
        assert "compared by `cwdpo judge A B --data ROWS` and `cwdpo report A B`" in printed


@pytest.mark.parametrize(
    "words",
    [["merge", "{}", "--out", "o"], ["report", "{}"], ["compare", "{}"], ["{}"], ["evaluate", "m", "{}"]],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_no_defect(run: Run, words: list[str]) -> None:
    code, _, printed = run(*(word.format("x" * 300) for word in words))

    assert code == 2
    assert "Traceback" not in printed
    assert len(printed) < 500


ANALYSE = ["analyse", "m", "--data", "d"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat", "x", "--base", "--against", "y"], "--base and --against name a second model each, and there is one."),
        (["audit", "x", "--rows", "3"], "--rows has no effect without a RUN, as texts take no time. Write one after D"),
        ([*ANALYSE, "--loss", "sft", "--beta", "0.2"], "--beta has no effect with --loss sft. Leave it out, or write"),
        ([*ANALYSE, "--loss", "dpo", "--floor", "-2"], "--floor has no effect with --loss dpo. Leave it out, or write"),
        ([*ANALYSE, "--floor", "auto"], "--floor is 'auto'. Write chosen, gentle, mean or quantile:0.5, with "),
        ([*ANALYSE, "--out", "/proc/a"], "/proc/a cannot be written ("),
        (
            ["bench", "--json", "/proc/a/b.json"],
            "/proc/a/b.json: there is no directory /proc/a. Make it, or give an",
        ),
        (["compare", "g.yaml", "--out", "/proc/a"], "/proc/a cannot be written ("),
        (["compare", "g.yaml", "--out", "run"], "run is a run, and a grid has many. Give another --out."),
        (["evaluate", "run", "--data", "d", "--out", "/proc/e.json"], "/proc/e.json cannot be written ("),
        (["init", "d.jsonl", "--model", "m", "--out", "/proc/r.yaml"], "/proc/r.yaml cannot be written ("),
        (["init", "m"], "m is a model, and rows are needed there. Write --model m."),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    run: Run, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/metrics.jsonl", "run/recipe.yaml", "m/config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(RECIPE if name.endswith("yaml") else "{}")
    code, out, printed = run(*words)
    assert (code, out) == (2, "")
    assert printed.startswith(said)
    assert printed.count("\n") == 1


def test_a_command_without_arguments_shows_its_help(run: Run) -> None:
    code, _, printed = run("negatives")
    assert code == 2
    assert not printed.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["check", "--help"], ["merge", "-h"], ["report", "-h"], ["--version"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom cwdpo.cli.app import main\n"
        f"sys.argv = ['cwdpo', *{words}]\n"
        "try:\n    main()\n"
        "except SystemExit as left:\n    assert not left.code, left.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cwdpo" in done.stdout


def test_the_first_help_loads_no_settings() -> None:
    """They take as long as all the rest."""
    script = (
        "import sys\nfrom cwdpo.cli.app import main\nsys.argv = ['cwdpo', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    assert 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cwdpo", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("cwdpo 0.")


def test_flags_have_no_type_in_the_help(run: Run) -> None:
    for command in (["demo"], ["negatives", "gentle"]):
        assert "<bool>" not in run(*command, "--help")[1]
    assert "<path>" in run("demo", "--help")[1]


def test_help_lists_the_commands_in_order_of_use(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert out.index("demo ") < out.index("check ") < out.index("train ") < out.index("merge ")


def test_a_slip_in_the_recipe_is_one_line_and_exit_2(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.replace("{}", "{coolling: null}"))
    code, out, err = run("train", recipe)
    assert (code, out) == (2, "")
    assert err == f"{recipe}:3: unknown key 'stage2.coolling' - did you mean 'stage2.cooling'?\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--beta", "0"], "--beta: stage2.beta is 0.0, but must be > 0. Try 0.1.\n"),
        (["--floor", "-2", "--bta=1"], "--bta: unknown setting - did you mean '--stage2.beta'?\n"),
        (
            ["stray"],
            "'stray' is not a setting. Write settings after the recipe as --key value; a run's directory is "
            "--output_dir.\n",
        ),
    ],
)
def test_a_slip_in_a_setting_is_one_line_and_exit_2(run: Run, tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert run("train", tmp_path / "r.yaml", *words) == (2, "", expected)


def test_unknown_trainer_settings_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    code, _, err = run("train", tmp_path / "r.yaml", "--trainer.lerning_rate", "1e-6")
    assert code == 2
    assert err == (
        "--trainer.lerning_rate: unknown key 'trainer.lerning_rate' - did you mean 'trainer.learning_rate'?\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--beta 1 r.yaml", "before --beta. Write: cwdpo train r.yaml --beta 1\n"),
        ("--recipe r.yaml --beta 1", "before --recipe. Write: cwdpo train r.yaml --beta 1\n"),
        ("--config=r.yaml --beta 1", "before --config=r.yaml. Write: cwdpo train r.yaml --beta 1\n"),
        ("--beta 1", "before --beta. Write: cwdpo train RECIPE --beta ...\n"),
    ],
)
def test_settings_before_the_recipe_are_explained(run: Run, words: str, said: str) -> None:
    assert run("train", *words.split()) == (2, "", f"expected the recipe {said}")
    if "r.yaml" in words:
        said = said.replace("cwdpo train", "cwdpo check")
        assert run("check", *words.split()) == (2, "", f"expected the recipe {said}")


def test_paths_below_home_are_found_where_no_shell_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("check", "~/no.jsonl")[2].startswith(f"{tmp_path}/no.jsonl: no such file")
    assert run("check", "x", "--image-root=~/y")[2].startswith(f"the image root {tmp_path}/y is not a directory")


def test_settings_reach_the_runner(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    seen: dict[str, Any] = {}

    def record(recipe: Any, *, resume: bool, callbacks: Any, **_: Any) -> None:
        seen.update(recipe=recipe, resume=resume, callbacks=callbacks)
        raise UserError("far enough")

    monkeypatch.setattr("cwdpo.recipes.run.run_recipe", record)
    words = ["--floor", "-2.5", "--trainer.learning_rate", "1e-6", "--resume", "--seed=7"]
    code, out, err = run("train", tmp_path / "r.yaml", *words)
    assert (code, err) == (2, "far enough\n")
    assert out.startswith("nothing to resume in ")
    assert seen["recipe"].stage2.cooling.floor == -2.5
    assert seen["recipe"].trainer == {"learning_rate": 0.000001}
    assert (seen["recipe"].seed, seen["resume"], len(seen["callbacks"])) == (7, True, 1)
    (tmp_path / "runs" / "whole").mkdir(parents=True)
    out = run("train", tmp_path / "r.yaml", "--resume", "--output_dir", tmp_path / "runs" / "whoel")[1]
    assert out.endswith(f"starting from the beginning. Did you mean {tmp_path}/runs/whole?\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), "\nInterrupted.\nContinue with:  cwdpo train r.yaml --beta 1 --resume\n"),
        (KeyboardInterrupt("Stopped at 3."), "\nStopped at 3.\nContinue with:  cwdpo train r.yaml --beta 1 --resume\n"),
    ],
)
def test_an_interruption_says_how_to_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("cwdpo.config.recipe_file.read_recipe", interrupt)
    assert run("train", "r.yaml", "--beta", "1") == (130, "", expected)


def test_a_full_disk_is_told_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/run/model.safetensors")

    monkeypatch.setattr("cwdpo.config.recipe_file.read_recipe", fill)
    code, _, err = run("train", "r.yaml")
    assert code == 2
    assert err.startswith("no space left on the disk at /data/run/model.safetensors.")
    assert err.count("\n") == 1


def test_defects_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("cwdpo.config.recipe_file.read_recipe", fail)
    monkeypatch.setattr(sys, "argv", ["cwdpo", "train", "r.yaml"])
    with pytest.raises(KeyError):
        app.main()


def test_errors_of_libraries_are_known_by_their_cause() -> None:
    inner = OSError(errno.ENOSPC, "No space left on device")
    outer = RuntimeError("PytorchStreamWriter failed writing file")
    outer.__context__ = inner
    assert "no space left" in str(explain(outer))
    assert "no space left" in str(explain(RuntimeError("I/O error: No space left on device (os error 28)")))
    assert "no permission at /x" in str(explain(PermissionError(errno.EACCES, "Permission denied", "/x")))
    assert explain(OSError(errno.EIO, "Input/output error")) is None
    gone = explain(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:60314"))
    assert str(gone).startswith("another process of this training has ended, and this one cannot go on alone.")
    assert explain(ValueError("Connection closed by peer")) is None  # of a server, say
    hidden = ValueError("ours")
    hidden.__context__, hidden.__suppress_context__ = inner, True
    assert explain(hidden) is None


def test_merge_takes_the_last_stage_of_a_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    flags = []

    def merge(source: Path, out: Path, *, base: str | None, **options: Any) -> Path:
        given.append((source.name, out.name, base))
        flags.append(options)
        return out

    monkeypatch.setattr("cwdpo.models.merging.merge_adapter", merge)
    monkeypatch.setattr("cwdpo.report.card.write_merged_card", lambda source, merged: None)
    assert run("merge", tmp_path, "--out", "o")[0] == 2
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "adapter_config.json").write_text("{}")
        assert run("merge", tmp_path, "--out", "o")[0] == 0
    assert run("merge", tmp_path / "stage1", "--out", "o", "--base", "b")[0] == 0
    assert given == [("stage1", "o", None), ("stage2", "o", None), ("stage1", "o", "b")]
    assert flags == [{"dtype": "auto", "any_base": False, "trust_remote_code": False, "say": print}] * 3
    assert run("merge", tmp_path, "--out", "o", "--any-base", "--trust-remote-code", "--dtype", "float32")[0] == 0
    assert flags[3] == {"dtype": "float32", "any_base": True, "trust_remote_code": True, "say": print}
    assert run("merge", tmp_path / "nowhere", "--out", "o")[2].startswith(
        f"there is no directory {tmp_path / 'nowhere'}."
    )


def test_an_interruption_while_the_commands_are_imported_is_polite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "cwdpo.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "cwdpo.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    with pytest.raises(SystemExit, match="130"):
        cwdpo.__main__.main()
    assert capsys.readouterr().err == "\nInterrupted. Nothing was begun.\n"
