"""The line to one device: questions that end, and a bundle sent over it."""

from __future__ import annotations

import threading
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edgegen import __version__
from edgegen.bundle import MANIFEST, Bundle
from edgegen.errors import EdgeGenError, FormatError, UnsupportedError
from edgegen.fleet import board
from edgegen.fleet.board import Answer, Arrived, Carried, Piece, Told
from edgegen.measure import Failure
from edgegen.spec import Report
from edgegen.survey import Survey

T = TypeVar("T", Arrived, Told, Carried)

PIECE_BYTES = 1 << 20  # a second or two of slow Wi-Fi: no more is sent again after a break
LOOK_S = 0.5
FETCH_S = 30.0  # for an answer that is there


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """A device that has joined, with what it found in itself when it did."""

    name: str
    address: str
    edgegen: str
    python: str
    busy: bool
    survey: Survey


def workers(client: Any) -> dict[str, Any]:
    """The hub's own list. `Client.scheduler_info` keeps one that a timer of its empties."""
    workers: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return workers


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
        hint = "look for it with: edgegen devices --fleet HUB; do what is missing with --resume"
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        # Not by `result(timeout=...)` again and again: on a busy machine Dask loses a race there.
        while True:
            if self.stop.is_set():
                raise EdgeGenError(f"{self.name}: stopped")
            if done.wait(LOOK_S):
                break
            if time.monotonic() > deadline:
                raise EdgeGenError(
                    f"{self.name}: time-out, no answer in {within_s:g} s to: {what}",
                    "another job may be running there; give it longer with --timeout",
                )
            if not self._there():
                raise EdgeGenError(f"{self.name}: went away at: {what}", hint)
        try:
            return bytes(future.result(timeout=FETCH_S))
        except (Exception, CancelledError) as error:
            if self.client.status != "running":  # what was asked of all boards was given up with it
                raise EdgeGenError(
                    f"{self.name}: the hub went away at: {what}",
                    "start it again, boards join by themselves; do what is missing with --resume",
                ) from error
            why = type(error).__name__
            raise EdgeGenError(f"{self.name}: went away ({why}) at: {what}", hint) from error

    def _there(self) -> bool:
        """Does the hub know the device? While the hub itself is silent, nobody can say no."""
        try:
            return self.address in workers(self.client)
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
