"""GPUs: NVIDIA's by nvidia-smi, all others by the render nodes of the Linux kernel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from msgspec import structs

from edgegen.devices import Device, driver, numbered, read_text

QUERY = "name,memory.total,memory.free,driver_version,compute_cap"
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel", "0x1af4": "virtio"}


def probe(root: Path = Path("/")) -> list[Device]:
    """NVIDIA GPUs in nvidia-smi's order, then the others in the kernel's."""
    nvidia = parse_smi(_nvidia_smi())
    others = [d for d in nodes(root) if not (nvidia and d.description.startswith("NVIDIA"))]
    found = enumerate([*nvidia, *others])
    return [structs.replace(gpu, name=numbered("gpu", index)) for index, gpu in found]


def _nvidia_smi() -> str:
    """The answer of nvidia-smi as CSV; empty where there is none, or its driver does not answer."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parse_smi(csv: str) -> list[Device]:
    """One device a line of `nvidia-smi --query-gpu=QUERY`; memory there is in MiB."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return [
        Device(
            name="gpu",
            kind="gpu",
            description=f"NVIDIA {name.removeprefix('NVIDIA ')}",
            memory_mb=_mb(total),
            free_memory_mb=_mb(free),
            isa=(f"sm_{compute.replace('.', '')}",),
            driver=f"nvidia {driver}",
        )
        for name, total, free, driver, compute in (row for row in rows if len(row) == 5)
    ]


def _mb(mib: str) -> float | None:
    """MiB as nvidia-smi writes them; None for "[N/A]", as boards with shared memory say."""
    return int(mib) * 2**20 / 1e6 if mib.isdigit() else None


def nodes(root: Path) -> list[Device]:
    """One device for each /sys/class/drm/renderD*: what can compute, and not only display."""
    found = (root / "sys/class/drm").glob("renderD*")
    return [_node(node / "device", root / "dev/dri" / node.name) for node in sorted(found)]


def _node(folder: Path, file: Path) -> Device:
    vendor, chip = read_text(folder / "vendor"), read_text(folder / "device")
    name = f"{VENDORS.get(vendor, vendor)} {chip}".strip()
    memory = read_text(folder / "mem_info_vram_total")  # bytes; amdgpu only
    return Device(
        name="gpu",
        kind="gpu",
        description=name or driver(folder) or "unknown GPU",
        memory_mb=int(memory) / 1e6 if memory.isdigit() else None,
        driver=driver(folder),
        notes=() if file.exists() else (f"{file} is missing: not passed into this container",),
    )
