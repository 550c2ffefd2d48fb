"""Measure what this machine can do at most: operations a second, and bytes from each cache level.

Each in a fresh process (`python -m edgegen.peaks`, a `Trial` on stdin, its result on stdout), for
the threads of two engines slow each other down; the best of many runs counts, for a roof is what
is possible. Kept under the user's cache by device, threads and engine versions.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from threading import Barrier

import msgspec
import numpy as np
import platformdirs
from msgspec import Struct, structs
from numpy.lib.stride_tricks import as_strided

from edgegen import matmuls, records
from edgegen.devices import Device, cpu
from edgegen.errors import EdgeGenError, FormatError, UnsupportedError
from edgegen.roofs import Bandwidth, Peak, Peaks
from edgegen.spec import Array, Report, silent

SIZE = 1024  # of the matrices: products of 2 GFLOP
SECONDS = 0.5  # for each product and each level
READERS = ("numpy", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
BEYOND = 4  # times the largest cache is read as DRAM
NO_CACHE_KIB = 64 * 1024  # is DRAM where caches cannot be read
SHORT_ROW = 64  # bytes: what starting a row costs
TIMEOUT_S = 300.0


class Trial(Struct, frozen=True, forbid_unknown_fields=True):
    """What a fresh process measures: products on `engine`, or reading `kib`, if `engine` is ""."""

    threads: int
    engine: str = ""
    kib: int = 0
    size: int = SIZE
    seconds: float = SECONDS


class Found(Struct, frozen=True, forbid_unknown_fields=True):
    """By precision the GFLOP/s, or under "read" the GB/s; `problem` says why there is nothing."""

    rates: dict[str, float] = {}
    problem: str = ""


def find(
    device: str = "cpu",
    threads: int = 0,
    *,
    fresh: bool = False,
    size: int = SIZE,
    seconds: float = SECONDS,
    folder: Path | None = None,
    report: Report = silent,
) -> Peaks:
    """The peaks of `device` with `threads` (0: one a core), from the cache unless `fresh`.

    `size` of the matrices and `seconds` for each measurement are for a quick look; `folder` is
    where they are kept.

    Raises:
        UnsupportedError: a device other than the CPU.
    """
    check_device(device)
    machine = cpu.probe()[0]
    threads = threads or cores(machine)
    file = (folder or default()) / f"{_key(machine, threads, size)}.json"
    if file.is_file() and not fresh:
        with suppress(FormatError):  # cut short, or of another version: it is measured again
            return records.read(Peaks, file)
    found = measure(machine, threads, size=size, seconds=seconds, report=report)
    records.write(found, file)
    return found


def check_device(device: str) -> None:
    """Raise `UnsupportedError` for a device whose peaks cannot be measured."""
    if device != "cpu":
        raise UnsupportedError(
            f"{device}: peaks, and so a roofline, are measured of the CPU only",
            "leave --roofline out, or profile with --device cpu",
        )


def default() -> Path:
    """The folder of this user's cache: ~/.cache/edgegen/peaks."""
    return platformdirs.user_cache_path("edgegen") / "peaks"


def cores(machine: Device) -> int:
    """One thread a physical core that may be used, as the engines choose by themselves."""
    physical = machine.physical_cores or machine.logical_cores or 1
    return max(1, min(physical, int(machine.usable_cores or physical)))


def _key(machine: Device, threads: int, size: int) -> str:
    """Changes with the device, the number of threads, and the engines' versions."""
    lasting = structs.replace(machine, free_memory_mb=None, notes=())
    engines = [_version(name) for name in READERS]
    what = msgspec.json.encode((lasting, threads, size, engines))
    return hashlib.sha256(what).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def measure(
    machine: Device, threads: int, *, size: int, seconds: float, report: Report = silent
) -> Peaks:
    """The peaks of the CPU, not from the cache."""
    sets = working_sets(machine, threads)
    engines = [name for name in READERS if _version(name)]
    total, notes = len(engines) + len(sets), []
    best: dict[str, Peak] = {}
    for n, engine in enumerate(engines):
        report("peaks", n, total)
        found = _apart(Trial(threads, engine, size=size, seconds=seconds))
        notes += [found.problem] if found.problem else []
        for precision, rate in found.rates.items():
            if rate > (best[precision].gflops if precision in best else 0.0):
                by = f"{_version(engine)}, product of {size} x {size}"
                best[precision] = Peak(precision, rate, by)
    bandwidths = []
    for n, (level, kib, size_kib) in enumerate(sets):
        report("peaks", len(engines) + n, total)
        rate = _apart(Trial(threads, kib=kib, seconds=seconds)).rates["read"]
        bandwidths.append(Bandwidth(level, rate, kib, size_kib, f"{_version('numpy')}, maximum"))
    report("peaks", total, total)
    notes += [f"{p} is not measured: no engine here computes in it" for p in _lost(best)]
    notes += [] if machine.caches_kib else ["caches are not readable here: only DRAM was measured"]
    return Peaks(
        device="cpu",
        device_name=machine.description,
        threads=threads,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        peaks=tuple(best[p] for p in PRECISIONS if p in best),
        bandwidths=tuple(bandwidths),
        notes=tuple(notes),
    )


def _lost(best: dict[str, Peak]) -> list[str]:
    return [precision for precision in PRECISIONS if precision not in best]


def working_sets(machine: Device, threads: int) -> list[tuple[str, int, int]]:
    """(level, KiB to read, KiB that it holds) for all threads together, the nearest first.

    The last level counts as one for all cores, those before it as each core's own.
    """
    data = {name.rstrip("d"): kib for name, kib in machine.caches_kib.items() if name != "L1i"}
    levels = sorted(data)
    last = levels[-1] if len(levels) > 1 else ""
    sizes = {name: kib * (1 if name == last else threads) for name, kib in data.items()}
    found = [(name, max(threads, sizes[name] // 2), sizes[name]) for name in levels]
    largest = max(sizes.values(), default=0)
    return [*found, ("DRAM", largest * BEYOND or NO_CACHE_KIB, 0)]


def _apart(trial: Trial) -> Found:
    """Carried out in a fresh process with so many threads for its BLAS."""
    names = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "BLIS")
    environment = os.environ | {f"{name}_NUM_THREADS": str(trial.threads) for name in names}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "edgegen.peaks"],
            input=msgspec.json.encode(trial),
            capture_output=True,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EdgeGenError(
            f"peaks: {trial.engine or 'reading memory'} was not done after {TIMEOUT_S:g} s",
            "close what else is running, then: edgegen devices --measure",
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        if not trial.engine:
            raise EdgeGenError(f"peaks: reading memory failed: {said[-1]}")
        return Found(problem=f"{trial.engine} is left out, it failed: {said[-1]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Found)


def carry_out(trial: Trial) -> Found:
    """What the fresh process does."""
    if not trial.engine:
        return Found({"read": reading_gb_s(trial.kib, trial.threads, trial.seconds)})
    runs = getattr(matmuls, trial.engine)(trial.size, trial.threads)
    operations = 2 * trial.size**3
    return Found({p: operations / best_s(run, trial.seconds) / 1e9 for p, run in runs.items()})


def best_s(run: Callable[[], object], seconds: float) -> float:
    """The fastest of at least three runs, of as many as fit into `seconds`."""
    run()
    laps: list[float] = []
    end = time.perf_counter() + seconds
    while len(laps) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        laps.append(time.perf_counter() - start)
    return min(laps)


def reading_gb_s(kib: int, threads: int, seconds: float) -> float:
    """GB/s of `threads` that each read their share of `kib` over and over.

    The share is one row of a matrix that repeats it (stride 0), so that one call reads it many
    times; what starting a row costs is measured on short rows and taken off.
    """
    share = kib * 1024 // threads
    with ThreadPoolExecutor(threads) as pool:
        row_s = _row_s(pool, share, threads, seconds) - _row_s(pool, SHORT_ROW, threads, seconds)
    return (share - SHORT_ROW) * threads / max(row_s, 1e-12) / 1e9


def _row_s(pool: ThreadPoolExecutor, size: int, threads: int, seconds: float) -> float:
    """The shortest time of one row of `size` bytes, all threads reading theirs at once."""
    rows = max(1, (1 << 24) // size)
    # Not zeros: the kernel maps one page of these for all.
    data = [as_strided(np.ones(size, np.uint8), (rows, size), (0, 1)) for _ in range(threads)]
    together = Barrier(threads)

    def read(mine: Array) -> None:
        together.wait()
        np.maximum.reduce(mine, axis=1)  # lets the other threads run: it holds no lock

    return best_s(lambda: list(pool.map(read, data)), seconds) / rows


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an engine prints must not come between
    lines.write(msgspec.json.encode(carry_out(asked)) + b"\n")
    lines.flush()
