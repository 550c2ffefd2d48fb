"""Prove a bundle on this device: every file as exported, then its golden data on the engines."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from edgegen import rooms
from edgegen.bundle import Bundle, Drift, check_files, open_bundle, worst
from edgegen.errors import MissingExtraError, ParityError
from edgegen.runtimes import FIRST, ROOM, load
from edgegen.spec import Report, silent
from edgegen.verify import verify

ALL = "all"


class Proof(Struct, frozen=True, forbid_unknown_fields=True):
    """What was found. `skipped` says of engines that are not here how to install them."""

    bundle: str
    sha256: str
    device: str
    files: int
    drifts: tuple[Drift, ...]
    skipped: dict[str, str] = {}


def prove(
    path: Path | str, runtime: str = ALL, device: str = "cpu", *, report: Report = silent
) -> Proof:
    """Check the files of the bundle at `path`, then its golden data on one engine or on all.

    Raises:
        NotFoundError: no such bundle, engine or device.
        FormatError: an altered, truncated or missing file, named with both hashes.
        MissingExtraError: the engine, or every engine that reads the bundle, is not installed.
    """
    report("check files", 0, 1)
    bundle = open_bundle(path)
    check_files(bundle)
    engines, skipped = readers(bundle) if runtime == ALL else ([runtime], {})
    drifts: list[Drift] = []
    for done, engine in enumerate(engines):
        report(f"golden data on {engine}", done, len(engines))
        drifts += verify(bundle, engine, device)
    manifest = bundle.manifest
    return Proof(
        manifest.name, bundle.sha256(), device, len(manifest.files), tuple(drifts), skipped
    )


def readers(bundle: Bundle) -> tuple[list[str], dict[str, str]]:
    """The installed engines that read a format of the bundle, and how to get those that are not.

    Raises:
        MissingExtraError: none is installed.
    """
    formats, found, skipped = bundle.formats(), [], {}
    unread = {engine for kind, engine in FIRST.items() if kind not in formats}
    for name in sorted(set(rooms.names(ROOM)) - unread):  # the others need not be imported
        try:
            if getattr(rooms.load(ROOM, name), "READS", "") in formats:
                load(name)
                found.append(name)
        except MissingExtraError as error:
            skipped[name] = error.hint
    if not found:
        hint = next(iter(skipped.values()), "export the bundle again, with --to onnx")
        have = ", ".join(formats) or "nothing"
        raise MissingExtraError(f"{bundle.path} holds {have}; no installed engine reads that", hint)
    return found, skipped


def demand(proof: Proof) -> None:
    """Raise `ParityError`, with the worst output, unless every output is within tolerance."""
    failed = [drift for drift in proof.drifts if not drift.ok]
    if not failed:
        return
    row = worst(failed)
    raise ParityError(
        f"{proof.bundle}: {len(failed)} of {len(proof.drifts)} outputs are out of tolerance; "
        f"worst: {row.engine} {row.graph} {row.case} {row.output}: "
        f"max abs error {row.numbers()[0]} ({row.rule})",
        "the files are as exported, so the engine computes other numbers here: try another engine "
        "(--runtime), or look for a broken installation with: edgegen devices --doctor",
    )
