"""The host's side: who is there, and a visit to each device at once."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgegen import records, rooms
from edgegen.bundle import check_files, open_bundle
from edgegen.errors import EdgeGenError, NotFoundError
from edgegen.fleet import board
from edgegen.fleet import keys as certificates
from edgegen.fleet.address import Address, knock
from edgegen.fleet.board import Carried, Order
from edgegen.fleet.line import Line, Member, send, workers
from edgegen.profile import Profile
from edgegen.spec import Report, silent
from edgegen.survey import Survey
from edgegen.tasks import Task
from edgegen.workload import check

MARGIN_S = 60.0  # for what is not measuring: starting processes on a slow board
ALL = "all"


class Outcome(Struct, frozen=True):
    """What came of one task: a profile, or the error."""

    task: Task
    profile: Profile | None = None
    error: EdgeGenError | None = None


@contextmanager
def connect(address: Address, keys: Path | None) -> Iterator[Any]:
    """A Dask client of the hub at `address`.

    Raises:
        EdgeGenError: no hub there, or one that refuses the keys, named.
        MissingExtraError: the fleet extra is not installed.
    """
    security = certificates.security(keys)
    from distributed import Client

    knock(address, keys)
    # Of a hub that goes away Dask prints a stack trace; the line to a board says it in an error.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        # Another Python or numpy on a board is no matter: what travels is JSON.
        warnings.simplefilter("ignore")
        try:
            client = Client(str(address), security=security, timeout=30, set_as_default=False)
        except OSError as error:
            raise EdgeGenError(f"{address}: cannot connect: {error}") from error
        try:
            yield client
        finally:
            client.close(timeout=5)


def look(address: Address, keys: Path | None) -> dict[str, Member]:
    """The devices of the fleet at `address`, by name; raises as `connect`."""
    with connect(address, keys) as client:
        return members(client)


def members(client: Any) -> dict[str, Member]:
    """The devices of a connected fleet, by name."""
    found = {}
    for address, worker in workers(client).items():
        told = worker.get("edgegen")
        if told is None:
            continue  # somebody's plain Dask worker
        counts = (worker.get("metrics") or {}).get("task_counts") or {}
        name, busy = str(worker["name"]), bool(counts.get("executing"))
        survey = records.decode(Survey, told["survey"].encode(), f"the survey of {name}")
        found[name] = Member(name, address, told["edgegen"], told["python"], busy, survey)
    return dict(sorted(found.items()))


def choose(address: Address, keys: Path | None, names: Sequence[str]) -> list[str]:
    """The devices called `names`, each once, or all that have joined for "all".

    Raises as `connect`, and:
        NotFoundError: one that has not joined, with those that have; or none has.
    """
    have = look(address, keys)
    if not have:
        raise NotFoundError(
            f"no device has joined {address}",
            f"on a board run: edgegen devices join {address} --name NAME",
        )
    chosen = list(have) if ALL in names else list(dict.fromkeys(names))
    for name in chosen:
        if name not in have:  # Dask would wait for it for ever
            raise NotFoundError(
                f"no device {name!r} in the fleet at {address}; there are: {', '.join(have)}",
                rooms.nearest(name, have),
            )
    return chosen


def profile(
    address: Address,
    keys: Path | None,
    groups: Sequence[Sequence[Task]],
    *,
    rounds: int,
    timeout_s: float,
    found: Callable[[Outcome], None] = lambda _: None,
    report: Report = silent,
) -> list[Outcome]:
    """Carry out all tasks: the devices at once, the groups of one device one after the other.

    The tasks of a group are of one device and measured in turns. `found` is told each outcome as
    it comes; they are given back in the order of the tasks. A device that fails, hangs or goes away
    ends its own visit and no other's.

    Raises as `connect`, and:
        UsageError: a job that makes no sense for its bundle.
        FormatError: a bundle that is not as exported.
    """
    tasks = [task for group in groups for task in group]
    for task in tasks:
        check(task.job)
    for path in {task.job.path for task in tasks}:
        check_files(open_bundle(path))
    visits: dict[str, list[Sequence[Task]]] = {}
    for group in groups:
        visits.setdefault(group[0].board, []).append(group)
    with connect(address, keys) as client:
        outcomes = _visit_all(client, visits, (rounds, timeout_s), found, report)
    asked = {id(task): n for n, task in enumerate(tasks)}
    return sorted(outcomes, key=lambda outcome: asked[id(outcome.task)])


def _visit_all(
    client: Any,
    visits: dict[str, list[Sequence[Task]]],
    limits: tuple[int, float],
    found: Callable[[Outcome], None],
    report: Report,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    have, lock, stop = members(client), threading.Lock(), threading.Event()

    def say(what: str, done: int, total: int) -> None:
        with lock:
            report(what, done, total)

    def visit(name: str, groups: list[Sequence[Task]]) -> None:
        line = Line(client, name, have.get(name), stop, say)
        for group in groups:
            for outcome in _measure(line, group, *limits):
                with lock:
                    outcomes.append(outcome)
                    found(outcome)

    with ThreadPoolExecutor(max(len(visits), 1)) as pool:
        visiting = [pool.submit(visit, name, groups) for name, groups in visits.items()]
        try:
            for one in visiting:
                one.result()
        except BaseException:
            stop.set()  # Ctrl-C, or a full disk here: the boards are told to stop
            raise
    return outcomes


def _measure(line: Line, group: Sequence[Task], rounds: int, timeout_s: float) -> Iterator[Outcome]:
    """Send, prove and measure one group; an outcome for each of its tasks."""
    sent = []
    for task in group:
        try:
            send(line, open_bundle(task.job.path), timeout_s)
            sent.append(task)
        except EdgeGenError as error:
            yield Outcome(task, error=error)
    if not sent:
        return
    try:
        carried = _order(line, sent, rounds, timeout_s)
    except EdgeGenError as error:
        yield from (Outcome(task, error=error) for task in sent)
        return
    for task, got, failed in zip(sent, carried.outcomes, carried.failures, strict=True):
        if got is not None:
            yield Outcome(task, msgspec.structs.replace(got, board=task.board))
        elif failed is not None:
            yield Outcome(task, error=board.raised(failed, line.name))


def _order(line: Line, tasks: Sequence[Task], rounds: int, timeout_s: float) -> Carried:
    jobs = [
        msgspec.structs.replace(task.job, path=open_bundle(task.job.path).sha256())
        for task in tasks
    ]
    order = Order(line.id, tuple(jobs), rounds, timeout_s)
    what = f"verify and measure {', '.join(open_bundle(t.job.path).manifest.name for t in tasks)}"
    line.report(f"{line.name}: {what}", 0, 1)
    # What the board ends itself comes first: one process each to prove, one a round to measure.
    within_s = timeout_s * len(jobs) * (rounds + 1) + MARGIN_S
    carried = line.ask(Carried, board.carry_out, msgspec.json.encode(order), within_s, what)
    line.report(f"{line.name}: {what}", 1, 1)
    return carried
