"""The CPU: model, instruction sets that matter to a model's speed and numbers, cores, caches."""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import structs

from edgegen.devices import Device, read_text

# Flags that decide which kernels an engine takes, and with int8 also which numbers come out.
FLAGS = (
    # x86
    "sse4_1 avx f16c fma avx2 avx_vnni avx_vnni_int8 avx512f avx512bw avx512vl avx512_vnni "
    "avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 amx_fp16 "
    # arm
    "asimd asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2"
)

# Source: Linux, arch/arm64/include/asm/cputype.h (implementer 0x41, Arm).
PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}


def probe(root: Path = Path("/")) -> list[Device]:
    """The one CPU, read from /proc and /sys below `root`; what could not be read is in `notes`."""
    cpuinfo = read_text(root / "proc/cpuinfo")
    memory, cpus = psutil.virtual_memory(), root / "sys/devices/system/cpu"
    board = read_text(root / "proc/device-tree/model")
    device = Device(
        name="cpu",
        kind="cpu",
        description=model(cpuinfo, board) or platform.processor() or platform.machine(),
        memory_mb=memory.total / 1e6,
        free_memory_mb=memory.available / 1e6,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=_usable(root),
        isa=isa(cpuinfo),
        caches_kib=caches(cpus / "cpu0/cache"),
        governor=governor(cpus),
        max_mhz=_mhz(cpus),
    )
    return [structs.replace(device, notes=(*_unread(device), *_limits(device, cpuinfo)))]


def environment() -> dict[str, Any]:
    """Where a measurement was taken: CPU, clocks, memory, load, Python and system. JSON types."""
    cpu = msgspec.json.decode(msgspec.json.encode(probe()[0]))
    drop = ("name", "kind", "description", "driver")
    return {
        "cpu": cpu["description"],
        **{key: value for key, value in cpu.items() if key not in drop},
        "machine": platform.machine(),
        "load_1min": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "os": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def fields(cpuinfo: str) -> list[dict[str, str]]:
    """The `key : value` blocks of /proc/cpuinfo: one a logical CPU, and on boards one more."""
    blocks = []
    for block in cpuinfo.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        blocks.append({key.strip(): value.strip() for key, _, value in pairs})
    return [block for block in blocks if block]


def model(cpuinfo: str, board: str = "") -> str:
    """What the CPU is called: "AMD EPYC", "4x Cortex-A76 (Raspberry Pi 5 Model B)"; or empty."""
    blocks = fields(cpuinfo)
    for block in blocks:
        if block.get("model name"):
            return block["model name"]
    parts = Counter(_part(block) for block in blocks if "CPU part" in block)
    cores = " + ".join(f"{count}x {name}" for name, count in parts.items())
    board = board or next((b["Model"] for b in blocks if "Model" in b), "")
    return f"{cores} ({board})" if cores and board else cores or board


def _part(block: dict[str, str]) -> str:
    maker, part = block.get("CPU implementer", ""), block["CPU part"]
    return PARTS[part] if maker == "0x41" and part in PARTS else f"implementer {maker} part {part}"


def isa(cpuinfo: str) -> tuple[str, ...]:
    """Those of `FLAGS` that every core has, in that order."""
    blocks = fields(cpuinfo)
    lists = [(b.get("flags") or b.get("Features") or "").split() for b in blocks]
    common = set.intersection(*map(set, filter(None, lists))) if any(lists) else set()
    return tuple(flag for flag in FLAGS.split() if flag in common)


def caches(folder: Path) -> dict[str, int]:
    """KiB of each cache that the CPU of `folder` (.../cpu0/cache) sees: {"L1d": 32, "L2": 1024}."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (read_text(index / name) for name in ("level", "type", "size"))
        number = size.rstrip("KM")
        if level and number.isdigit():
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            found[f"L{level}{letter}"] = int(number) * (1024 if size.endswith("M") else 1)
    return found


def governor(cpus: Path) -> str:
    """The frequency governors of all CPUs: "performance", or "powersave, schedutil"; or empty."""
    files = cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({read_text(file) for file in files} - {""}))


def quota_cores(cpu_max: str) -> float | None:
    """Cores a cgroup allows, by the text of its cpu.max: "50000 100000" is 0.5, "max" None."""
    quota, _, period = cpu_max.partition(" ")
    if not (quota.isdigit() and period.strip().isdigit()):
        return None
    return int(quota) / int(period)


def _usable(root: Path) -> float | None:
    """The smallest of affinity and the quotas of the own cgroup and those around it."""
    own = getattr(os, "sched_getaffinity", lambda _: range(psutil.cpu_count() or 0))(0)
    bounds = [float(len(own))] + [q for q in map(quota_cores, _cpu_max(root)) if q]
    return min(bounds) or None


def _cpu_max(root: Path) -> list[str]:
    """The cpu.max text of each cgroup from the own one up (v2), and v1's quota in the same form."""
    groups = root / "sys/fs/cgroup"
    lines = read_text(root / "proc/self/cgroup").splitlines()
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    steps = [groups / path, *(groups / path).parents] if path else [groups]
    v2 = [read_text(step / "cpu.max") for step in steps if step.is_relative_to(groups)]
    v1 = [read_text(groups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    return [*v2, " ".join(v1)]


def _mhz(cpus: Path) -> float | None:
    files = cpus.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")  # kHz; not all cores are alike
    clocks = [int(text) / 1e3 for text in map(read_text, files) if text.isdigit()]
    return max(clocks, default=None)


def _unread(device: Device) -> tuple[str, ...]:
    said = {
        "instruction-set flags": device.isa,
        "physical cores": device.physical_cores,
        "caches": device.caches_kib,
        "frequency governor": device.governor,
        "clock": device.max_mhz,
    }
    return tuple(f"not readable here: {what}" for what, value in said.items() if not value)


def _limits(device: Device, cpuinfo: str) -> tuple[str, ...]:
    notes = []
    if device.usable_cores and device.usable_cores < (device.logical_cores or 0):
        usable, all_cores = f"{device.usable_cores:g}", device.logical_cores
        notes.append(f"limited to {usable} of {all_cores} cores by affinity or container quota")
    if any("hypervisor" in block.get("flags", "").split() for block in fields(cpuinfo)):
        notes.append("a virtual machine: its clock and neighbours are not ours to see")
    return tuple(notes)
