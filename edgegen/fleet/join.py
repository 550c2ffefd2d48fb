"""A board's side: a Dask worker whose name and resource are the device's."""

from __future__ import annotations

import asyncio
import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen import __version__, records, rooms
from edgegen.errors import EdgeGenError, UsageError
from edgegen.fleet import board
from edgegen.fleet import keys as certificates
from edgegen.fleet.address import Address, knock
from edgegen.fleet.hub import QUIET, UNSEEN
from edgegen.fleet.stop import until_stopped
from edgegen.survey import Survey

AGAIN_S = 2.0
SURVEY_S = 300.0

Note = Callable[[str], None]


def join(address: Address, name: str, keys: Path | None, note: Note = lambda _: None) -> None:
    """Be the device `name` of the hub at `address` until SIGINT or SIGTERM.

    When the hub goes away what runs is ended, and the device joins again once a hub is back.

    Raises:
        EdgeGenError: no hub there, one that refuses the keys, or a name that is taken.
        MissingExtraError: the fleet extra is not installed.
    """
    try:
        import dask
        import distributed  # noqa: F401  # it sets its loggers up as it is imported
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "edgegen devices join") from error
    security = certificates.security(keys)
    knock(address, keys)
    introduction = {
        "edgegen": __version__,
        "python": platform.python_version(),
        "survey": records.encode(look()).decode(),
    }
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # Of a hub that went away Dask prints a stack trace; `note` says it in a line.
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    with dask.config.set(QUIET):
        asyncio.run(_join(address, name, keys, security, introduction, note))


def look() -> Survey:
    """What this machine has, found by a process of its own: an engine's threads end with it.

    Raises:
        EdgeGenError: it failed, or took longer than five minutes.
    """
    command = [sys.executable, "-P", "-m", "edgegen", "devices", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SURVEY_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise EdgeGenError(
            f"time-out: no survey in {SURVEY_S:g} s", "see: edgegen devices"
        ) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"]
        raise EdgeGenError(f"the survey failed: {said[-1]}", "see: edgegen devices") from error
    return records.decode(Survey, done.stdout, "edgegen devices --json")


async def _join(
    address: Address,
    name: str,
    keys: Path | None,
    security: Any,
    introduction: dict[str, str],
    note: Note,
) -> None:
    first = True
    while True:
        worker = _worker(address, name, security, introduction)
        try:
            if await until_stopped(_serve(worker, address, name, note)):
                return
        except EdgeGenError as error:
            if first:
                raise
            note(str(error))
        finally:
            board.end()
            await worker.close(nanny=False)
        first = False
        note(f"{name}: the hub at {address} is gone; trying again every {AGAIN_S:g} s")
        if await until_stopped(_until_back(address, keys)):
            return


async def _serve(worker: Any, address: Address, name: str, note: Note) -> None:
    try:
        await worker
    except (TimeoutError, OSError, RuntimeError, ValueError) as error:
        causes = f"{error} {error.__cause__}"
        if "name taken" in causes:
            raise UsageError(
                f"{address}: a device called {name!r} has joined already",
                "give another --name; if it was this one, before it was cut off, the hub forgets "
                "it soon: try again",
            ) from error
        raise EdgeGenError(f"{address}: cannot join: {error.__cause__ or error}") from error
    note(f"{name}: joined {address}")
    await worker.finished()


async def _until_back(address: Address, keys: Path | None) -> None:
    while True:
        await asyncio.sleep(AGAIN_S)
        try:
            return await asyncio.to_thread(knock, address, keys)
        except EdgeGenError:
            continue


def _worker(address: Address, name: str, security: Any, introduction: dict[str, str]) -> Any:
    from distributed import Worker
    from distributed.diagnostics.plugin import WorkerPlugin
    from distributed.utils import get_ip

    class Ends(WorkerPlugin):  # type: ignore[misc]
        """A hub that is gone waits for no result."""

        name = "ends"

        def teardown(self, worker: Any) -> None:
            board.end()

    return Worker(
        str(address),
        name=name,
        nthreads=1,
        resources={name: 1},
        # By default it would listen on all addresses, also for a hub on loopback without TLS.
        host=get_ip(address.host),
        protocol=address.scheme,
        security=security,
        memory_limit=0,
        dashboard=False,
        dashboard_address=UNSEEN,
        startup_information={"edgegen": lambda _: introduction},
        plugins=(Ends(),),
        validate=False,
    )
