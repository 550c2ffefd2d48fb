"""NPUs, as the kernel's accel class shows them."""

from __future__ import annotations

import os
from pathlib import Path

from edgegen.devices import Device, driver, numbered, read_text

# Source: Linux, drivers/accel.
DRIVERS = {
    "intel_vpu": "Intel NPU",
    "amdxdna": "AMD XDNA NPU",
    "rocket": "Rockchip NPU",
    "ethosu": "Arm Ethos-U NPU",
    "qaic": "Qualcomm Cloud AI",
    "habanalabs": "Intel Gaudi",
}


def probe(root: Path = Path("/")) -> list[Device]:
    """One device for each /sys/class/accel/accel*, in the kernel's order."""
    found = sorted((root / "sys/class/accel").glob("accel*"))
    return [_device(index, node, root / "dev/accel") for index, node in enumerate(found)]


def _device(index: int, node: Path, files: Path) -> Device:
    module, chip = driver(node / "device"), read_text(node / "device/device")
    name = DRIVERS.get(module, module or "unknown NPU")
    return Device(
        name=numbered("npu", index),
        kind="npu",
        description=f"{name} {chip}".strip(),
        driver=module,
        notes=_access(files / node.name),
    )


def _access(file: Path) -> tuple[str, ...]:
    if not file.exists():
        return (f"{file} is missing: not passed into this container",)
    if not os.access(file, os.R_OK | os.W_OK):
        return (f"{file} may not be opened: run: sudo usermod -aG render $USER, and log in again",)
    return ()
