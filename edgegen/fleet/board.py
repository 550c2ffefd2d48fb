"""What a board does when it is asked. Every answer is JSON in bytes, a failure too.

The functions are called by name: both sides have them, and no code travels. They run one at a
time in the worker's one thread, so nothing is ever received while something is timed.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from edgegen import errors, measure, proof
from edgegen.bundle import open_bundle
from edgegen.errors import EdgeGenError
from edgegen.fleet import cache
from edgegen.fleet.cache import Wanted
from edgegen.measure import Failure
from edgegen.profile import Profile
from edgegen.workload import Job

now: list[str] = []  # the order that is being carried out


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs to be measured in turns. `path` of a job is the sha256 of its bundle's manifest."""

    id: str
    jobs: tuple[Job, ...]
    rounds: int
    timeout_s: float


class Piece(Struct, frozen=True):
    """Bytes of the file called `sha256`, from `offset` on."""

    sha256: str
    offset: int
    data: bytes


class Arrived(Struct, frozen=True, forbid_unknown_fields=True, tag="arrived"):
    """How many bytes of a file are there."""

    bytes: int


class Told(Struct, frozen=True, forbid_unknown_fields=True, tag="told"):
    """What is wanted of a bundle."""

    wanted: Wanted


class Carried(Struct, frozen=True, forbid_unknown_fields=True, tag="carried"):
    """What came of each job of an order."""

    outcomes: tuple[Profile | None, ...]
    failures: tuple[Failure | None, ...]


Answer = Arrived | Told | Carried | Failure


def answered(function: Callable[..., Any]) -> Callable[..., bytes]:
    """The function with its answer, or its error, as JSON: an exception would come as a pickle."""

    @functools.wraps(function)
    def call(*args: Any) -> bytes:
        try:
            return msgspec.json.encode(function(*args))
        except Exception as error:
            return msgspec.json.encode(failure(error))

    return call


def failure(error: Exception) -> Failure:
    """The error as it is sent."""
    if isinstance(error, EdgeGenError):
        return Failure(type(error).__name__, str(error), error.hint)
    return Failure("EdgeGenError", f"{type(error).__name__}: {error}", "see the log of the board")


def raised(failed: Failure, device: str) -> EdgeGenError:
    """The error that `device` sent."""
    kind = getattr(errors, failed.kind, EdgeGenError)
    error: EdgeGenError = kind(f"{device}: {failed.message}", failed.hint)
    return error


@answered
def wanted(manifest: bytes) -> Told:
    """What of the bundle is still to be sent."""
    return Told(cache.wanted(cache.default(), manifest))


@answered
def put(piece: bytes) -> Arrived:
    """One piece of a file, in MessagePack."""
    one = msgspec.msgpack.decode(piece, type=Piece)
    return Arrived(cache.put(cache.default(), one.sha256, one.offset, one.data))


@answered
def assemble(manifest: bytes) -> Arrived:
    """The bundle is whole and checked."""
    folder = cache.assemble(cache.default(), manifest)
    return Arrived(sum(one.bytes for one in open_bundle(folder).manifest.files.values()))


@answered
def carry_out(data: bytes) -> Carried:
    """Prove each job's bundle here, then measure those that passed in turns."""
    order = msgspec.json.decode(data, type=Order)
    now[:] = [order.id]
    try:
        return _carry_out(order)
    finally:
        now.clear()


def _carry_out(order: Order) -> Carried:
    folder = cache.default() / "bundles"
    jobs = [msgspec.structs.replace(one, path=str(folder / one.path)) for one in order.jobs]
    proofs: dict[int, proof.Proof] = {}
    failures: list[Failure | None] = [None] * len(jobs)
    outcomes: list[Profile | None] = [None] * len(jobs)
    for n, one in enumerate(jobs):
        try:
            proofs[n] = prove(one, order.timeout_s)
        except EdgeGenError as error:
            failures[n] = _named(failure(error), one)
    try:
        passed = [jobs[n] for n in proofs]
        found = measure.interleave(passed, rounds=order.rounds, timeout_s=order.timeout_s)
    except EdgeGenError as error:
        for n in proofs:
            failures[n] = _named(failure(error), jobs[n])
    else:
        for (n, shown), measured in zip(proofs.items(), found, strict=True):
            outcomes[n] = msgspec.structs.replace(measured, drifts=shown.drifts)
    return Carried(tuple(outcomes), tuple(failures))


def prove(job: Job, timeout_s: float) -> proof.Proof:
    """The golden data on the very engine, device and options that are then timed.

    In a fresh process, for an engine may crash or leave threads; `edgegen.proof.prove` would run
    in this one. The files were checked when the bundle was assembled, and are again on opening.

    Raises:
        ParityError: the bundle computes something else here.
        EdgeGenError: whatever the process met, or a time-out.
    """
    once = msgspec.structs.replace(job, warmup=0, repeats=1, operators=False, verify=True)
    run = measure.interleave([once], rounds=1, timeout_s=timeout_s)[0]
    files = len(open_bundle(job.path).manifest.files)
    shown = proof.Proof(run.bundle, run.bundle_sha256, run.device, files, run.drifts)
    proof.demand(shown)
    return shown


def _named(failed: Failure, job: Job) -> Failure:
    """The message with the bundle's name in place of the cache's."""
    name = open_bundle(job.path).manifest.name
    return msgspec.structs.replace(failed, message=failed.message.replace(job.path, name))


def end(order: str = "") -> None:
    """End what runs for `order`, or for any: its processes are killed until it has given up."""

    def kill() -> None:
        while now and order in ("", now[0]):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.05)  # one may have ended just now, and the next not have begun

    threading.Thread(target=kill, daemon=True).start()
