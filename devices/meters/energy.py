"""Joules between two moments: the first meter that this machine has, and why not a better one.

| device | chain |
|---|---|
| cpu | powercap (RAPL), an INA sensor of the board, a model: watts by the cores' busy time |
| gpu | NVML |

What was counted by a chip is "measured", what was computed from a rating is "modelled", and every
value bears that word and the meter's name. RAPL counts the whole package and INA the whole board,
idling and other programs included: use an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import psutil

from edgegen.devices.meters import hwmon, nvml, powercap

# Joules since the call before; it is given the seconds since then.
Spent = Callable[[float], float]
MEASURED, MODELLED, NOT_MEASURED = "measured", "modelled", "not measured"


class Meter:
    """Counts from `start` to `stop`, polling in a thread: counters wrap, and watts vary."""

    def __init__(self, source: str, spent: Spent, *, period_s: float, least_s: float) -> None:
        self.source = source
        self.least_s = least_s
        self._spent = spent
        self._period_s = period_s
        self._over = Event()
        self._thread = Thread(target=self._poll, daemon=True)
        self._joules = 0.0
        self._last = self._begun = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._last = self._begun = time.perf_counter()
        self._spent(0.0)
        self._thread.start()

    def stop(self) -> tuple[float | None, str]:
        """(joules since the start, where they are from); None where it was too short to say."""
        self._over.set()
        self._thread.join()
        self._add()
        lasted = self._last - self._begun
        if lasted < self.least_s:
            return None, (
                f"{NOT_MEASURED}: {lasted:.2g} s is too short for {self.source}, "
                f"which needs {self.least_s:g} s: give more --repeats"
            )
        return self._joules, self.source

    def _poll(self) -> None:
        while not self._over.wait(self._period_s):
            self._add()

    def _add(self) -> None:
        now = time.perf_counter()
        self._joules += self._spent(now - self._last)
        self._last = now


def find(device: str = "cpu", watts: float = 0.0, root: Path = Path("/")) -> Meter | str:
    """The best meter for a device; where there is none, "not measured: " and why.

    `watts` is what the device takes with all its cores busy, for the model; 0 takes the rating
    that the system shows. Files are read below `root`.
    """
    kind, _, index = device.partition(":")
    if kind == "gpu":
        read = nvml.reader(int(index) if index.isdigit() else 0)
        if isinstance(read, str):
            return f"{NOT_MEASURED}: {read}"
        source = f"{MEASURED} by NVML: GPU {index or 0}"
        return Meter(source, _of_power(read), period_s=0.2, least_s=1.0)
    if kind != "cpu":
        return f"{NOT_MEASURED}: no meter for {device}"
    return _of_cpu(watts, root)


def _of_cpu(watts: float, root: Path) -> Meter | str:
    zones, problem = powercap.zones(root)
    if zones:
        source = f"{MEASURED} by powercap: {', '.join(zone.name for zone in zones)}"
        return Meter(source, powercap.counter(zones), period_s=1.0, least_s=0.1)
    sensor = hwmon.sensor(root)
    if sensor:
        source = f"{MEASURED} by hwmon: {sensor.name}"
        return Meter(source, _of_power(sensor.watts), period_s=0.05, least_s=1.0)
    rated = watts or powercap.rated_w(root)
    if not rated:
        return (
            f"{NOT_MEASURED}: {problem}, no INA sensor in hwmon, no power rating: "
            "give --watts for a model"
        )
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    whose = "given" if watts else "the CPU's own rating"
    source = f"{MODELLED} by {rated:g} W ({whose}) by the busy share of {cores} cores"
    return Meter(f"{source}; {problem}", _of_model(rated, cores), period_s=1.0, least_s=0.1)


def _of_power(watts: Callable[[], float]) -> Spent:
    """The mean of the power at both ends of a stretch, times its length."""
    before = 0.0

    def spent(seconds: float) -> float:
        nonlocal before
        now = watts()
        joules = (before + now) / 2 * seconds
        before = now
        return joules

    return spent


def _of_model(watts: float, cores: int) -> Spent:
    """The watts, by the share of all cores' time that this process took."""
    before = 0.0

    def spent(seconds: float) -> float:
        nonlocal before
        times = psutil.Process().cpu_times()
        busy = times.user + times.system
        joules = watts * (busy - before) / cores if seconds else 0.0
        before = busy
        return joules

    return spent
