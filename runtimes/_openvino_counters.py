"""OpenVINO's performance counters as a table of operators."""

from __future__ import annotations

from typing import Any

from edgegen.spec import Operator


class Counters:
    """Times of every operator, summed over all runs.

    On the CPU an operator that takes less than a microsecond is not among them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._runs = 0
        self._times: dict[tuple[str, str, str], list[float]] = {}

    def note(self, request: Any) -> None:
        """Add the run that `request` has just done.

        The CPU's counters are means over all runs since the graph was compiled, in whole
        microseconds; those of other devices are of the last run.
        """
        self._runs += 1
        means = self._device == "cpu"
        if means:
            self._times = {}
        for info in request.get_profiling_info():
            if str(info.status).endswith("EXECUTED"):
                key = info.node_name, info.node_type, info.exec_type
                ms = [info.real_time.total_seconds() * 1e3] * (self._runs if means else 1)
                self._times.setdefault(key, []).extend(ms)

    def operators(self) -> tuple[Operator, ...]:
        """One row a node."""
        return tuple(
            Operator(name, kind, self._device, len(ms), sum(ms), precision=primitive)
            for (name, kind, primitive), ms in self._times.items()
        )
