"""What of a store's runs is done, missing and under way: their plans made again, against their receipts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adversarial_bench.errors import UserError
from bench.locks import present
from bench.pace import Left, Pace
from bench.plan import Task, tasks_in
from bench.render.table import Table, duration, number
from bench.spec import RunSpec
from bench.store import RunFolder, StoreError

DONE, FAILED, MISSING = "done", "errors", "missing"
"""Of a shard: one with `errors` is tried again."""


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    folder: RunFolder
    state: str
    """`running`, `done`, `errors`, `stopped`, or `outdated`: this version would compute other cells."""
    shards: tuple[tuple[Task, str], ...] = ()
    """Each shard of its plan, DONE, FAILED or MISSING."""
    left: Left = Left(0.0, ())
    driver: str = ""
    """Who computes it."""
    workers: int = 1
    problem: str = ""
    """Why there is no plan."""

    def count(self, what: str, unit: Callable[[Task], int] = lambda task: 1) -> int:
        """How many shards (or samples, by `unit`) are in a state."""
        return sum(unit(task) for task, state in self.shards if state == what)


def plan_of(folder: RunFolder) -> list[Task]:
    """The shards that a stored run consists of, as this version plans them. Raises UserError for none."""
    document = folder.document()
    try:
        return tasks_in(RunSpec(**document["spec"]), document["fingerprints"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder.path / 'run.json'} is of another version, or damaged: {error}") from error


def status_of(folder: RunFolder, pace: Pace) -> Status:
    """Where a run stands, by what its receipts say; the run and `bench verify` read the files behind them."""
    driver = who(folder)
    try:
        tasks = plan_of(folder)
    except UserError as error:
        state = "running" if driver else "done" if folder.finished() else "stopped"
        return Status(folder, state, driver=driver, problem=str(error))
    receipts = {task.name: folder.receipt(task.name) for task in tasks}
    shards = tuple(
        (task, MISSING if (found := receipts[task.name]) is None else FAILED if found["errors"] else DONE)
        for task in tasks
    )
    states = {state for _, state in shards}
    document = folder.document()
    known = {task.cell.key for task in tasks}
    if driver:
        state = "running"
    elif not known & set(document.get("cells", {})):
        state = "outdated"
    elif MISSING in states or not folder.finished():
        state = "stopped"
    else:
        state = "errors" if FAILED in states else "done"
    workers = document.get("workers", 1)
    todo = [task for task, state in shards if state != DONE]
    return Status(folder, state, shards, pace.left(todo, workers), driver, workers)


def who(folder: RunFolder) -> str:
    """Who is at a run; empty for nobody."""
    return "; ".join(
        f"{each['host']}, pid {each['pid']}, since {each['started']}" for each in present(folder)
    )


def table(found: Sequence[Status]) -> Table:
    """A line per run."""
    lines = []
    for status in found:
        samples = sum(len(task.ids) for task, _ in status.shards)
        share = 100 * status.count(DONE, lambda task: len(task.ids)) / samples if samples else float("nan")
        left = str(status.left) if status.state not in ("done", "outdated") and not status.problem else "–"
        lines.append(
            (
                status.folder.path.name,
                status.state,
                number(share, 0),
                *(str(status.count(what)) for what in (DONE, FAILED, MISSING)),
                left,
                status.driver or status.problem,
            )
        )
    columns = ("run", "state", "%", DONE, FAILED, MISSING, "time left", "driver")
    note = "shards; the run's own command goes on where it stopped, and tries errors again"
    return Table("runs", columns, tuple(lines), note, frozenset({"run", "state", "time left", "driver"}))


def cells(tasks: Sequence[tuple[Task, str]], pace: Pace) -> list[dict[str, Any]]:
    """A plan by cell: its shards and samples, how many shards are in each state, seconds for the others."""
    groups: dict[str, list[tuple[Task, str]]] = {}
    for task, state in tasks:
        groups.setdefault(task.cell.key, []).append((task, state))
    found = []
    for group in groups.values():
        cell = group[0][0].cell
        left = pace.left([task for task, state in group if state != DONE])
        found.append(
            {
                "model": cell.model if cell.source is None else f"{cell.source} → {cell.model}",
                "attack": cell.attack,
                "threat": str(cell.threat),
                "shards": len(group),
                "samples": sum(len(task.ids) for task, _ in group),
                **{what: sum(state == what for _, state in group) for what in (DONE, FAILED, MISSING)},
                "seconds": None if left.unknown else round(left.seconds, 3),
            }
        )
    return found


def cells_table(found: Sequence[dict[str, Any]], title: str, note: str = "") -> Table:
    """A line per cell of a plan."""
    lines = []
    for cell in found:
        *plain, seconds = cell.values()
        whole = cell[DONE] == cell["shards"]
        left = "–" if whole else "unknown" if seconds is None else duration(seconds)
        lines.append((*map(str, plain), left))
    columns = ("model", "attack", "threat", "shards", "samples", DONE, FAILED, MISSING, "time")
    return Table(title, columns, tuple(lines), note, frozenset({"model", "attack", "threat"}))


def document(status: Status) -> dict[str, Any]:
    """A run's place as JSON; samples and seconds are those of one worker's computing."""
    return {
        "run": status.folder.path.name,
        "path": str(status.folder.path),
        "state": status.state,
        "shards": {what: status.count(what) for what in (DONE, FAILED, MISSING)},
        "samples": {what: status.count(what, lambda task: len(task.ids)) for what in (DONE, FAILED, MISSING)},
        "seconds_left": status.left.seconds,
        "unknown": list(status.left.unknown),
        "workers": status.workers,
        "driver": status.driver or None,
        "problem": status.problem or None,
    }
