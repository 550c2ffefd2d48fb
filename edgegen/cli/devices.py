"""`edgegen devices`: what this machine has, which engine can use it, and what to mend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.devices import Device
    from edgegen.doctor import Finding
    from edgegen.fleet.line import Member
    from edgegen.survey import Survey


devices = typer.Typer(add_completion=False, rich_markup_mode=None)


@devices.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
    doctor: bool = typer.Option(
        False, "--doctor", help="Look for what is wrong with this installation, and how to mend it."
    ),
    measure: bool = typer.Option(
        False, "--measure", help="Measure peak arithmetic and memory bandwidth, for --roofline."
    ),
    threads: int = typer.Option(0, help="For --measure; 0 is one a core."),
    fleet: str = typer.Option("", help="tls://HOST:8786: the devices that have joined that hub."),
    keys: Path = typer.Option(
        None, help="Folder of keys for the fleet. [default: ~/.config/edgegen/fleet/client]"
    ),
) -> None:
    """Show this machine's devices and which engine can use them; or make it part of a fleet.

    A fleet, once: edgegen devices keys pi5 (certificates), edgegen devices hub --host HOST (on one
    machine), edgegen devices join tls://HOST:8786 --name pi5 (on each board). Then: edgegen profile
    BUNDLE --fleet tls://HOST:8786 --device pi5.
    """
    if context.invoked_subcommand:
        return
    if fleet:
        _show_fleet(fleet, keys, json)
    elif measure:
        _measure(threads, json)
    elif doctor:
        from edgegen.doctor import diagnose

        findings = diagnose()
        _terminal.print_json(findings) if json else _print_findings(findings)
    else:
        from edgegen.survey import survey

        found = survey()
        _terminal.print_json(found) if json else _print_survey(found)


@devices.command()
def join(
    address: str = typer.Argument(help="The hub: tls://HOST:8786."),
    name: str = typer.Option(..., "--name", help="What this device is called in the fleet."),
    keys: Path = typer.Option(None, help="Folder of keys. [default: ~/.config/edgegen/fleet/NAME]"),
) -> None:
    """Let a hub's clients verify and measure bundles on this machine, until Ctrl-C.

    Whoever holds a key of the fleet can run code here, as the user who joined.
    """
    from edgegen.fleet import address as addresses
    from edgegen.fleet import join as board
    from edgegen.fleet import keys as certificates

    where = addresses.parse(address)
    folder = certificates.find(where, keys, certificates.check_name(name))
    board.join(where, name, folder, _terminal.note)


@devices.command()
def hub(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on, as boards see it."),
    port: int = typer.Option(8786, "--port", help="0 takes a free one."),
    keys: Path = typer.Option(None, help="Folder of keys. [default: ~/.config/edgegen/fleet/hub]"),
    lost_after: float = typer.Option(
        30.0, "--lost-after", help="Seconds of silence after which a device counts as lost."
    ),
) -> None:
    """Be the place where boards and clients meet, until Ctrl-C. Without keys: this machine alone.

    Whoever holds a key of the fleet can run code on the hub and on every board.
    """
    from edgegen.fleet import hub as hubs

    if not 5 <= lost_after <= 86400:
        raise UsageError(f"--lost-after is {lost_after:g}", "give a number from 5 to 86400")
    where, folder = hubs.bind(host, port, keys)
    hubs.hub(where, folder, lost_after_s=lost_after, started=lambda at: typer.echo(f"hub: {at}"))


@devices.command()
def keys(
    names: list[str] = typer.Argument(
        None, help="The boards: one folder of keys for each. None: a hub's and client's anew."
    ),
    output: Path = typer.Option(
        None, "-o", "--output", help="Folder. [default: ~/.config/edgegen/fleet]"
    ),
) -> None:
    """Make certificates for mutual TLS: one CA, the hub, a client, and each board.

    A key opens the whole fleet: copy a board its own folder, and no other.
    """
    from edgegen.fleet import keys as certificates

    folder = output or certificates.default()
    for made in certificates.make(folder, names or []):
        typer.echo(str(made))
    if names:
        to = f"{names[0]}:.config/edgegen/fleet/"
        _terminal.note(f"copy each board its own: scp -r {folder / names[0]} {to}")


def _measure(threads: int, json: bool) -> None:
    from edgegen import peaks, rooftables

    if not 0 <= threads <= 1024:
        raise UsageError(f"--threads is {threads}", "give a number from 0 to 1024")
    with _terminal.progress(json) as report:
        found = peaks.find(threads=threads, fresh=True, report=report)
    if json:
        _terminal.print_json(found)
        return
    title = f"{found.device_name}, {rooftables.threads(found)}"
    _terminal.print_table(*rooftables.peaks(found), title)
    for note in found.notes:
        _terminal.note(note)


def _show_fleet(fleet: str, keys: Path | None, json: bool) -> None:
    from edgegen.fleet import address, client
    from edgegen.fleet import keys as certificates

    where = address.parse(fleet)
    found = client.look(where, certificates.find(where, keys, certificates.CLIENT))
    if json:
        _terminal.print_json(list(found.values()))
    elif found:
        _print_fleet(list(found.values()))
    else:
        _terminal.note(
            f"no device has joined; on a board run: edgegen devices join {where} --name NAME"
        )


def _print_fleet(members: list[Member]) -> None:
    rows = [
        (
            member.name if device is member.survey.devices[0] else "",
            device.name,
            device.description,
            _memory(device),
            ", ".join(
                f"{e.name} {e.version}" for e in member.survey.engines if device.name in e.devices
            )
            or "none",
            f"{member.edgegen}, Python {member.python}",
            "busy" if member.busy else "free",
        )
        for member in members
        for device in member.survey.devices
    ]
    columns = "name", "device", "what", "memory MB (free)", "engines", "edgegen", "now"
    _terminal.print_table(columns, rows)


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
