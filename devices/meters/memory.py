"""High-water mark of this process's own memory. Meant for a fresh process: see `peak_source`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import psutil

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak(clear_refs: Path = CLEAR_REFS) -> bool:
    """Start counting the peak anew from what is resident now; False where the system forbids it.

    Where it is False the peak counts from the start of the process.

    Source: Linux, Documentation/filesystems/proc.rst: writing 5 to clear_refs resets VmHWM.
    """
    try:
        clear_refs.write_text("5")
    except OSError:
        return False
    return True


def peak_rss_mb() -> float | None:
    """Most memory resident at one time, in MB (10^6 bytes); None where the system does not say."""
    return _peak()[0]


def peak_source() -> str:
    """Where `peak_rss_mb` reads: "VmHWM", "peak_wset", "ru_maxrss" or "not measured".

    Only VmHWM can be reset. ru_maxrss counts from the start of the process, and on Linux from the
    size of the process that started it.
    """
    return _peak()[1]


def vm_hwm_mb(status: str) -> float | None:
    """VmHWM of the text of /proc/PID/status, in MB; None when it has no such line."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def _peak() -> tuple[float | None, str]:
    try:
        mark = vm_hwm_mb(STATUS.read_text())
    except OSError:
        mark = None
    if mark is not None:
        return mark, "VmHWM"
    peak_wset = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    if peak_wset is not None:
        return peak_wset / 1e6, "peak_wset"
    return _maxrss()


def _maxrss() -> tuple[float | None, str]:
    """getrusage: bytes on macOS, KiB elsewhere."""
    try:
        resource: Any = importlib.import_module("resource")
    except ModuleNotFoundError:
        return None, "not measured"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, "ru_maxrss"
