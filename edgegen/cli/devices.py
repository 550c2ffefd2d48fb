"""`edgegen devices`: what this machine has, which engine can use it, and what to mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal

if TYPE_CHECKING:
    from edgegen.devices import Device
    from edgegen.doctor import Finding
    from edgegen.survey import Survey


def devices(
    json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
    doctor: bool = typer.Option(
        False, "--doctor", help="Look for what is wrong with this installation, and how to mend it."
    ),
) -> None:
    """Show this machine's devices and which engine can use them."""
    if doctor:
        from edgegen.doctor import diagnose

        findings = diagnose()
        _terminal.print_json(findings) if json else _print_findings(findings)
        return
    from edgegen.survey import survey

    found = survey()
    _terminal.print_json(found) if json else _print_survey(found)


def _print_survey(found: Survey) -> None:
    rows = [
        (d.name, d.description, _memory(d), ", ".join(found.users(d.name)) or "none")
        for d in found.devices
    ]
    _terminal.print_table(("device", "what", "memory MB (free)", "engines"), rows)
    for device in found.devices:
        _print_details(device)
    engines = [
        (e.name, e.version or e.problem, e.reads, ", ".join(e.devices) or f"run: {e.fix}")
        for e in found.engines
    ]
    _terminal.print_table(("engine", "version", "reads", "devices by its own names"), engines)


def _memory(device: Device) -> str:
    if device.memory_mb is None:
        return "not known"
    free = device.free_memory_mb
    return f"{device.memory_mb:.0f}" + ("" if free is None else f" ({free:.0f})")


def _print_details(device: Device) -> None:
    caches = ", ".join(f"{level} {kib} KiB" for level, kib in device.caches_kib.items())
    clock = f"{device.max_mhz:.0f} MHz" if device.max_mhz else ""
    cores = f"{device.physical_cores} physical, {device.logical_cores} logical"
    facts = {
        "cores": cores if device.logical_cores else "",
        "instruction sets": " ".join(device.isa),
        "caches": caches,
        "clock": " ".join(filter(None, (clock, device.governor))),
        "driver": device.driver,
    }
    lines = [f"{device.name} {what}: {value}" for what, value in facts.items() if value]
    typer.echo("\n".join(lines + [f"{device.name} note: {note}" for note in device.notes]))


def _print_findings(findings: list[Finding]) -> None:
    if not findings:
        typer.echo("nothing to mend")
    for finding in findings:
        typer.echo(f"{'optional' if finding.optional else 'problem'}: {finding.problem}")
        typer.echo(f"  run: {finding.fix}")
