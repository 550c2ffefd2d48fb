"""What is wrong with this installation, and the command that mends it.

`findings` is a pure function of an `Inventory`, so that every finding is tested on machines and
environments that are not here.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from edgegen import devices
from edgegen.devices import Device, read_text

TESTED = Path(__file__).with_name("constraints.txt")

# Wheels that all install the one folder `onnxruntime`: the last one wins, file by file.
FLAVOURS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-cann",
    "onnxruntime-vitisai",
    "onnxruntime-training",
    "onnxruntime-silicon",
)
# What each extra is for, in the order in which a new user wants them.
EXTRAS = {
    "onnxruntime": "running ONNX bundles",
    "openvino": "running OpenVINO bundles",
    "text": "running language models",
    "images": "reading and writing pictures",
    "report": "plots in the HTML report",
    "build": "training and export",
    "gguf": "reading GGUF files",
    "data": "the embedded data set, digits",
    "fleet": "profiling many devices",
}
# Those whose version changes the numbers or the files that come out.
PINNED = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "openvino-tokenizers",
    "nncf",
    "tokenizers",
)
OPENVINO_ARM_GLIBC = (2, 35)  # its aarch64 wheels are manylinux_2_35


class Finding(Struct, frozen=True, forbid_unknown_fields=True):
    """One problem and the command that mends it; `optional` where only some uses need it."""

    problem: str
    fix: str
    optional: bool = False


class Inventory(Struct, frozen=True):
    """What a diagnosis looks at.

    `packages` maps the normalised names of installed distributions to versions, `requires` holds
    EdgeGen's own requirements as in its metadata, `tested` the versions it was tested with.
    """

    packages: dict[str, str]
    devices: tuple[Device, ...] = ()
    requires: tuple[str, ...] = ()
    tested: dict[str, str] = {}
    machine: str = "x86_64"
    glibc: str = ""

    def has(self, package: str) -> bool:
        """Is it installed? Any flavour of ONNX Runtime is one."""
        wanted = FLAVOURS if package == "onnxruntime" else (package,)
        return any(name in self.packages for name in wanted)


def diagnose() -> list[Finding]:
    """The findings for the environment this runs in; nothing heavy is imported for it."""
    return findings(inventory())


def findings(have: Inventory) -> list[Finding]:
    """What to mend, the gravest first."""
    checks = (_flavours, _cpu_engine, _cpu_torch, _glibc, _too_old, _missing, _untested)
    return [finding for check in checks for finding in check(have)]


def inventory() -> Inventory:
    """What is installed and built in here."""
    packages = {_normal(d.name): d.version for d in metadata.distributions()}
    libc, version = platform.libc_ver()
    return Inventory(
        packages=packages,
        devices=tuple(devices.probe()),
        requires=tuple(metadata.requires("edgegen") or ()),
        tested=pins(read_text(TESTED)),
        machine=platform.machine(),
        glibc=version if libc == "glibc" else "",
    )


def pins(constraints: str) -> dict[str, str]:
    """The `name==version` lines of a constraints file."""
    pairs = (line.partition("==") for line in constraints.splitlines() if "==" in line)
    return {_normal(name): version.strip() for name, _, version in pairs}


def _normal(name: str) -> str:
    """The one spelling of a distribution's name. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers: "2.13.0+cpu" is (2, 13, 0)."""
    numbers = re.split(r"[^\d.]", text, maxsplit=1)[0]
    return tuple(int(part) for part in numbers.split(".") if part)


def _nvidia(have: Inventory) -> list[str]:
    gpus = (d for d in have.devices if d.kind == "gpu")
    return [gpu.description for gpu in gpus if gpu.description.startswith("NVIDIA")]


def _flavours(have: Inventory) -> Iterator[Finding]:
    found = [name for name in FLAVOURS if name in have.packages]
    if len(found) < 2:
        return
    special = [name for name in found if name != "onnxruntime"]
    useful = [name for name in special if name != "onnxruntime-gpu" or _nvidia(have)]
    keep = (useful or [name for name in found if name == "onnxruntime"] or special)[0]
    yield Finding(
        f"{len(found)} flavours of ONNX Runtime share one folder and overwrite each other: "
        + ", ".join(f"{name} {have.packages[name]}" for name in found),
        f"pip uninstall -y {' '.join(found)} && pip install {keep}",
    )


def _cpu_engine(have: Inventory) -> Iterator[Finding]:
    if _nvidia(have) and [n for n in FLAVOURS if n in have.packages] == ["onnxruntime"]:
        yield Finding(
            f"{_nvidia(have)[0]} is there, but onnxruntime {have.packages['onnxruntime']} is the "
            "CPU wheel and cannot use it",
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )


def _cpu_torch(have: Inventory) -> Iterator[Finding]:
    version = have.packages.get("torch", "")
    if _nvidia(have) and version.endswith("+cpu"):
        plain = version.removesuffix("+cpu")
        yield Finding(
            f"{_nvidia(have)[0]} is there, but torch {version} is the CPU build: training will "
            "not use it",
            f"pip uninstall -y torch && pip install torch=={plain} "
            "--index-url https://download.pytorch.org/whl/cu130",
        )


def _glibc(have: Inventory) -> Iterator[Finding]:
    if _no_openvino_wheel(have) and not have.has("openvino"):
        wanted = ".".join(map(str, OPENVINO_ARM_GLIBC))
        yield Finding(
            f"openvino has no wheel for this system: on {have.machine} it needs glibc {wanted}, "
            f"here is {have.glibc}",
            "pip install 'edgegen[onnxruntime]'",
            optional=have.has("onnxruntime"),
        )


def _no_openvino_wheel(have: Inventory) -> bool:
    arm = have.machine in ("aarch64", "arm64") and have.glibc != ""
    return arm and _version(have.glibc) < OPENVINO_ARM_GLIBC


def _requirements(have: Inventory) -> Iterator[tuple[str, str, str]]:
    """(package, smallest version, extra or "") of lines such as `onnx>=1.19; extra == "build"`."""
    for line in have.requires:
        match = re.match(r"([\w.-]+)>=([\d.]+)\s*(?:;\s*extra == [\"']([\w-]+)[\"'])?$", line)
        if match:
            yield _normal(match[1]), match[2], match[3] or ""


def _too_old(have: Inventory) -> Iterator[Finding]:
    wanted = {package: floor for package, floor, _ in _requirements(have)}
    for package, floor in sorted(wanted.items()):
        version = have.packages.get(package)
        if version and _version(version) < _version(floor):
            problem = f"{package} {version} is older than {floor}, which EdgeGen needs"
            yield Finding(problem, f"pip install --upgrade '{package}>={floor}'")


def _missing(have: Inventory) -> Iterator[Finding]:
    for extra, purpose in EXTRAS.items():
        needed = [package for package, _, of in _requirements(have) if of == extra]
        lost = [package for package in needed if not have.has(package)]
        if extra == "openvino" and _no_openvino_wheel(have):
            continue
        if lost:
            problem = f"{purpose} needs {', '.join(lost)}"
            yield Finding(problem, f"pip install 'edgegen[{extra}]'", optional=True)


def _untested(have: Inventory) -> Iterator[Finding]:
    """One finding for all packages whose first two version numbers are not the tested ones."""
    other = [
        name
        for name in PINNED
        if name in have.packages
        and name in have.tested
        and _version(have.packages[name])[:2] != _version(have.tested[name])[:2]
    ]
    if other:
        found = ", ".join(f"{n} {have.packages[n]} (tested: {have.tested[n]})" for n in other)
        fix = f"pip install {' '.join(f'{n}=={have.tested[n]}' for n in other)}"
        yield Finding(f"not the versions EdgeGen was tested with: {found}", fix, optional=True)
