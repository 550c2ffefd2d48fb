"""`--runtime auto`: the fastest engine on this device, of those that prove the bundle here.

Asked once: the answer is kept by bundle, device, threads and versions of the engines.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import platformdirs
from msgspec import Struct

from edgegen import records, rooms
from edgegen.bundle import Bundle, open_bundle, worst
from edgegen.devices import cpu
from edgegen.errors import EdgeGenError, FormatError, UnsupportedError
from edgegen.proof import readers
from edgegen.runtimes import ROOM, Deployment, deploy
from edgegen.spec import Options, Report, Request, silent
from edgegen.timing import timed
from edgegen.verify import verify
from edgegen.workload import request_for

NAME = "auto"
BUDGET_S = 0.15  # of runs an engine, in all
# Slow and fast phases of a machine last longer than a run, so the engines take turns; a turn is
# several runs, for the threads of the one before still spin for a while.
TURNS = 3
MOST = 20  # runs a turn, after one to warm up


class Candidate(Struct, frozen=True, forbid_unknown_fields=True):
    """One engine: milliseconds of its runs, or why it has none."""

    engine: str
    version: str
    ms: tuple[float, ...] = ()
    refused: str = ""

    def said(self) -> str:
        """native 1.23 ms of 50 runs, or why not."""
        if self.refused:
            return f"{self.engine} not taken: {self.refused}"
        return f"{self.engine} {median(self.ms):.3g} ms (median of {len(self.ms)})"


class Choice(Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that is taken, and what every one of them did with `request`."""

    engine: str
    bundle: str
    device: str
    request: Request
    candidates: tuple[Candidate, ...]

    def why(self) -> str:
        """One line: the engine, the times of all, and what was run."""
        if self.request.prompt_tokens:
            what = f"{self.request.prompt_tokens} tokens in, {self.request.new_tokens} out"
        else:
            what = f"a run of batch {self.request.batch}"
        said = "; ".join(one.said() for one in self.candidates)
        return f"{NAME}: {self.engine} for {self.bundle} on {self.device} ({what}: {said})"


def choose(
    path: Path | str, device: str = "cpu", options: Options | None = None, report: Report = silent
) -> Choice:
    """The fastest engine that proves the bundle on `device`; measured now, or earlier and kept.

    Raises:
        MissingExtraError: no engine that reads the bundle is installed.
        UnsupportedError: none of them proves the bundle on this device; each says why.
        UsageError: options for an engine, which only one of them would understand.
    """
    bundle, options = open_bundle(path), options or Options()
    file = _kept(bundle, device, options)
    if found := _read(file):
        return found
    request = request_for(path)
    names = readers(bundle)[0]
    refused: dict[str, str] = {}
    for number, engine in enumerate(names):
        report(f"prove {engine}", number, len(names))
        refused[engine] = _refusal(bundle, engine, device, options)
    report("measure " + ", ".join(n for n in names if not refused[n]), len(names), len(names))
    times = _in_turns(bundle, refused, device, options, request)
    candidates = [
        Candidate(engine, _version(engine), tuple(times.get(engine, ())), refused[engine])
        for engine in names
    ]
    fit = [one for one in candidates if one.ms]
    if not fit:
        raise UnsupportedError(
            f"{bundle.path}: no engine proves it on {device}: "
            + "; ".join(one.said() for one in candidates),
            "see what differs with: edgegen verify BUNDLE",
        )
    best = min(fit, key=lambda one: median(one.ms))
    choice = Choice(best.engine, bundle.manifest.name, device, request, tuple(candidates))
    records.write(choice, file)
    return choice


def _kept(bundle: Bundle, device: str, options: Options) -> Path:
    """Where the answer is kept: by all that it depends on."""
    versions = {name: _version(name) for name in readers(bundle)[0]}
    place = f"{device} of {cpu.probe()[0].description}"
    key = msgspec.json.encode([bundle.sha256(), place, versions, options], order="sorted")
    folder = platformdirs.user_cache_path("edgegen") / NAME
    return folder / f"{hashlib.sha256(key).hexdigest()}.json"


def _read(file: Path) -> Choice | None:
    """What was kept; None for nothing, or for what an older EdgeGen or a full disk left."""
    try:
        return records.read(Choice, file) if file.is_file() else None
    except FormatError:
        return None


def _version(engine: str) -> str:
    return str(rooms.load(ROOM, engine).version())


def _refusal(bundle: Bundle, engine: str, device: str, options: Options) -> str:
    """Why the engine is no candidate: it refuses the bundle, or computes something else."""
    try:
        failed = [row for row in verify(bundle, engine, device, options) if not row.ok]
    except EdgeGenError as error:
        return str(error)
    if not failed:
        return ""
    row = worst(failed)
    return f"{row.graph} {row.case} {row.output} is out of tolerance ({row.rule})"


def _in_turns(
    bundle: Bundle, refused: dict[str, str], device: str, options: Options, request: Request
) -> dict[str, list[float]]:
    """Milliseconds of whole runs of the engines that nothing refuses, each with a prompt or
    latents of its own; one that refuses now is put into `refused`."""
    opened: dict[str, Deployment] = {}
    times: dict[str, list[float]] = {engine: [] for engine in refused}
    with ExitStack() as stack:
        for turn in range(TURNS):
            for engine in list(refused)[:: 1 if turn % 2 == 0 else -1]:
                if refused[engine]:
                    continue
                try:
                    if engine not in opened:
                        deployment = deploy(bundle.path, engine, device, options)
                        opened[engine] = stack.enter_context(deployment)
                    _turn(times[engine], opened[engine], request)
                except EdgeGenError as error:
                    refused[engine] = str(error)
    return {engine: found for engine, found in times.items() if not refused[engine]}


def _turn(found: list[float], deployment: Deployment, request: Request) -> None:
    """Some runs more, after one that is not counted."""
    timed(deployment.steps(request))
    most = len(found) + MOST
    end = time.perf_counter() + BUDGET_S / TURNS
    while True:
        again = msgspec.structs.replace(request, seed=1 + len(found))
        found.append(sum(timed(deployment.steps(again))[1]))
        if len(found) == most or time.perf_counter() >= end:
            return
