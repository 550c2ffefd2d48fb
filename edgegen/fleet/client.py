"""The host's side: who is there, and a visit to each device at once."""

from __future__ import annotations

import threading
import time
import uuid
import warnings
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edgegen import __version__, records, rooms
from edgegen.bundle import MANIFEST, Bundle, check_files, open_bundle
from edgegen.errors import EdgeGenError, FormatError, NotFoundError, UnsupportedError
from edgegen.fleet import board
from edgegen.fleet import keys as certificates
from edgegen.fleet.address import Address, knock
from edgegen.fleet.board import Answer, Arrived, Carried, Order, Piece, Told
from edgegen.measure import Failure
from edgegen.profile import Profile
from edgegen.spec import Report, silent
from edgegen.survey import Survey
from edgegen.tasks import Task
from edgegen.workload import check

T = TypeVar("T", Arrived, Told, Carried)

PIECE_BYTES = 1 << 20  # a second or two of slow Wi-Fi: no more is sent again after a break
LOOK_S = 0.5
MARGIN_S = 60.0  # for what is not measuring: starting processes on a slow board
ALL = "all"


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """A device that has joined, with what it found in itself when it did."""

    name: str
    address: str
    edgegen: str
    python: str
    busy: bool
    survey: Survey


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
    for address, worker in _workers(client).items():
        told = worker.get("edgegen")
        if told is None:
            continue  # somebody's plain Dask worker
        counts = (worker.get("metrics") or {}).get("task_counts") or {}
        name, busy = str(worker["name"]), bool(counts.get("executing"))
        survey = records.decode(Survey, told["survey"].encode(), f"the survey of {name}")
        found[name] = Member(name, address, told["edgegen"], told["python"], busy, survey)
    return dict(sorted(found.items()))


def _workers(client: Any) -> dict[str, Any]:
    """The hub's own list. `Client.scheduler_info` keeps one that a timer of its empties."""
    workers: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return workers


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
    it comes. A device that fails, hangs or goes away ends its own visit and no other's.

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
        return _visit_all(client, visits, (rounds, timeout_s), found, report)


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


def send(line: Line, bundle: Bundle, timeout_s: float) -> None:
    """The bundle is whole on the device: only what is not there is sent.

    Raises:
        EdgeGenError: the device went away, timed out, or has no room.
    """
    manifest = (bundle.path / MANIFEST).read_bytes()
    what = f"send {bundle.manifest.name}"
    wanted = line.ask(Told, board.wanted, manifest, timeout_s, what).wanted
    if wanted.complete:
        return
    files = {one.sha256: (name, one.bytes) for name, one in bundle.manifest.files.items()}
    total = sum(size for _, size in files.values())
    before = 0
    for sha256, (name, size) in files.items():
        have = wanted.have.get(sha256, 0)
        with (bundle.path / name).open("rb") as file:
            while have < size:
                file.seek(have)
                data = file.read(PIECE_BYTES)
                if not data:
                    raise FormatError(f"{bundle.path / name}: was cut while it was sent")
                line.report(f"{line.name}: {what}, kB", (before + have) // 1000, total // 1000)
                piece = msgspec.msgpack.encode(Piece(sha256, have, data))
                have = line.ask(Arrived, board.put, piece, timeout_s, what).bytes
        before += size
    line.report(f"{line.name}: {what}, kB", total // 1000, total // 1000)
    line.ask(Arrived, board.assemble, manifest, timeout_s, what)


class Line:
    """The line to one device; once it is lost, every question fails at once."""

    def __init__(
        self, client: Any, name: str, member: Member | None, stop: threading.Event, report: Report
    ) -> None:
        self.client, self.name, self.stop, self.report = client, name, stop, report
        self.address = member.address if member else ""
        self.id = uuid.uuid4().hex  # what a board does for us is ended by this name
        self.lost: EdgeGenError | None = None
        if member is None:
            self.lost = EdgeGenError(f"{name}: went away", "look for it: edgegen devices --fleet")
        elif member.edgegen != __version__:
            self.lost = UnsupportedError(
                f"{name}: has EdgeGen {member.edgegen}, here is {__version__}",
                f"on {name} run: pip install 'edgegen[fleet]=={__version__}', and join again",
            )

    def ask(
        self,
        kind: type[T],
        function: Callable[..., bytes],
        argument: Any,
        within_s: float,
        what: str,
    ) -> T:
        """What `function` of `board` answers there, within `within_s` seconds.

        Raises:
            EdgeGenError: what it raised there; or that the device was lost, or timed out.
        """
        if self.lost:
            raise self.lost
        future = self.client.submit(
            function,
            argument,
            workers=[self.address],
            allow_other_workers=False,
            resources={self.name: 1},
            retries=0,
            pure=False,
        )
        try:
            data = self._wait(future, time.monotonic() + within_s, within_s, what)
        except BaseException as error:
            future.cancel()
            if isinstance(error, EdgeGenError):
                self.lost = error
            self._end()
            raise
        answer = msgspec.json.decode(data, type=Answer)
        if isinstance(answer, Failure):
            raise board.raised(answer, self.name)
        assert isinstance(answer, kind), answer
        return answer

    def _wait(self, future: Any, deadline: float, within_s: float, what: str) -> bytes:
        hint = "look for it with: edgegen devices --fleet; do what is missing with --resume"
        while True:
            if self.stop.is_set():
                raise EdgeGenError(f"{self.name}: stopped")
            try:
                return bytes(future.result(timeout=LOOK_S))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise EdgeGenError(
                        f"{self.name}: time-out, no answer in {within_s:g} s to: {what}",
                        "another job may be running there; give it longer with --timeout",
                    ) from None
            except (Exception, CancelledError) as error:
                why = type(error).__name__
                raise EdgeGenError(f"{self.name}: went away ({why}) at: {what}", hint) from error
            if not self._there():
                raise EdgeGenError(f"{self.name}: went away at: {what}", hint)

    def _there(self) -> bool:
        """Does the hub know the device? While the hub itself is silent, nobody can say no."""
        try:
            return self.address in _workers(self.client)
        except OSError:
            return True

    def _end(self) -> None:
        """Free the device of what it does for us, where it can still be told."""
        tell = threading.Thread(target=self._tell, daemon=True)
        tell.start()
        tell.join(5.0)  # a frozen one never answers

    def _tell(self) -> None:
        with suppress(Exception):
            if self._there():
                self.client.run(board.end, self.id, workers=[self.address])
