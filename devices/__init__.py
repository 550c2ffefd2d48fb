"""Kinds of device: one file each, `probe() -> list[Device]`, empty when absent; never raises.

What is here is the machine as the system shows it. Which engine can use which device is the
engines' to say: see `edgegen.survey`.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from edgegen import rooms
from edgegen.errors import NotFoundError


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """One device: "cpu", "gpu", "gpu:1", "npu". None or empty: not known, and `notes` says so.

    Memory is in MB (10^6 bytes), caches in KiB of one instance, by level: `{"L1d": 32}`.
    `usable_cores` is what affinity and the container's quota leave of `logical_cores`.
    """

    name: str
    kind: str
    description: str
    memory_mb: float | None = None
    free_memory_mb: float | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cores: float | None = None
    isa: tuple[str, ...] = ()
    caches_kib: dict[str, int] = {}
    governor: str = ""
    max_mhz: float | None = None
    driver: str = ""
    notes: tuple[str, ...] = ()


def probe() -> list[Device]:
    """Every device of every kind, the CPU first."""
    kinds = sorted(rooms.names("edgegen.devices"), key=lambda kind: (kind != "cpu", kind))
    return [d for kind in kinds for d in rooms.load("edgegen.devices", kind).probe()]


def find(name: str) -> Device:
    """The device of that name; "gpu:0" is "gpu".

    Raises:
        NotFoundError: this machine has none of that name.
    """
    have = {device.name: device for device in probe()}
    if name.removesuffix(":0") not in have:
        hint = rooms.nearest(name, have)
        raise NotFoundError(f"no device {name!r} in this machine", f"{hint} (edgegen devices)")
    return have[name.removesuffix(":0")]


def numbered(kind: str, index: int) -> str:
    """The name of the index-th device of a kind: "gpu", "gpu:1", "gpu:2"."""
    return f"{kind}:{index}" if index else kind


def read_text(path: Path) -> str:
    """What a file of /proc or /sys says, stripped; empty where it is absent or forbidden."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def driver(folder: Path) -> str:
    """The kernel driver of a device folder in /sys, from its uevent; or empty."""
    lines = read_text(folder / "uevent").splitlines()
    return next((line.partition("=")[2] for line in lines if line.startswith("DRIVER=")), "")
