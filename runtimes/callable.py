"""An engine in memory: a graph is a plain numpy function. What loops and profiles are tested with.

A bundle is data, never code. Its file in this format only names a function, and opens only where
this process registered one of that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct

from edgegen import records
from edgegen.errors import MismatchError, NotFoundError
from edgegen.rooms import nearest
from edgegen.spec import Array, Feed, GraphSpec, Operator, Options

READS = "callable"
Function = Callable[[Feed], Mapping[str, Array]]
_functions: dict[str, Function] = {}


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle stores for a graph: the name its function was registered under."""

    function: str


def register(name: str, function: Function) -> None:
    """Let bundles of this process open `function` under `name`."""
    _functions[name] = function


def version() -> str:
    """The version of numpy, which does the work."""
    return np.__version__


def devices() -> list[str]:
    """Only the processor this runs on."""
    return ["cpu"]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> CallableSession:
    """A session over the function that the file at `path` names.

    Raises:
        NotFoundError: no such device, or no function of that name registered in this process.
    """
    if device not in ("auto", *devices()):
        raise NotFoundError(f"callable has no device {device!r}", nearest(device, devices()))
    name = records.decode(File, path.read_bytes(), str(path)).function
    if name not in _functions:
        raise NotFoundError(
            f"{path}: no function {name!r} is registered in this process",
            f"{nearest(name, _functions)}; or call edgegen.runtimes.callable.register first",
        )
    return CallableSession(graph, _functions[name], options)


class CallableSession:
    """One function as a `Session`; checks what goes in and what comes out."""

    def __init__(self, graph: GraphSpec, function: Function, options: Options | None = None):
        self.graph = graph
        self._function = function
        self._profile = (options or Options()).profile
        self._laps_ms: list[float] = []

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The function's outputs; `MismatchError` where either side breaks the graph's promise."""
        self.graph.check(inputs)
        start = time.perf_counter()
        outputs = dict(self._function(inputs))
        if self._profile:
            self._laps_ms.append((time.perf_counter() - start) * 1e3)
        wanted = [spec.name for spec in self.graph.outputs]
        if sorted(outputs) != sorted(wanted):
            raise MismatchError(f"graph {self.graph.name}: promised {wanted}, gave {list(outputs)}")
        for spec in self.graph.outputs:
            spec.check(outputs[spec.name])
        return {name: outputs[name] for name in wanted}

    def operators(self) -> tuple[Operator, ...]:
        """The function as one operator; empty unless `Options.profile`."""
        if not self._laps_ms:
            return ()
        calls, total_ms = len(self._laps_ms), sum(self._laps_ms)
        return (Operator(self.graph.name, "function", "cpu", calls, total_ms, "fp32"),)

    def close(self) -> None:
        """Nothing is held."""
