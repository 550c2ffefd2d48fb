"""A model in, a verified bundle out; or an error, and no bundle under its name."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgegen import __version__, eight_bit_cache, records, rooms
from edgegen.bundle import (
    BASE,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    Artifact,
    Bundle,
    Case,
    Drift,
    Manifest,
    Text,
    open_bundle,
    sums,
    write_golden,
)
from edgegen.calibration import Calibration, calibration
from edgegen.devices import meters
from edgegen.errors import NotFoundError, ParityError, UnsupportedError, UsageError
from edgegen.exporters import PRECISIONS, dress_graph, quantize_graph, write_graph
from edgegen.exporters._adapters import (
    Placed,
    Switched,
    gather,
    merged,
    named,
    switchable,
    taken_off,
    with_adapter,
)
from edgegen.exporters._fixed import fix
from edgegen.exporters._grid import OWN_PRECISIONS, precision_name
from edgegen.folding import Folded, fold
from edgegen.parity import cases, keep
from edgegen.quantized import is_quantized
from edgegen.runtimes import deploy
from edgegen.runtimes._adapters import FOLDER
from edgegen.runtimes._adapters import write as write_adapter
from edgegen.sources import Model, Part, open_source
from edgegen.spec import Report, silent
from edgegen.verify import check_case

# Which engine proves a format at export.
ENGINE_OF = {n: n for n in ("openvino", "torch", "native", "fused")} | {"onnx": "onnxruntime"}
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy", "tokenizers")

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
    training. `group_size` 0 chooses from the channels. `adapters` are folders by name (PEFT's, or
    checkpoints with adapters) that the bundle holds to be switched at run time; so it does with
    the adapters of a checkpoint, which go by its name and are in use from the start. `merge` adds
    them to the weights instead: those of the checkpoint and of one folder. `kv_cache` "int8" has
    the engine keep a text model's cache in 8 bits.

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
    model = source if isinstance(source, Model) else open_source(source, inputs, pixels)
    if kv_cache and not isinstance(model.loop, Text):
        raise UsageError(f"{model.name}: has no key/value cache", "leave --kv-cache out")
    model, adapted = _adapted(model, adapters or {}, merge)
    if static and adapted[0]:
        raise UsageError(
            "--static and --adapter exclude each other: what adapters are fed with has a free rank",
            "merge the adapter into the weights: --merge",
        )
    if static:
        parts = fix(model.parts, static)
        model = model._replace(parts={name: Part(*part) for name, part in parts.items()})
    model, folded, precisions = _fold(model, precisions)
    switched = gather(model.parts, *adapted, formats, folded)
    with _scratch(output) as scratch:
        drawn = _draw(model, folded, switched, scratch, formats, report)
        report("compute the reference", 0, 1)
        drawn = drawn._replace(golden=_golden(model, switched), kv_cache=kv_cache)
        return [
            _bundle(
                drawn, _name(output, precision, precisions), precision, data, group_size, report
            )
            for precision in precisions
        ]


def _adapted(
    model: Model, adapters: Mapping[str, Path | str], merge: bool
) -> tuple[Model, tuple[dict[str, Placed], str]]:
    """The model without adapters, or with them merged; the others by name, and which is first."""
    parts, own = taken_off(model.parts)
    found, first = named(parts, adapters, own, model.name)
    if merge and not found:
        raise UsageError(
            f"{model.name}: no adapters to merge", "leave --merge out, or add --adapter NAME=FOLDER"
        )
    if merge and len(adapters) > 1:
        raise UsageError(
            f"--merge: {len(adapters)} adapters: {', '.join(adapters)}",
            "give one: merged, they could not be told apart",
        )
    if merge:
        for placed in found.values():
            parts = merged(parts, placed)
        found, first = {}, ""
    if own:
        model = model._replace(parameters=_count(part.module for part in parts.values()))
    return model._replace(parts=parts), (found, first)


def _count(modules: Iterable[Any]) -> int:
    """The parameters of all modules, shared ones once; those of ONNX files are not known."""
    nets = [each for each in modules if not isinstance(each, Path)]
    return sum({id(p): p.numel() for net in nets for p in net.parameters()}.values())


def _fold(
    model: Model, precisions: Sequence[str] | None
) -> tuple[Model, dict[str, Folded], Sequence[str]]:
    """The model with quantized graphs as their own reference; what was folded; the precisions."""
    modules = {name: part.module for name, part in model.parts.items()}
    quantized = {n: m for n, m in modules.items() if not isinstance(m, Path) and is_quantized(m)}
    if not quantized:
        for precision in set(precisions or ()) - set(PRECISIONS):
            raise UsageError(
                f"{model.name}: is not quantized, so it is not {precision}",
                f"take one of {', '.join(PRECISIONS)}, or quantize it first: edgegen compress",
            )
        return model, {}, precisions or ("fp32",)
    folded = {name: fold(module) for name, module in quantized.items()}
    own = precision_name([w.scheme for f in folded.values() for w in f.weights.values()])
    if precisions and list(precisions) != [own]:
        raise UsageError(
            f"{model.name}: is quantized already ({own}), cannot be {', '.join(precisions)}",
            "leave --precision out, or export the checkpoint it was quantized from",
        )
    parts = dict(model.parts)
    for name, found in folded.items():
        parts[name] = Part(found.reference, parts[name].spec)
    plain = _count(folded[n].net if n in folded else module for n, module in modules.items())
    return model._replace(parts=parts, parameters=plain), folded, (own,)


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
                plain, graph = switchable(plain, graph, switched.layers[name], kind)
            notes[name, kind] = write_graph(plain, graph, folder, kind) + switched.note()
        report(f"export to {kind}", len(model.parts), len(model.parts))
    return _Drawn(model, folded, switched, folder, tuple(formats), notes, [])


def _golden(model: Model, switched: Switched) -> list[Case]:
    """The cases of the model, and of the model with each adapter attached."""
    prompt = _prompt(model)
    found = cases(dict(model.parts), model.loop, prompt)
    for name, placed in switched.named.items():
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
                part, manifest, drawn.kv_cache, drawn.golden, lambda m: _write_manifest(part, m, [])
            )
        rows = _prove(part, manifest, drawn.golden, report)
        _write_manifest(part, manifest, rows)
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
    if group_size and (group_size < 16 or group_size & (group_size - 1)):
        raise UsageError(f"group size {group_size}", "take a power of two from 16: 16, 32, 64, 128")


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


def _prove(folder: Path, manifest: Manifest, golden: list[Case], report: Report) -> list[Drift]:
    """Every case on every engine of the bundle; raises on the first engine that is off."""
    _write_manifest(folder, manifest, [])
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


def _manifest(
    drawn: _Drawn, name: str, precision: str, artifacts: tuple[Artifact, ...]
) -> Manifest:
    model, folded, switched = drawn.model, drawn.folded, drawn.switched
    adapters = (BASE, *switched.named) if switched.named else ()
    file = any(isinstance(part.module, Path) for part in model.parts.values())
    reference = "torch fp32, quantized as the checkpoint is" if folded else "torch fp32"
    if file:
        reference = "onnxruntime on the source file, fp32, unoptimised"
    tools = {"python": platform.python_version(), "edgegen": __version__}
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
        reference=reference,
        history=model.history,
        adapters={name: f"{FOLDER}/{name}.npz" for name in adapters},
        adapter=switched.first,
        tools=tools | {n: metadata.version(n) for n in TOOLS if _installed(n)},
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _write_manifest(folder: Path, manifest: Manifest, rows: Sequence[Drift]) -> None:
    """The manifest with the hashes of all other files, the parity rows and the peak memory."""
    peak = meters.peak_rss_mb()
    full = msgspec.structs.replace(
        manifest, files=sums(folder), drifts=tuple(rows), export_peak_rss_mb=peak
    )
    (folder / MANIFEST).write_bytes(records.encode(full))
