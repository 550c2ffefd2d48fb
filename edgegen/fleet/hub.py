"""The hub: Dask's scheduler, with nothing of it that listens beside the fleet's own port."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen import rooms
from edgegen.errors import EdgeGenError, UsageError
from edgegen.fleet import keys as certificates
from edgegen.fleet.address import Address, loopback
from edgegen.fleet.stop import until_stopped

LOST_AFTER_S = 30.0

# No pages, and nothing that wakes up often: on a board it would be timed with the model.
QUIET = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.scheduler.active-memory-manager.start": False,
    # What a board was doing when it died is not tried on another in silence.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    "distributed.diagnostics.nvml": False,
}
UNSEEN = "127.0.0.1:0"  # Dask opens a port for its pages even where there are none


def bind(host: str, port: int, keys: Path | None) -> tuple[Address, Path | None]:
    """Where a hub may listen, and the keys it needs for that.

    Raises:
        UsageError: without keys on anything but this machine's own address; a port out of range.
        NotFoundError: the folder of keys is not one.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}", "give a number from 0 to 65535")
    folder = keys or certificates.default() / certificates.HUB
    if keys is None and not (folder / "key.pem").is_file():
        if not loopback(host):
            raise UsageError(
                f"--host {host}: without keys a hub listens on 127.0.0.1 alone, for whoever "
                "reaches it can run code on every board",
                "run: edgegen devices keys NAME...",
            )
        return Address("tcp", host, port), None
    address = Address("tls", host, port)
    return address, certificates.find(address, folder, certificates.HUB)


def hub(
    address: Address,
    keys: Path | None,
    *,
    lost_after_s: float = LOST_AFTER_S,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Be the hub until SIGINT or SIGTERM. A board that is silent for `lost_after_s` is lost.

    Raises:
        EdgeGenError: the port is taken, or the host is not this machine's.
        MissingExtraError: the fleet extra is not installed.
    """
    try:
        import dask
        import distributed  # noqa: F401  # it sets its loggers up as it is imported
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "edgegen devices hub") from error
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with dask.config.set(QUIET):
        asyncio.run(_hub(address, certificates.security(keys), lost_after_s, started))


async def _hub(
    address: Address, security: Any, lost_after_s: float, started: Callable[[str], None]
) -> None:
    from distributed import Scheduler

    scheduler = Scheduler(
        host=address.host,
        port=address.port,
        protocol=address.scheme,
        security=security,
        worker_ttl=f"{lost_after_s}s",
        dashboard=False,
        dashboard_address=UNSEEN,
    )
    try:
        await scheduler
    except (OSError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        taken = getattr(cause, "errno", None) == errno.EADDRINUSE
        hint = "try --port 0" if taken else "give an address of this machine: --host 0.0.0.0"
        raise EdgeGenError(f"{address}: cannot listen there: {cause}", hint) from error
    started(str(scheduler.address))
    try:
        await until_stopped(scheduler.finished())
    finally:
        await scheduler.close()
