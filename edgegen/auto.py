"""`--runtime auto`: the fastest engine on this device, of those that prove the bundle here.

Asked once: the answer is kept by bundle, device, threads and versions of the engines.
"""

from __future__ import annotations

import hashlib
import time
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
from edgegen.runtimes import ROOM, deploy
from edgegen.spec import Options, Report, Request, silent
from edgegen.timing import timed
from edgegen.verify import verify
from edgegen.workload import request_for

NAME = "auto"
BUDGET_S = 0.15  # of runs an engine, after one to warm up
LEAST, MOST = 3, 50  # runs


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
    candidates: list[Candidate] = []
    for engine in (names := readers(bundle)[0]):
        report(f"measure {engine}", len(candidates), len(names))
        candidates.append(_try(bundle, engine, device, options, request))
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


def _try(bundle: Bundle, engine: str, device: str, options: Options, request: Request) -> Candidate:
    """Prove, then run for a while; an engine that refuses is a candidate with a reason."""
    version = _version(engine)
    try:
        failed = [row for row in verify(bundle, engine, device, options) if not row.ok]
        if failed:
            row = worst(failed)
            why = f"{row.graph} {row.case} {row.output} is out of tolerance ({row.rule})"
            return Candidate(engine, version, refused=why)
        return Candidate(engine, version, tuple(_times(bundle, engine, device, options, request)))
    except EdgeGenError as error:
        return Candidate(engine, version, refused=str(error))


def _times(
    bundle: Bundle, engine: str, device: str, options: Options, request: Request
) -> list[float]:
    """Milliseconds of whole runs, each with a prompt or latents of its own."""
    out: list[float] = []
    with deploy(bundle.path, engine, device, options) as deployment:
        timed(deployment.steps(request))
        end = time.perf_counter() + BUDGET_S
        while len(out) < LEAST or (time.perf_counter() < end and len(out) < MOST):
            again = msgspec.structs.replace(request, seed=1 + len(out))
            out.append(sum(timed(deployment.steps(again))[1]))
    return out
