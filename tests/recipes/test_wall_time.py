"""The clock of a run goes on over its sessions."""

from pathlib import Path
from typing import Any

from cwdpo.recipes.run import WallTime
from cwdpo.records import RunDirectory


def test_sessions_add_up_and_a_killed_one_loses_little(tmp_path: Path) -> None:
    run, now = RunDirectory(tmp_path), [100.0]
    first = WallTime(run, clock=lambda: now[0])
    now[0] += 50
    first.close()
    assert not list(tmp_path.iterdir())  # nothing has begun
    run.recipe.write_text("")
    nothing: Any = None
    first.on_step_end(nothing, nothing, nothing)
    now[0] += 9
    first.on_step_end(nothing, nothing, nothing)  # too soon; then it is killed
    now[0] = 7000.0
    second = WallTime(run, clock=lambda: now[0])
    WallTime(run, writes=False, clock=lambda: now[0] + 1e6).close()
    now[0] += 5
    assert second.seconds == 55
    second.close()
    assert run.kept("wall_time")["phases"]["checks"] == 55
    assert WallTime(run, clock=lambda: now[0]).seconds == 55
