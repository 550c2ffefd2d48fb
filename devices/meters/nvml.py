"""Power, clock, memory and heat of NVIDIA GPUs: by pynvml where it is installed, or nvidia-smi."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from msgspec import Struct

QUERY = "power.draw,clocks.sm,memory.used,temperature.gpu"
TIMEOUT_S = 10


class Reading(Struct, frozen=True):
    """One GPU now: watts, MHz, MB (10^6 bytes) taken by all programs, °C; None is not known."""

    watts: float | None = None
    clock_mhz: float | None = None
    memory_mb: float | None = None
    heat_c: float | None = None


def reader(index: int) -> Callable[[], float] | str:
    """What gives the watts of the index-th GPU; else why there is nothing."""
    found = read(index)
    if isinstance(found, str):
        return found
    if found.watts is None:
        return f"GPU {index} does not say what power it draws"
    last = found.watts

    def watts() -> float:
        nonlocal last
        now = read(index)
        last = now.watts if isinstance(now, Reading) and now.watts is not None else last
        return last

    return watts


def state(index: int, when: str) -> dict[str, float]:
    """What of a GPU is to be kept with a measurement, each with "_start" or "_end"."""
    found = read(index)
    if isinstance(found, str):
        return {}
    known = {"clock_mhz": found.clock_mhz, "memory_mb": found.memory_mb, "heat_c": found.heat_c}
    return {f"gpu_{key}_{when}": value for key, value in known.items() if value is not None}


def read(index: int) -> Reading | str:
    """The GPU of that index now, or why it cannot be read."""
    name = visible(index, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    try:
        return of_pynvml(importlib.import_module("pynvml"), name)
    except ModuleNotFoundError:
        return of_smi(name, shutil.which("nvidia-smi") or "")
    except Exception as error:  # NVMLError: no driver, no such GPU, not supported
        return f"NVML: {error}"


def visible(index: int, listed: str) -> str:
    """What NVML calls the index-th GPU that CUDA is shown: a number, or a UUID.

    `listed` is CUDA_VISIBLE_DEVICES, which NVML does not heed.
    """
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)


def of_pynvml(nvml: Any, name: str) -> Reading:
    """By the library's own functions; milliwatts and bytes there."""
    nvml.nvmlInit()
    if name.isdigit():
        gpu = nvml.nvmlDeviceGetHandleByIndex(int(name))
    else:
        gpu = nvml.nvmlDeviceGetHandleByUUID(name)

    def known(ask: Callable[[], float]) -> float | None:
        try:
            return float(ask())
        except nvml.NVMLError:  # "not supported": boards with shared memory, old GPUs
            return None

    return Reading(
        known(lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
        known(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        known(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6),
        known(lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
    )


def of_smi(name: str, program: str) -> Reading | str:
    """By what nvidia-smi prints."""
    if not program:
        return "no NVIDIA GPU: neither pynvml nor nvidia-smi is here"
    command = [program, f"--id={name}", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        return f"nvidia-smi: {said[0]}"
    return parse(done.stdout)


def parse(csv: str) -> Reading | str:
    """The one line of `nvidia-smi --query-gpu=QUERY`; memory there is in MiB."""
    cells = [cell.strip() for cell in csv.strip().split(",")]
    if len(cells) != len(QUERY.split(",")):
        return f"nvidia-smi answered {csv.strip()!r}"
    watts, clock, mib, heat = map(_number, cells)
    return Reading(watts, clock, None if mib is None else mib * 2**20 / 1e6, heat)


def _number(cell: str) -> float | None:
    """None for "[N/A]" and "[Not Supported]"."""
    try:
        return float(cell)
    except ValueError:
        return None
