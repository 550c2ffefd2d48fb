"""Measure a bundle in this process: from outside, one `next()` of its loop at a time."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import psutil

from edgegen import __version__, rooms
from edgegen.bundle import Bundle, Drift, open_bundle
from edgegen.errors import NotFoundError
from edgegen.profile import SCHEMA_VERSION, Profile
from edgegen.spec import Operator, Options, Report, silent
from edgegen.workload import Job

T = TypeVar("T")

WARM_SEED = 1_000_003  # warm-up prompts are not those that are timed
PROFILED_RUNS = 3
# Environment variables that change how an engine's threads run or wait.
THREADING = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ORT_", "OV_", "TBB_", "MALLOC_")


def timed(loop: Generator[Any, None, T]) -> tuple[T, list[float]]:
    """Drain a loop; return its sample and the milliseconds each step took."""
    laps: list[float] = []
    while True:
        start = time.perf_counter()
        try:
            next(loop)
        except StopIteration as end:
            return end.value, laps
        laps.append((time.perf_counter() - start) * 1e3)


def measure(job: Job, report: Report = silent) -> Profile:
    """Run `job` in this process. Best called in a fresh one: `profile` does that."""
    from edgegen.devices import meters

    _import_engine(job)
    environment = _environment()
    meters.reset_peak()
    loaded = time.perf_counter()
    deployment = _deploy(job, job.options)
    load_ms = (time.perf_counter() - loaded) * 1e3
    try:
        cold_ms, laps, clocks, (joules, energy_source) = _run(deployment, job, report)
        peak_rss_mb, peak_source = meters.peak_rss_mb(), meters.peak_source()
    finally:
        deployment.close()
    engine = rooms.load("edgegen.runtimes", deployment.engine)
    bundle: Bundle = deployment.bundle
    return Profile(
        schema_version=SCHEMA_VERSION,
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256(),
        family=bundle.manifest.family,
        precision=bundle.manifest.precision,
        format=engine.READS,
        engine=deployment.engine,
        engine_version=engine.version(),
        device=deployment.device,
        device_name=_device_name(deployment.device, environment),
        threads=job.options.threads,
        request=job.request,
        warmup=job.warmup,
        repeats=job.repeats,
        load_ms=load_ms,
        cold_ms=cold_ms,
        first_ms=tuple(run[0] for run in laps),
        steps_ms=tuple(tuple(run[1:]) for run in laps),
        size_mb=bundle.size_mb(engine.READS),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        peak_rss_mb=peak_rss_mb,
        energy_j=None if joules is None else joules / (sum(map(len, laps)) * job.request.batch),
        energy_source=energy_source,
        operators=_operators(job, report) if job.operators else (),
        drifts=_drifts(bundle, deployment.engine, job, report) if job.verify else (),
        quality=bundle.manifest.quality,
        environment=environment | clocks | {"peak_rss_source": peak_source},
        adapter=deployment.adapter,
    )


def _import_engine(job: Job) -> None:
    """Import the engine before the clock starts: Python's own work is not the model's load time."""
    from edgegen import runtimes

    # CUDA puts the fastest GPU first; the kernel, nvidia-smi and NVML count by the bus.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if job.runtime:
        rooms.load(runtimes.ROOM, job.runtime)
    else:
        runtimes._first_engine(open_bundle(job.path))


def _deploy(job: Job, options: Options) -> Any:
    from edgegen.runtimes import deploy

    return deploy(job.path, job.runtime, job.device, options)


def _run(
    deployment: Any, job: Job, report: Report
) -> tuple[float, list[list[float]], dict[str, float], tuple[float | None, str]]:
    """(first inference in ms, laps of every timed repeat, clock and heat, joules of these)."""
    from edgegen.devices import meters

    def laps(seed: int) -> list[float]:
        request = msgspec.structs.replace(job.request, seed=job.request.seed + seed)
        return timed(deployment.steps(request))[1]

    what = f"{deployment.bundle.manifest.name} {deployment.engine} {deployment.device}"
    report(what, 0, job.warmup + job.repeats)
    cold_ms = laps(WARM_SEED)[0]
    for n in range(job.warmup):
        laps(WARM_SEED + 1 + n)
        report(what, n + 1, job.warmup + job.repeats)
    gc.collect()
    gc.freeze()  # torch leaves a million objects that a collection in the middle would walk over
    runs, start = [], _state("start", job.device)
    meter = meters.find(job.device, job.watts)
    if isinstance(meter, meters.Meter):
        meter.start()
    for n in range(job.repeats):
        runs.append(laps(job.first + n))
        report(what, job.warmup + n + 1, job.warmup + job.repeats)
    energy = meter.stop() if isinstance(meter, meters.Meter) else (None, meter)
    gc.unfreeze()
    return cold_ms, runs, start | _state("end", job.device), energy


def _operators(job: Job, report: Report) -> tuple[Operator, ...]:
    """The engine's own times, one row for each kind of operator, summed over a few runs.

    Asked of a second session, for an engine that keeps its own time is slower. A row bears the
    name of its most expensive node.
    """
    report("operators", 0, 1)
    deployment = _deploy(job, msgspec.structs.replace(job.options, profile=True))
    try:
        for n in range(PROFILED_RUNS):
            timed(deployment.steps(msgspec.structs.replace(job.request, seed=WARM_SEED + n)))
        return by_kind([o for s in deployment.sessions.values() for o in s.operators()])
    finally:
        deployment.close()
        report("operators", 1, 1)


def _drifts(bundle: Bundle, engine: str, job: Job, report: Report) -> tuple[Drift, ...]:
    from edgegen.verify import verify

    report("golden data", 0, 1)
    found = tuple(verify(bundle, engine, job.device, job.options))
    report("golden data", 1, 1)
    return found


def by_kind(nodes: list[Operator]) -> tuple[Operator, ...]:
    """Nodes summed by kind, device and precision, the most expensive first."""
    groups: dict[tuple[str, str, str], list[Operator]] = {}
    for node in nodes:
        groups.setdefault((node.kind, node.device, node.precision), []).append(node)
    rows = [
        Operator(
            name=max(group, key=lambda node: node.total_ms).name,
            kind=kind,
            device=device,
            calls=sum(node.calls for node in group),
            total_ms=sum(node.total_ms for node in group),
            precision=precision,
        )
        for (kind, device, precision), group in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.total_ms))


def _environment() -> dict[str, Any]:
    from edgegen.devices import cpu

    kept = {k: v for k, v in sorted(os.environ.items()) if k.startswith(THREADING)}
    return cpu.environment() | {"edgegen": __version__, "threading_variables": kept}


def _device_name(device: str, environment: Mapping[str, Any]) -> str:
    """What the device is called; its EdgeGen name where only the engine knows it (AUTO, HETERO)."""
    from edgegen.devices import find

    if device == "cpu":
        return str(environment.get("cpu", device))
    try:
        return str(find(device).description)
    except NotFoundError:
        return device


def _state(when: str, device: str) -> dict[str, float]:
    """Clock and heat of now, each as far as it can be read; of a GPU its memory, too."""
    from edgegen.devices.meters import nvml

    kind, _, index = device.partition(":")
    gpu = nvml.state(int(index) if index.isdigit() else 0, when) if kind == "gpu" else {}
    heat = _heat_c()
    own = {f"clock_mhz_{when}": _clock_mhz()} | ({f"heat_c_{when}": heat} if heat else {})
    return own | gpu


def _heat_c() -> float:
    """The hottest sensor, in degrees Celsius; 0 where none can be read."""
    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError):  # the first on macOS and Windows
        return 0.0
    return max((float(one.current) for sensor in found.values() for one in sensor), default=0.0)


def _clock_mhz() -> float:
    """The clock, averaged over the cores; 0 where it cannot be read."""
    try:
        found = psutil.cpu_freq()
    except (NotImplementedError, OSError):
        return 0.0
    return float(found.current) if found else 0.0
