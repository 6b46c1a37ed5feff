"""``python -m rewardgrid status``: what every cell is doing, from heartbeats, checkpoints, results and logs.

It only reads, and whatever it reads may be half written, from another version or gone by now: then less is shown.
Cells that run show the curve of their reward; those that are done their verdict, and since when they hack.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardgrid.report.columns import FINAL_STEPS
from rewardgrid.report.sparkline import sparkline
from rewardgrid.study.cell import Cell
from rewardgrid.study.files import number, object_in, read_bounded
from rewardgrid.study.forecast import STATUS_BYTES
from rewardgrid.study.history import rewards_so_far
from rewardgrid.study.layout import Layout, checkpointed, measured
from rewardgrid.study.text import count, printable
from rewardgrid.train.lease import STALE_SECONDS, gone, lease_file, read_lease
from rewardgrid.train.record import clock

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {
    "running": "green",
    "stalled": "bold yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "stopped": "magenta",
    "diverged": "magenta",
    "trained": "cyan",
    "waiting": "dim",
    "done": "dim green",
}
"""Every state, those first that one wants to see first."""

REFRESH_SECONDS = 2.0
HANGING_STEPS = 20
TAIL_BYTES = 20_000
CURVE_WIDTH = 24

ATTEMPT = re.compile(r"\d+ cells?, \d+ already trained")
ERROR = re.compile(
    r"(slurmstepd: )?error: |([a-z_]+\.)*[A-Z]\w*(Error|Exception|Interrupt)\b|Killed|Segmentation fault"
)


@dataclass(frozen=True)
class CellStatus:
    """One line of the display; what is not known is None."""

    cell: str
    state: str
    steps: int
    step: int | None = None
    reward: float | None = None
    """Of the last step; of a finished cell the mean of the last steps, as in tables."""
    kl: float | None = None
    speed: float | None = None
    left: float | None = None
    where: str = ""
    note: str = ""
    verdict: str = ""
    hack_onset: float | None = None
    rewards: tuple[float, ...] = ()
    """Of every step so far, while it is not finished."""


def look(layout: Layout, cell: Cell, logs: Path = Path("logs")) -> CellStatus:
    """What the files say of a cell."""

    def status(state: str, where: str = "", note: str = "", **known: Any) -> CellStatus:
        return CellStatus(cell.name, state, cell.max_steps, where=printable(where), note=printable(note), **known)

    directory = layout.cell(cell.name)
    result = _json(layout.train(cell.name) / "status.json") or _json(layout.kept(cell.name) / "status.json")
    if result is not None:
        step, reason = number(result.get("steps_done")), printable(result.get("reason") or "")
        evaluated = measured(layout.metrics(cell.name))
        log = logs / "evaluate" / f"{cell.name}.log"
        error = "" if evaluated else last_error(log, cell.name)
        if error:
            return status("failed", step=step, note=f"evaluation: {error} ({log})")
        if result.get("state") == "diverged":
            return status("diverged", step=step, note=reason)
        results = _results(layout, cell.name, evaluated)
        if result.get("state") == "stopped":
            results["verdict"] = ""  # of its samples; the run's is that it was stopped
            note = f"stopped early: {reason}"
            return status("stopped" if evaluated else "trained", step=step, note=note, **results)
        return status("done" if evaluated else "trained", **results)

    holder = read_lease(directory)
    if holder and not gone(holder):
        known = {key: number(holder.get(key)) for key in ("step", "reward", "kl", "speed", "left")}
        silent, idle = _silence(directory, holder)
        note = f"no heartbeat for {clock(silent)}" if silent > STALE_SECONDS else ""
        if not note and idle > max(STALE_SECONDS, HANGING_STEPS / (known["speed"] or math.inf)):
            note = f"no step for {clock(idle)}"
        rewards = tuple(rewards_so_far(layout, cell.name))
        return status("stalled" if note else "running", where=_where(holder), note=note, rewards=rewards, **known)

    step = checkpointed(layout, cell.name)
    log = logs / "train" / f"{cell.name}.log"
    error = last_error(log, cell.name) or _slurm_error(logs, cell.name)
    if error and not error.startswith("stopped by ") and " CANCELLED AT " not in error:
        return status("failed", step=step, note=f"{error} ({log})")
    if holder is not None or step is not None or error:
        return status("interrupted", step=step, note=error or _ended(holder))
    return status("waiting")


def _results(layout: Layout, name: str, evaluated: bool) -> dict[str, Any]:
    """What a finished cell came to."""
    table = layout.train(name) / "history.parquet"
    try:
        known: dict[str, Any] = {"reward": _final_reward(layout, name, table.stat().st_mtime_ns)}
    except OSError:
        known = {}
    metrics = _json(layout.metrics(name)) if evaluated else None
    if metrics is not None:
        onset = metrics.get("onset")
        known["verdict"] = printable(metrics.get("verdict") or "")
        known["hack_onset"] = number(onset.get("hack_onset")) if isinstance(onset, dict) else None
    return known


@cache
def _final_reward(layout: Layout, name: str, changed: int) -> float | None:
    """Read once, not at every refresh; ``changed`` is the time of the table."""
    final = rewards_so_far(layout, name)[-FINAL_STEPS:]
    return number(sum(final) / len(final)) if final else None


def look_at_all(layout: Layout, cells: Iterable[Cell]) -> list[CellStatus]:
    """The states of some cells."""
    return [look(layout, cell) for cell in cells]


def last_error(log: Path, cell: str = "") -> str:
    """The last line of the last attempt in a log that says what went wrong, if there is one, without ``cell: ``."""
    for line in reversed(tail(log)):
        if ATTEMPT.match(line):
            break
        if ERROR.match(line):
            return line.removeprefix("error: ").removeprefix(f"{cell}: ")
    return ""


def _slurm_error(logs: Path, cell: str) -> str:
    """What SLURM wrote into the newest log of the cell's training jobs: out of memory, out of time, cancelled."""
    found = sorted((logs / "slurm" / "rule_train" / cell).glob("*.log"), key=lambda path: (len(path.name), path.name))
    lines = [line for path in found[-1:] for line in tail(path) if line.startswith("slurmstepd: error: ")]
    return lines[-1].removeprefix("slurmstepd: error: ").strip("* ") if lines else ""


def show(look_at_all: Callable[[], list[CellStatus]], watch: bool) -> None:
    """Print the cells' states: in colour on a terminal, again and again if it is watched; one line a cell elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(plain(look_at_all())))
    elif not watch:
        console.print(display(look_at_all()), soft_wrap=True)
    else:
        found = look_at_all()
        with Live(display(found, console.height), console=console, auto_refresh=False) as live:
            while any(one.state not in ("done", "stopped", "diverged") for one in found):
                time.sleep(REFRESH_SECONDS)
                found = look_at_all()
                live.update(display(found, console.height), refresh=True)


def summary(found: Sequence[CellStatus]) -> str:
    """How many cells are in each state, and how many steps a second they make together."""
    counts = Counter(one.state for one in found)
    states = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    speed = sum(one.speed or 0 for one in found if one.state == "running")
    return f"{count(len(found), 'cell')}: {states}" + (f"; {speed:.3g} steps/s in all" if speed else "")


def plain(found: Sequence[CellStatus]) -> list[str]:
    """One line for each cell and one for all: to be searched, and sent by mail."""
    return [*("  ".join([f"{one.state:<11}", one.cell, *details(one)]) for one in found), summary(found)]


def display(found: Sequence[CellStatus], height: int | None = None) -> Text:
    """Names can be long, so a cell's figures stand below its name. Only the first cells if there is no more room."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    rows = sorted(found, key=lambda one: list(STYLES).index(one.state))
    room = math.inf if height is None else height - 2
    for place, one in enumerate(rows):
        lines = [one.cell, *(["  ".join(details(one))] if details(one) else [])]
        room -= len(lines)
        if room < 0:
            text.append(f"and {len(rows) - place} more\n", style="dim")
            break
        for place_in_cell, line in enumerate(lines):
            text.append(f"{'' if place_in_cell else one.state:<12}", style=STYLES[one.state])
            if place_in_cell and one.rewards:
                text.append(sparkline(one.rewards, CURVE_WIDTH) + "  ", style="green")
            text.append(line + "\n", style="" if place_in_cell == 0 or one.note else "dim")
    return text.append(summary(found))


def details(one: CellStatus) -> list[str]:
    """What is known of a cell, in words."""
    return [
        *([] if one.step is None else [f"step {one.step:.0f}/{one.steps}"]),
        *([] if one.reward is None else [f"{'final ' if one.state == 'done' else ''}reward {one.reward:.3f}"]),
        *([] if one.kl is None else [f"kl {one.kl:.3f}"]),
        *([] if one.speed is None else [f"{one.speed:.2f} steps/s"]),
        *([] if one.left is None else [f"{clock(one.left)} left"]),
        *([one.verdict] if one.verdict else []),
        *([] if one.hack_onset is None else [f"hacks from step {one.hack_onset:.0f}"]),
        *([one.where] if one.where else []),
        *([one.note] if one.note else []),
    ]


def _silence(directory: Path, holder: dict[str, Any]) -> tuple[float, float]:
    """Seconds since the last heartbeat, by the file's time, and since the last step before that heartbeat."""
    path = lease_file(directory)
    try:
        silent = time.time() - path.stat().st_mtime if path else 0.0
    except OSError:
        silent = 0.0
    beat, stepped = number(holder.get("beat")), number(holder.get("stepped"))
    return silent, (beat - stepped if beat is not None and stepped is not None else 0.0)


def _where(holder: dict[str, Any]) -> str:
    job = holder.get("job")
    return f"job {job} on {holder.get('node')}" if job else f"pid {holder.get('pid')} on {holder.get('host')}"


def _ended(holder: dict[str, Any] | None) -> str:
    return f"{_where(holder)} ended without a word" if holder else ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return object_in(read_bounded(path, STATUS_BYTES))
    except OSError:
        return None


def tail(path: Path) -> list[str]:
    """The last lines of a file."""
    try:
        if not path.is_file():
            return []
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
