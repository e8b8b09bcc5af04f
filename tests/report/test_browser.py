"""The page in a real browser."""

import json
from collections.abc import Iterator

import pytest
from report.chromium import Command, needs_chromium, open_browser, run
from report.synthetic import EVALUATION, write_demo

from cwdpo.report import write_report

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    root = tmp_path_factory.mktemp("browser")
    demo = write_demo(root / "demo", steps=40)
    first = min(demo.glob("*/metrics.jsonl")).parent
    (first / "evaluation.json").write_text(json.dumps(EVALUATION))
    page = write_report([demo], root / "report.html")
    with open_browser(root / "profile") as command:
        command("/url", url=page.as_uri())
        yield command


def column(browser: Command, table: int, position: int) -> list[str]:
    """Click a column's head, then read the names of the rows."""
    find = f"const table = document.querySelectorAll('table.sortable')[{table}];"
    run(browser, f"{find} table.tHead.rows[0].cells[{position}].querySelector('button').click()")
    names = run(browser, f"{find} return [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim())")
    return [str(name) for name in names]


def choose(browser: Command, field: str, value: str) -> None:
    code = f"const f = document.getElementById('{field}'); f.value = '{value}'; f.checked = '{value}' === 'on';"
    run(browser, f"{code} f.dispatchEvent(new Event('change'))")


def rows(browser: Command) -> list[str]:
    """The rows of the first set of examples, as they stand."""
    cards = "document.querySelector('.examples').children"
    found = run(browser, f"return [...{cards}].map((card) => card.querySelector('bdi').textContent)")
    return [str(row) for row in found]


def background(browser: Command, style: str) -> str:
    token = f"document.querySelector('.tokens .{style}')"
    return str(run(browser, f"return getComputedStyle({token}).backgroundColor"))


def test_console_is_silent(browser: Command) -> None:
    assert browser("/se/log", type="browser") == []


def test_nothing_is_wider_than_a_phone(browser: Command) -> None:
    assert run(browser, "return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]


def test_an_evaluation_stands_beside_its_picture(browser: Command) -> None:
    assert run(browser, "return document.querySelectorAll('#evaluation table.measures tbody').length") == 2
    assert run(browser, "return document.querySelectorAll('#evaluation circle').length") == 3
    colour = "return getComputedStyle(document.querySelector('#evaluation td.better')).color"
    assert run(browser, colour) != run(browser, "return getComputedStyle(document.body).color")


def test_every_number_of_an_evaluation_is_seen_on_a_phone(browser: Command) -> None:
    cells = "[...document.querySelectorAll('.measures td, .measures th')]"
    inside = "(box) => box.width > 0 && box.left >= 0 && box.right <= innerWidth"
    assert run(browser, f"return {cells}.map((one) => one.getBoundingClientRect()).every({inside})") is True
    cut = f"return {cells}.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"
    assert run(browser, cut) == []
    box = "(row) => [...row.cells].map((one) => one.getBoundingClientRect())"
    row = f"({box})(document.querySelector('.measures.compared tbody tr:nth-child(2)'))"
    name, base, model, difference, verdict = run(browser, f"return {row}")
    assert name["right"] <= verdict["left"]
    assert name["bottom"] <= base["top"] == model["top"] == difference["top"]
    assert base["right"] <= model["left"] < model["right"] <= difference["left"]


def test_no_column_of_an_evaluation_is_a_layer_of_its_own(browser: Command) -> None:
    """Whose lines would be rounded to other pixels than those of the rest of the row."""
    names = "[...document.querySelectorAll('.measures th.name')]"
    assert run(browser, f"return {names}.every((one) => getComputedStyle(one).position === 'static')") is True


def test_tables_are_sorted_both_ways(browser: Command) -> None:
    assert column(browser, 0, 1) == ["DPO", "SFT", "CW-DPO"]
    assert column(browser, 0, 1) == ["CW-DPO", "SFT", "DPO"]
    assert column(browser, 0, 0) == ["CW-DPO", "DPO", "SFT"]


def test_wide_tables_have_runs_across(browser: Command) -> None:
    numbers = run(browser, "return [...document.querySelectorAll('#ends table')].map((table) => table.className)")
    assert numbers == ["across", "across"]


def test_examples_are_sorted(browser: Command) -> None:
    assert rows(browser) == ["red", "blue", "text"]
    choose(browser, "example-sort", "chosen")  # -0.3, -0.9, -1.5
    assert rows(browser) == ["text", "blue", "red"]
    choose(browser, "example-sort", "margin")  # 0.2, 2.1, -0.1
    assert rows(browser) == ["text", "red", "blue"]
    choose(browser, "example-reverse", "on")
    assert rows(browser) == ["blue", "red", "text"]
    choose(browser, "example-reverse", "off")
    choose(browser, "example-sort", "place")
    assert rows(browser) == ["red", "blue", "text"]


def test_shade_is_of_now_or_of_the_change(browser: Command) -> None:
    clear = "rgba(0, 0, 0, 0)"
    assert background(browser, "s7") != clear
    assert run(browser, "return getComputedStyle(document.querySelector('.shades.change')).display") == "none"
    choose(browser, "example-shade", "change")
    assert background(browser, "s7.f2") != clear  # the rejected answer fell
    assert background(browser, "s8:not(.f2)") == clear  # the model's last answer has no start
    assert run(browser, "return getComputedStyle(document.querySelector('.shades.now')).display") == "none"
    line = "getComputedStyle(document.querySelector('.tokens .f2')).textDecorationLine"
    assert run(browser, f"return {line}") == "underline"  # not by colour alone
    choose(browser, "example-shade", "now")


def test_policy_blocks_a_script_that_is_not_ours(browser: Command) -> None:
    add = "const s = document.createElement('script'); s.textContent = 'window.intruder = 1'; document.body.append(s);"
    assert run(browser, f"{add} return window.intruder === undefined") is True


def test_values_are_shown_by_keyboard_and_under_the_pointer(browser: Command) -> None:
    chart = "document.querySelector('#training .chart[data-frame]')"
    readout = f"{chart}.parentElement.querySelector('.readout')"
    press = f"{chart}.dispatchEvent(new KeyboardEvent('keydown', {{key: '%s', bubbles: true}}))"
    assert run(browser, f"return {readout}.hidden") is True
    run(browser, f"{chart}.focus()")
    run(browser, press % "Home")
    first = run(browser, f"return {readout}.textContent")
    assert first.startswith("Step 0: ") or first.startswith("Step 1: ")
    assert "DPO" in first
    run(browser, press % "ArrowRight")
    assert run(browser, f"return {readout}.textContent") != first
    run(browser, f"{chart}.blur()")
    assert run(browser, f"return {readout}.hidden") is True
    box = f"const b = {chart}.getBoundingClientRect();"
    move = "new PointerEvent('pointermove', {clientX: b.left + b.width / 2, clientY: b.top + 9, bubbles: true})"
    run(browser, f"{box} {chart}.dispatchEvent({move})")
    assert run(browser, f"return {readout}.textContent").startswith("Step ")
