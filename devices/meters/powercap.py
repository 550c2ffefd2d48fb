"""RAPL, by the kernel's powercap class: counters of microjoules that wrap.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from edgegen.devices import read_text

CLASS = "sys/class/powercap"


class Zone(Struct, frozen=True):
    """One counter, and at how many microjoules it begins anew."""

    name: str
    file: Path
    range_uj: int


def zones(root: Path) -> tuple[list[Zone], str]:
    """Packages and the memory beside them, or none and why.

    Cores are inside their package, and psys holds everything once more: neither is taken.
    """
    folders = sorted((root / CLASS).glob("*rapl*:*"))
    if not folders:
        return [], "no powercap"
    found = []
    for folder in folders:
        name = read_text(folder / "name")
        if not name.startswith(("package", "dram")):
            continue
        file = folder / "energy_uj"
        if not read_text(file).isdigit():
            return [], f"{file} may not be read (run: sudo chmod a+r {file})"
        found.append(Zone(name, file, int(read_text(folder / "max_energy_range_uj") or 0)))
    return found, "" if found else "no package in powercap"


def counter(found: Sequence[Zone]) -> Callable[[float], float]:
    """Joules since the call before, of all zones; 0 at the first."""
    before: list[int] = []

    def spent(_: float) -> float:
        now = [int(read_text(zone.file) or 0) for zone in found]
        pairs = zip(found, before, now, strict=True) if before else ()
        joules = sum(_grown(zone, was, is_) for zone, was, is_ in pairs) / 1e6
        before[:] = now
        return joules

    return spent


def _grown(zone: Zone, was: int, now: int) -> int:
    return now - was if now >= was else now + zone.range_uj - was


def rated_w(root: Path) -> float:
    """What the packages may take for long, by their own account; 0 where it does not say."""
    limits = (root / CLASS).glob("*rapl:[0-9]*/constraint_0_max_power_uw")
    packages = [f for f in limits if read_text(f.parent / "name").startswith("package")]
    return sum(int(text) for text in map(read_text, packages) if text.isdigit()) / 1e6
