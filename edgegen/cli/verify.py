"""`edgegen verify`: is this bundle whole, and does it compute here what it computed in torch?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal

if TYPE_CHECKING:
    from edgegen.proof import Proof


def verify(
    bundle: Path = typer.Argument(..., help="The bundle to verify."),
    runtime: str = typer.Option(
        "all", "--runtime", help="An engine, or all that are installed and read the bundle."
    ),
    device: str = typer.Option("cpu", "-d", "--device", help="cpu, gpu, gpu:1, npu or auto."),
    json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Prove that a bundle is whole and computes here what it should.

    First the sha256 of every file, then the golden data on the engines: the table of drift.
    """
    from edgegen.proof import demand, prove

    with _terminal.progress(quiet) as report:
        proof = prove(bundle, runtime, device, report=report)
    _terminal.print_json(proof) if json else _print(proof)
    demand(proof)


def _print(proof: Proof) -> None:
    rows = [
        (
            drift.engine,
            drift.graph,
            drift.case,
            drift.output,
            *drift.numbers(),
            drift.rule,
            "ok" if drift.ok else "FAILED",
        )
        for drift in proof.drifts
    ]
    columns = ("engine", "graph", "case", "output", "max abs error", "SQNR dB", "rule", "")
    title = f"{proof.bundle} on {proof.device}: {proof.files} files as exported"
    _terminal.print_table(columns, rows, title)
    for engine, hint in proof.skipped.items():
        _terminal.note(f"not verified on {engine}, which is not installed: {hint}")
