"""The end of an export: every engine proves the bundle, and the manifest is written."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from edgegen import __version__, records
from edgegen.bundle import MANIFEST, Case, Drift, Manifest, sums
from edgegen.devices import meters
from edgegen.errors import ParityError
from edgegen.runtimes import deploy
from edgegen.spec import Report
from edgegen.verify import check_case

# Which engine proves a format at export.
ENGINE_OF = {n: n for n in ("openvino", "torch", "native", "fused")} | {"onnx": "onnxruntime"}
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy", "tokenizers")


def prove(folder: Path, manifest: Manifest, golden: list[Case], report: Report) -> list[Drift]:
    """Every case on every engine of the bundle, then the whole manifest; raises on the first
    engine that is off."""
    manifest = msgspec.structs.replace(manifest, files=sums(folder))
    write_manifest(folder, manifest, [])
    rows: list[Drift] = []
    kinds = dict.fromkeys(artifact.format for artifact in manifest.artifacts)
    for kind in kinds:
        what = f"verify {manifest.precision} on {ENGINE_OF[kind]}"
        report(what, 0, len(golden))
        deployment = deploy(folder, ENGINE_OF[kind])
        try:
            for done, case in enumerate(golden, start=1):
                rows += check_case(deployment, case)
                report(what, done, len(golden))
        finally:
            deployment.close()
    raise_unless_ok(rows)
    write_manifest(folder, manifest, rows)
    return rows


def raise_unless_ok(rows: Sequence[Drift]) -> None:
    """Raise `ParityError`, naming the outputs that are off, unless every row is ok."""
    bad = [row for row in rows if not row.ok]
    if bad:
        worst = "\n".join(
            "  {} {} {} {}: max abs error {}, SQNR {} dB, wanted {}".format(
                r.engine, r.graph, r.case, r.output, *r.numbers(), r.rule
            )
            for r in bad[:8]
        )
        raise ParityError(
            f"{len(bad)} of {len(rows)} outputs are not what the model computes:\n{worst}",
            "export at a higher precision, or give calibration data with --data",
        )


def tools() -> dict[str, str]:
    """The versions of all that took part: what this process has imported by now."""
    found = {"python": platform.python_version(), "edgegen": __version__}
    return found | {name: metadata.version(name) for name in TOOLS if sys.modules.get(name)}


def write_manifest(folder: Path, manifest: Manifest, rows: Sequence[Drift]) -> None:
    """The manifest with the hashes of all other files, the parity rows, the versions of all that
    took part so far and the peak memory."""
    peak, files = meters.peak_rss_mb(), manifest.files or sums(folder)
    full = msgspec.structs.replace(
        manifest, files=files, drifts=tuple(rows), tools=tools(), export_peak_rss_mb=peak
    )
    (folder / MANIFEST).write_bytes(records.encode(full))
