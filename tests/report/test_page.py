"""The page as a whole: it stands alone, is safe, shows what the directories hold, and refuses what holds nothing."""

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report.markup import Page
from report.synthetic import stage1, stage2, write_demo, write_lines

from cwdpo.errors import UserError
from cwdpo.report import write_report


def read(out: Path) -> Page:
    return Page(out.read_text("utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo(root)
    return write_report([root], root / "report.html")


@pytest.fixture
def one_run(tmp_path: Path) -> Path:
    rng = random.Random(1)
    write_lines(tmp_path / "mine/metrics.jsonl", [*stage1(30, rng), *stage2(30, rng, cooled=True)])
    return tmp_path / "mine"


def test_page_is_well_formed_and_small(demo: Path) -> None:
    assert read(demo).misnested == []
    assert demo.stat().st_size < 400_000


def test_page_refers_to_nothing_outside_itself(demo: Path) -> None:
    page, source = read(demo), demo.read_text("utf-8")
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    links = [a[name] for _, a in page.tags for name in ("src", "href", "srcset", "xlink:href", "action") if name in a]
    assert links
    assert [link for link in links if not link.startswith(("data:", "#"))] == []


def test_policy_allows_this_style_and_script_alone(demo: Path) -> None:
    page = read(demo)
    policies = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (policy,) = policies
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = [data for name, data in page.texts if name == tag]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    blocked = [(tag, name) for tag, a in page.tags for name in a if name == "style" or name.startswith("on")]
    assert blocked == []  # the policy would block them


def test_every_method_is_drawn_in_its_own_colour_and_dashes(demo: Path) -> None:
    page = read(demo)
    legend = page.prose.split(" Training ")[2]  # after the link to it and its heading
    assert legend.startswith("SFT DPO CW-DPO")  # the order of the table's rows, not of the directories
    styles = {tuple(a["class"].split()[-2:]) for a in page.attributes("path") if "line" in a.get("class", "").split()}
    assert styles == {("c0", "d0"), ("c1", "d1"), ("c2", "d2")}
    titles = page.text_of("b")
    for title in (
        "Loss",
        "Reward margin",
        "Reward of chosen answers",
        "Log-prob of rejected answers",
        "Cooling weight",
    ):
        assert title in titles
    bands = [a["class"] for a in page.attributes("path") if "band" in a.get("class", "")]
    # the cooling weight has one, and so has each of four probe groups of two runs, as outlines: two fills would mix
    assert sorted(bands) == ["band c2 d2", *["band edge c1 d1"] * 4, *["band edge c2 d2"] * 4]
    assert "stage 2" in page.text_of("text")


def test_both_colour_schemes_and_no_fixed_colour_in_pictures(demo: Path) -> None:
    page = read(demo)
    assert "@media (prefers-color-scheme: dark)" in page.text_of("style")[0]
    drawn = [a for tag, a in page.tags if tag in ("path", "text", "svg")]
    assert not [a for a in drawn if "fill" in a or "stroke" in a]


def test_a_part_has_one_name_in_the_navigation_and_over_it(demo: Path) -> None:
    source = demo.read_text("utf-8")
    links = re.findall(r'<a href="#([\w-]+)">(.*)</a>', source.split("</nav>")[0])
    headings = dict(re.findall(r'<section id="([\w-]+)">\s*<h2>(.*)</h2>', source))
    assert len(links) > 10
    assert {name: headings[name] for name, _ in links} == dict(links)


def test_gallery_says_right_and_wrong_in_words(demo: Path) -> None:
    page = read(demo)
    verdicts = [text for text in page.text_of("span") if "right" in text or "wrong" in text]
    assert verdicts.count("✓ right") == 8
    assert verdicts.count("✗ wrong") == 4
    pictures = [a for a in page.attributes("img") if a["alt"].startswith("at the")]
    assert len(pictures) == 4
    assert pictures[0]["alt"] == "at the top left there is a large red disc"
    content = base64.b64decode(pictures[0]["src"].removeprefix("data:image/png;base64,"))
    assert content == (demo.parent / "pictures/red.png").read_bytes()


def test_table_can_be_sorted_by_value(demo: Path) -> None:
    values = [float(a["data-value"]) for a in read(demo).attributes("td") if "data-value" in a]
    assert values[:5] == [0.583, 0.112, 0.11, 0.017, 240.0]


def test_hostile_text_stays_text(one_run: Path) -> None:
    hostile = '</title></style></script><script>alert(1)</script><img src="https://x.invalid/a.png" onerror=alert(2)>'
    answers = [{"name": hostile, "text": hostile, "right": True}]
    gallery = [{"image": hostile, "prompt": hostile, "chosen": hostile + "\ud800", "answers": answers}]
    columns = [{"key": "x", "label": hostile, "better": "up", "format": "1000000000d"}]
    table = {"columns": columns, "rows": [{"name": hostile, "x": hostile}, {"name": "b", "x": 1}]}
    summary = {"title": hostile, "hardware": hostile, "stages": {hostile: hostile}, "table": table, "gallery": gallery}
    (one_run / "summary.json").write_text(json.dumps(summary))
    (one_run / "recipe.yaml").write_text(hostile)
    write_lines(one_run / "probes.jsonl", [{"stage": hostile, "step": 1, "group": hostile, "delta": 0.5}])
    page = read(write_report([one_run], one_run / "report.html"))
    assert page.misnested == []
    assert len(page.attributes("script")) == len(page.attributes("style")) == 1
    assert page.attributes("img") == []
    assert page.text_of("title")[0] == hostile
    assert hostile in page.text_of("pre")


def test_broken_readings_are_shown_as_gaps_and_told(one_run: Path) -> None:
    with (one_run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stage2", "step": 31, "loss": NaN}\n{"stage": "stage2", "step": 32, "loss": Infinity}\n')
        file.write('{"stage": "stage2", "step": 33, "loss": 1e999999, "grad_norm": null, "entropy": "low"}\n')
        file.write('[1]\n{"loss": 1.0}\n{"stage": "stage2", "st')
    page = read(write_report([one_run], one_run / "report.html"))
    assert (
        "mine: readings that are not finite numbers leave a gap in the curve: entropy (1), grad_norm (1), loss (3)."
        in (page.prose)
    )
    assert "mine/metrics.jsonl: 2 lines could not be read" in page.prose
    assert "mine/metrics.jsonl: 1 line without a step" in page.prose
    assert str(one_run.parent) not in page.prose
    assert "nan" not in " ".join(a.get("d", "") for a in page.attributes("path")).lower()


def test_run_without_table_gallery_or_summary(one_run: Path) -> None:
    page = read(write_report([one_run], one_run / "new" / "report.html"))
    assert "mine trained 60 steps (stage 1 and stage 2)." in page.prose
    assert "Final values" in page.prose
    assert "Pictures" not in page.prose


def test_table_and_gallery_that_cannot_be_read_are_told(one_run: Path) -> None:
    (one_run / "summary.json").write_text('{"table": {"columns": 3, "rows": 4}, "gallery": 5}')
    page = read(write_report([one_run], one_run / "report.html"))
    assert "mine: the table in summary.json cannot be read" in page.prose
    assert "mine: the gallery in summary.json cannot be read" in page.prose
    (one_run / "summary.json").write_text("{")
    assert "mine/summary.json is not readable JSON" in read(write_report([one_run], one_run / "report.html")).prose


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_lines(tmp_path / f"seed{seed}/cw_dpo/metrics.jsonl", stage1(3, random.Random(seed)))
    page = read(write_report([tmp_path / "seed0/cw_dpo", tmp_path / "seed1/cw_dpo"], tmp_path / "report.html"))
    assert "Compared here: seed0/cw_dpo and seed1/cw_dpo." in page.prose


@pytest.mark.slow
def test_ten_thousand_lines_are_read_fast_into_a_small_page(tmp_path: Path) -> None:
    rng = random.Random(0)
    write_lines(tmp_path / "metrics.jsonl", [*stage1(5000, rng), *stage2(5000, rng, cooled=True)])
    start = time.process_time()
    out = write_report([tmp_path], tmp_path / "report.html")
    assert time.process_time() - start < 5
    assert out.stat().st_size < 250_000


@pytest.mark.parametrize("content", [None, "", "not json\n"])
def test_directory_without_readings_is_refused_and_nothing_is_written(tmp_path: Path, content: str | None) -> None:
    run, out = tmp_path / "empty", tmp_path / "report.html"
    run.mkdir()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    words = "empty is an empty directory, and a run is needed" if content is None else "empty holds no run to show: "
    with pytest.raises(UserError, match=words):
        write_report([run], out)
    assert not out.exists()


def test_other_mistakes_are_told(tmp_path: Path, one_run: Path) -> None:
    with pytest.raises(UserError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"there is no directory .*nowhere\. Write a run's directory"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"mine is a directory\. Name the file"):
        write_report([one_run], one_run)
    with pytest.raises(UserError, match="cannot write"):
        write_report([one_run], one_run / "metrics.jsonl" / "report.html")


def test_no_torch_is_loaded(one_run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cwdpo.report import write_report; "
        f"write_report([Path({str(one_run)!r})], Path({str(one_run / 'r.html')!r})); "
        "print(sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
