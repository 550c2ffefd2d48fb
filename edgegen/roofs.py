"""A roofline as data: what a device can do at most, and how near to that a profile came.

Operations are counted as 2 for each multiply-accumulate; GFLOP/s are 10^9 a second at any
precision, whole numbers too; bandwidth is in GB/s, 10^9 bytes a second, of reading.

Source: Williams, Waterman, Patterson 2009, CACM 52 (4), "Roofline".
"""

from __future__ import annotations

from msgspec import Struct

COMPUTE, BANDWIDTH, OVERHEAD = "compute", "bandwidth", "overhead"


class Peak(Struct, frozen=True, forbid_unknown_fields=True):
    """The most operations a second that any installed engine reached; `by` says which, and how."""

    precision: str
    gflops: float
    by: str


class Bandwidth(Struct, frozen=True, forbid_unknown_fields=True):
    """How fast all threads together read what lies in one level: "L1", "L2", "L3" or "DRAM".

    `kib` is what was read over and over, by all threads together; `size_kib` what the level holds
    for all of them, 0 for DRAM.
    """

    level: str
    gb_s: float
    kib: int
    size_kib: int
    by: str


class Peaks(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of one device with so many threads, nearest cache first.

    A precision or level that nothing here can measure is not listed, and `notes` say why.
    """

    device: str
    device_name: str
    threads: int
    created: str
    peaks: tuple[Peak, ...]
    bandwidths: tuple[Bandwidth, ...]
    notes: tuple[str, ...] = ()

    def gflops(self, precision: str) -> float | None:
        """The peak at a precision; None where it was not measured."""
        return next((p.gflops for p in self.peaks if p.precision == precision), None)

    def level(self, resident_bytes: float) -> Bandwidth:
        """The nearest memory that holds so many bytes; the last, where none does."""
        holds = [b for b in self.bandwidths if b.size_kib * 1024 >= resident_bytes]
        return holds[0] if holds else self.bandwidths[-1]


class Roof(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of operator, or a whole phase, against its roof; one run, or one token of a decode.

    `name` is the phase, "run", "prefill" or "decode", or the kind of operator: "Conv",
    "ConvTranspose", "MatMul", "Attention" and "other", which holds all that does not multiply and
    what the engine added of its own. `ms` is the time taken, `flops` and `bytes` what the graph
    asks for, `roof_ms` the least time that the device needs for these, and `of_roof` the share of
    the roof reached: `roof_ms` / `ms`. `bound` is "compute", "bandwidth" or "overhead"; the last
    where the roof explains little of the time.
    """

    name: str
    ms: float
    flops: float
    bytes: float
    roof_ms: float
    of_roof: float
    bound: str


class Gain(Struct, frozen=True, forbid_unknown_fields=True):
    """What a change would buy: `ratio` is the predicted time over the time now, by an assumption.

    `change` is "int8", "int4" or "half the channels", `phase` the one it is about.
    """

    change: str
    phase: str
    ratio: float
    assumption: str


class Roofline(Struct, frozen=True, forbid_unknown_fields=True):
    """Why a profile is as slow as it is: `sentence` in words, the rest in numbers.

    `precision` is what its arithmetic runs in, `level` the memory it is served from, both one of
    `peaks`. `phases` are in the order they ran, `operators` the costliest first, as the engine
    times them over a whole run; the main phase is the last.
    """

    peaks: Peaks
    precision: str
    level: str
    phases: tuple[Roof, ...]
    operators: tuple[Roof, ...]
    gains: tuple[Gain, ...]
    sentence: str
    notes: tuple[str, ...] = ()
