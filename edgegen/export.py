"""A model in, a verified bundle out; or an error, and no bundle under its name."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgegen import eight_bit_cache, records, rooms
from edgegen.bundle import (
    BASE,
    FORMAT_VERSION,
    GOLDEN,
    Artifact,
    Bundle,
    Case,
    Manifest,
    Text,
    open_bundle,
    write_golden,
)
from edgegen.calibration import Calibration, calibration
from edgegen.devices import meters
from edgegen.errors import NotFoundError, UnsupportedError, UsageError
from edgegen.exporters import BY_ROW, PRECISIONS, dress_graph, quantize_graph, write_graph
from edgegen.exporters._grid import OWN_PRECISIONS
from edgegen.exporters._switched import Switched
from edgegen.models._numpy import Decoder
from edgegen.parity import cases, keep
from edgegen.ready import adapted, folded_parts, opened, switched
from edgegen.runtimes._adapters import FOLDER
from edgegen.runtimes._adapters import write as write_adapter
from edgegen.seal import prove, write_manifest
from edgegen.sources import Model, Part
from edgegen.spec import Report, silent

if TYPE_CHECKING:
    from edgegen.folding import Folded

# Real text for the quality figure: random tokens say little about a language model.
SAMPLE = (
    "The sea was calm that morning, and the fishermen had already left the harbour. Anna sat by "
    "the window with a cup of tea and counted the boats as they became small against the light."
)
PROMPT_TOKENS = 32


def export(
    source: str | Model,
    output: Path | str,
    *,
    formats: Sequence[str] = ("onnx", "openvino"),
    precisions: Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    pixels: tuple[float, float] | None = None,
    static: Mapping[str, int] | None = None,
    data: str | None = None,
    group_size: int = 0,
    adapters: Mapping[str, Path | str] | None = None,
    merge: bool = False,
    kv_cache: str = "",
    report: Report = silent,
) -> list[Bundle]:
    """Export `source` to every one of `formats`, prove each on its engine, write the bundle.

    One bundle a precision, fp32 unless asked; where there are several, "-fp32", "-int8", ... is
    added to `output`. A quantized checkpoint has its own precision, and takes no other.
    `static` fixes free dimensions. `data` names calibration images for int8 of conv nets, as for
    training. `group_size` 0 chooses from the channels, -1 is a whole row. `adapters` are folders
    by name (PEFT's, or checkpoints with adapters) that the bundle holds to be switched at run time;
    so it does with the adapters of a checkpoint, which go by its name and are in use from the
    start. `merge` adds them to the weights instead: those of the checkpoint and of one folder.
    `kv_cache` "int8" has the engine keep a text model's cache in 8 bits.

    Raises:
        UsageError: an unknown precision, one that a quantized checkpoint does not have, a dimension
            or group size that cannot be.
        UnsupportedError: the module cannot be exported, or not with adapters to switch.
        MismatchError: an adapter of another model.
        ParityError: an engine does not compute the model within tolerance; nothing is written.
    """
    _check_usage(formats, precisions, group_size)
    eight_bit_cache.check(kv_cache, formats)
    output = Path(output)
    for precision in precisions or ("",):
        records.target(_name(output, precision, precisions or ()))  # not after minutes of tracing
    meters.reset_peak()
    report("read the model", 0, 1)
    changed = bool(static or adapters or merge)
    model = opened(source, formats, inputs, pixels, changed=changed)
    if kv_cache and not isinstance(model.loop, Text):
        raise UsageError(f"{model.name}: has no key/value cache", "leave --kv-cache out")
    model, placed = adapted(model, adapters or {}, merge)
    if static and placed[0]:
        raise UsageError(
            "--static and --adapter exclude each other: what adapters are fed with has a free rank",
            "merge the adapter into the weights: --merge",
        )
    if static:
        from edgegen.exporters._fixed import fix

        parts = fix(model.parts, static)
        model = model._replace(parts={name: Part(*part) for name, part in parts.items()})
    model, folded, precisions = folded_parts(model, precisions)
    switches = switched(model, placed, formats, folded)
    with _scratch(output) as scratch:
        drawn = _draw(model, folded, switches, scratch, formats, report)
        report("compute the reference", 0, 1)
        drawn = drawn._replace(golden=_golden(model, switches), kv_cache=kv_cache)
        return [
            _bundle(
                drawn, _name(output, precision, precisions), precision, data, group_size, report
            )
            for precision in precisions
        ]


class _Drawn(NamedTuple):
    """A model, its graphs in fp32 in a folder, notes by (graph, format), and its parity cases."""

    model: Model
    folded: Mapping[str, Folded]
    switched: Switched
    folder: Path
    formats: tuple[str, ...]
    notes: dict[tuple[str, str], tuple[str, ...]]
    golden: list[Case]
    kv_cache: str = ""


def _name(output: Path, precision: str, precisions: Sequence[str]) -> Path:
    return output if len(precisions) < 2 else output.with_name(f"{output.name}-{precision}")


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder beside `output` for as long as the block runs; a killed run's is removed, too.

    Not `output.partial-*`: those are cleared whenever a bundle is written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f"{output.name}.graphs")
    records.recover(beside)
    with tempfile.TemporaryDirectory(
        prefix=f"{beside.name}.partial-", suffix=f"-{os.getpid()}", dir=output.parent
    ) as folder:
        graphs = Path(folder) / "graphs"  # not `folder` itself, whose mode 0700 bundles would get
        graphs.mkdir()
        yield graphs


def _draw(
    model: Model,
    folded: Mapping[str, Folded],
    switched: Switched,
    folder: Path,
    formats: Sequence[str],
    report: Report,
) -> _Drawn:
    """Every graph in every format, once, in fp32: tracing is the slow part."""
    notes = {}
    for kind in formats:
        for done, (name, (module, graph)) in enumerate(model.parts.items()):
            report(f"export to {kind}", done, len(model.parts))
            plain = folded[name].net if name in folded else module
            if name in switched.layers:
                from edgegen.exporters._adapters import switchable

                plain, graph = switchable(plain, graph, switched.layers[name], kind)
            notes[name, kind] = write_graph(plain, graph, folder, kind) + switched.note()
        report(f"export to {kind}", len(model.parts), len(model.parts))
    return _Drawn(model, folded, switched, folder, tuple(formats), notes, [])


def _golden(model: Model, switched: Switched) -> list[Case]:
    """The cases of the model, and of the model with each adapter attached."""
    prompt = _prompt(model)
    found = cases(dict(model.parts), model.loop, prompt)
    for name, placed in switched.named.items():
        from edgegen.exporters._adapters import with_adapter

        parts = {
            g: (with_adapter(model.parts[g].module, f), model.parts[g].spec)
            for g, f in placed.items()
        }
        mine = cases(parts, model.loop, prompt)
        found += [msgspec.structs.replace(case, name=f"{case.name}@{name}") for case in mine]
    return found


def _bundle(
    drawn: _Drawn, output: Path, precision: str, data: str | None, group: int, report: Report
) -> Bundle:
    """One precision: copied, quantized, proved, renamed to `output`."""
    model = drawn.model
    with records.whole(output) as part:
        shutil.copytree(drawn.folder, part)
        for name, content in model.files.items():
            (part / name).write_bytes(content)
        artifacts = tuple(_artifacts(drawn, part, precision, data, group, report))
        for name, feeds in drawn.switched.feeds(model.parts).items():
            write_adapter(feeds, part / FOLDER / f"{name}.npz")
        write_golden([case for case in drawn.golden if keep(case)], part / GOLDEN)
        manifest = _manifest(drawn, output.name, precision, artifacts)
        if drawn.kv_cache:
            manifest = eight_bit_cache.settled(
                part, manifest, drawn.kv_cache, drawn.golden, lambda m: write_manifest(part, m, [])
            )
        prove(part, manifest, drawn.golden, report)
    return open_bundle(output)


def _check_usage(formats: Sequence[str], precisions: Sequence[str] | None, group_size: int) -> None:
    for precision in precisions or ():
        if precision not in (*PRECISIONS, *OWN_PRECISIONS):
            raise UsageError(f"no precision {precision!r}", rooms.nearest(precision, PRECISIONS))
    if precisions is not None and not precisions:
        raise UsageError("no precision to export at", "pass --precision fp32,int8")
    if not formats:
        raise UsageError("no format to export to", "pass --to onnx,openvino")
    have = rooms.names("edgegen.exporters")
    for name in formats:
        if name not in have:
            raise NotFoundError(f"no format {name!r}", rooms.nearest(name, have))
        lacks = getattr(rooms.load("edgegen.exporters", name), "LACKS", {})
        for precision in precisions or ():
            if precision in lacks:
                rest = [other for other in formats if other != name] or ["openvino"]
                raise UnsupportedError(
                    f"{name}: {precision}: {lacks[precision]}",
                    f"leave {name} out: --to {','.join(rest)}; or take --precision fp16",
                )
    if group_size not in (0, BY_ROW) and (group_size < 16 or group_size & (group_size - 1)):
        raise UsageError(
            f"group size {group_size}",
            f"take a power of two from 16: 16, 32, 64, 128; or {BY_ROW}, a whole row",
        )


def _artifacts(
    drawn: _Drawn, folder: Path, precision: str, data: str | None, group: int, report: Report
) -> Iterator[Artifact]:
    batches = calibration(drawn.model, precision, data) if not drawn.folded else {}
    for kind in drawn.formats:
        total = len(drawn.model.parts)
        for done, (name, part) in enumerate(drawn.model.parts.items()):
            report(f"{precision} in {kind}", done, total)
            feeds, origin = batches.get(name, Calibration())
            if feeds and name in drawn.switched.layers:
                raise UnsupportedError(
                    f"{precision}: activations cannot be calibrated with adapters to be switched",
                    "quantize the checkpoint first: edgegen compress --quantize w8a8",
                )
            if name in drawn.folded:
                artifact = dress_graph(part.spec, folder, kind, drawn.folded[name])
            else:
                artifact = quantize_graph(
                    part.spec,
                    folder,
                    kind,
                    precision="fp32" if drawn.folded else precision,
                    calibration=feeds,
                    group=group,
                )
            said = (*drawn.notes[name, kind], *artifact.notes, *([origin] if origin else []))
            yield msgspec.structs.replace(artifact, notes=said)
        report(f"{precision} in {kind}", total, total)
        exporter = rooms.load("edgegen.exporters", kind)
        if hasattr(exporter, "finish") and "tokenizer.json" in drawn.model.files:
            exporter.finish(folder)


def _prompt(model: Model) -> tuple[int, ...]:
    """Token ids of real text, where the model has a tokenizer."""
    if not isinstance(model.loop, Text) or "tokenizer.json" not in model.files:
        return ()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode())
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    return tuple(ids[: min(PROMPT_TOKENS, model.loop.max_positions)])


def _manifest(
    drawn: _Drawn, name: str, precision: str, artifacts: tuple[Artifact, ...]
) -> Manifest:
    model, folded, switched = drawn.model, drawn.folded, drawn.switched
    adapters = (BASE, *switched.named) if switched.named else ()
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        family=model.family,
        config=model.config,
        loop=model.loop,
        precision=precision,
        parameters=model.parameters,
        graphs=tuple(part.spec for part in model.parts.values()),
        artifacts=artifacts,
        files={},
        reference=_reference(model, bool(folded)),
        history=model.history,
        adapters={name: f"{FOLDER}/{name}.npz" for name in adapters},
        adapter=switched.first,
    )


def _reference(model: Model, folded: bool) -> str:
    """What computed the golden data."""
    kinds = {type(part.module) for part in model.parts.values()}
    if Decoder in kinds:
        return "numpy fp32"
    if any(issubclass(kind, Path) for kind in kinds):
        return "onnxruntime on the source file, fp32, unoptimised"
    return "torch fp32, quantized as the checkpoint is" if folded else "torch fp32"
