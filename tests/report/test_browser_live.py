"""A page that is followed, in a real browser: it shows what is new, and keeps its reader's place."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report.chromium import Command, needs_chromium, open_browser, run, wait_until
from report.synthetic import probes, stage1, stage2, write_examples, write_lines

from cwdpo.report.live import LivePage, PageServer

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[Command, PageServer, Path]]:
    directory = tmp_path / "mine"
    directory.mkdir()
    with PageServer(0, LivePage([directory])) as server, open_browser(tmp_path / "profile") as browser:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        browser("/url", url=server.url)
        try:
            yield browser, server, directory
        finally:
            server.shutdown()
            thread.join()


def test_a_run_from_its_first_line_on(followed: tuple[Command, PageServer, Path]) -> None:
    browser, server, directory = followed
    assert "Waiting for mine to log its first step." in run(browser, "return document.body.innerText")

    rng = random.Random(0)
    lines = [*stage1(40, rng), *stage2(60, rng, cooled=False)]
    write_lines(directory / "metrics.jsonl", lines[:90])
    write_lines(directory / "probes.jsonl", probes(60, cooled=True))
    write_examples(directory)
    wait_until(browser, "document.querySelector('#ends table')")

    # examples by margin, a closed list opened, and a place far down the page
    run(browser, "document.querySelector('details.missing').open = true")
    pick = "const s = document.getElementById('example-sort'); s.value = 'margin'; s.dispatchEvent(new Event('change'))"
    run(browser, pick)
    run(browser, "document.getElementById('levels').scrollIntoView(); window.scrollBy(0, 40)")
    place = "document.getElementById('levels').getBoundingClientRect().top"
    before = run(browser, f"return {place}")

    write_lines(directory / "metrics.jsonl", lines)
    write_lines(directory / "probes.jsonl", probes(60, cooled=False))
    wait_until(browser, "document.querySelector('#summary').textContent.includes('trained 100 steps')")
    wait_until(browser, "document.querySelector('#findings').innerText.includes('Squeezing')")
    assert run(browser, f"return {place}") == pytest.approx(before, abs=2)  # although findings were added above it
    assert "stage 2, step 60" in run(browser, "return document.querySelector('#follow .progress').textContent")
    assert "Last line" in run(browser, "return document.querySelector('#follow .fresh').textContent")
    assert run(browser, "return document.querySelector('details.missing').open") is True
    rows = "[...document.querySelector('.examples').children].map((card) => card.querySelector('bdi').textContent)"
    assert run(browser, f"return {rows}") == ["text", "red", "blue"]
    assert run(browser, "return document.documentElement.scrollWidth") == 360
    assert browser("/se/log", type="browser") == []

    server.shutdown()
    server.server_close()
    wait_until(browser, "document.getElementById('follow').innerText.includes('No longer updated')")
