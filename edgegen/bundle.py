"""A bundle: one model at one precision, in one or more formats, with the data that proves it.

BUNDLE/
  manifest.json            this file's `Manifest`
  golden.npz               inputs and reference outputs, in fp32, of the parity cases
  adapters/NAME.npz        low-rank adapters that are switched at run time, if any
  model.onnx               a model of one graph named "model" lies at the top,
  openvino_model.xml/.bin
  decoder/model.onnx       every other graph in a folder of its own name
  tokenizer.json, config.json, ...   text: what other tools look for
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from edgegen import records
from edgegen.errors import FormatError, NotFoundError
from edgegen.rooms import nearest
from edgegen.spec import Array, GraphSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
BASE = "base"  # the adapter that changes nothing
SAMPLE = 65_536  # bytes that tell whether a tensor can be packed
NONE = "none"  # what a user calls it


class Layer(Struct, frozen=True, forbid_unknown_fields=True):
    """What one weight-bearing layer became. `note` says why, where it is not what was asked."""

    name: str
    kind: str
    precision: str
    parameters: int
    group_size: int | None = None
    note: str = ""


# How a graph of a quantized checkpoint is held to the quantized net itself: it computes the same
# numbers in fp32, or its kernels round what passes between layers.
EXACT, ROUNDED = "exact", "rounded"
CACHE = "kv-int8"  # and one that computes the same from a cache in 8 bits


class Artifact(Struct, frozen=True, forbid_unknown_fields=True):
    """One graph in one format. `path` is relative to the bundle.

    `tolerance` is the rule of parity it is held to, where that is not the bundle's precision.
    """

    graph: str
    format: str
    path: str
    ledger: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    tolerance: str = ""


class FileSum(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and hash of a file in the bundle."""

    bytes: int
    sha256: str


class Drift(Struct, frozen=True, forbid_unknown_fields=True):
    """How far one output of one parity case is from the reference, and the rule that it is held to.

    The numbers are None where there are none: for a quality figure or tokens, which the rule
    quotes, and for outputs that cannot be compared.
    """

    engine: str
    graph: str
    case: str
    output: str
    max_abs_error: float | None
    sqnr_db: float | None
    rule: str
    ok: bool

    def numbers(self) -> tuple[str, str]:
        """The largest absolute error and the SQNR in dB, as text."""
        error, sqnr = self.max_abs_error, self.sqnr_db
        return "-" if error is None else f"{error:.3g}", "-" if sqnr is None else f"{sqnr:.1f}"


def worst(rows: Iterable[Drift]) -> Drift:
    """The row furthest off: one that failed without a number before any that has one."""

    def key(row: Drift) -> tuple[bool, float]:
        unknown = math.inf if row.ok else -math.inf
        return row.ok, unknown if row.sqnr_db is None else row.sqnr_db

    return min(rows, key=key)


class Text(Struct, frozen=True, forbid_unknown_fields=True, tag="autoregressive"):
    """What the autoregressive loop needs to know. Graph "model" has the names of optimum:

    `input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key|value` ->
    `logits`, `present.N.key|value`, caches of shape (batch, kv_heads, time, head_dim).
    """

    vocab_size: int
    max_positions: int
    layers: int
    kv_heads: int
    head_dim: int
    bos: int | None = None
    eos: tuple[int, ...] = ()
    chat_template: str = ""


class OneShot(Struct, frozen=True, forbid_unknown_fields=True, tag="oneshot"):
    """A graph that is run once. Inputs that are not given are drawn from the seed.

    `image` names the output to be drawn as a picture, its values in `pixels` (low, high).
    `encoder` names the graph whose first output, the mean, is the latent of an image.
    """

    graph: str
    image: str = ""
    pixels: tuple[float, float] = (0.0, 1.0)
    encoder: str = ""


Loop = Text | OneShot


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What the bundle is, what each layer became, and how far each engine was from torch.

    `adapters` are files by name, and `adapter` the one in use when nobody says which.
    `kv_cache` is what the engine keeps the key/value cache in, where that is not fp32: "int8".
    """

    format_version: int
    name: str
    created: str
    family: str
    config: dict[str, Any]
    loop: Loop
    precision: str
    parameters: int
    graphs: tuple[GraphSpec, ...]
    artifacts: tuple[Artifact, ...]
    files: dict[str, FileSum]
    drifts: tuple[Drift, ...] = ()
    reference: str = ""
    history: tuple[dict[str, Any], ...] = ()
    tools: dict[str, str] = {}
    export_peak_rss_mb: float | None = None
    quality: dict[str, float] = {}
    adapters: dict[str, str] = {}
    adapter: str = ""
    kv_cache: str = ""


class _Version(Struct, frozen=True):
    format_version: int


class Bundle(Struct, frozen=True):
    """A manifest and the folder it was read from."""

    path: Path
    manifest: Manifest

    def graph(self, name: str) -> GraphSpec:
        """The graph of that name."""
        for graph in self.manifest.graphs:
            if graph.name == name:
                return graph
        have = [graph.name for graph in self.manifest.graphs]
        raise NotFoundError(f"{self.path}: no graph {name!r}", nearest(name, have))

    def formats(self) -> list[str]:
        """The formats it holds, in the order they were exported."""
        return list(dict.fromkeys(a.format for a in self.manifest.artifacts))

    def artifact(self, graph: str, kind: str) -> Artifact:
        """The file of one graph in one format."""
        for artifact in self.manifest.artifacts:
            if (artifact.graph, artifact.format) == (graph, kind):
                return artifact
        have = ", ".join(self.formats())
        raise NotFoundError(
            f"{self.path}: graph {graph!r} is not there as {kind}; have: {have}",
            f"run: edgegen export SOURCE -o {self.path} --to {','.join([*self.formats(), kind])}",
        )

    def size_mb(self, kind: str) -> float:
        """What a device must store to run one format, in MB: its graphs and their weights, and
        all adapters."""
        names = self.files(kind) | set(self.manifest.adapters.values())
        return sum(self.manifest.files[name].bytes for name in names) / 1e6

    def files(self, kind: str) -> set[str]:
        """What an engine opens of one format: its graphs and their weights, by relative path."""
        mine = {a.path for a in self.manifest.artifacts if a.format == kind}
        return {name for name in self.manifest.files if _belongs(name, mine)}

    def sha256(self) -> str:
        """The hash of the manifest, which holds the hash of every other file."""
        return digest(self.path / MANIFEST)


def _belongs(file: str, mains: set[str]) -> bool:
    """Is `file` a graph of `mains`, or the weights beside one (.bin, .onnx.data)?"""
    stem = file.removesuffix(".data").removesuffix(".bin")
    return file in mains or stem in mains or f"{stem}.xml" in mains


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle's manifest. No other file is looked at: `check_files` does that.

    Raises:
        NotFoundError: no folder there, or no manifest in it.
        FormatError: a manifest that is broken or of a newer version.
    """
    path = Path(path)
    file = path / MANIFEST
    if not file.is_file():
        raise NotFoundError(
            f"{path}: no bundle there ({MANIFEST} is missing)",
            "make one with: edgegen export SOURCE -o BUNDLE",
        )
    data = file.read_bytes()
    version = records.decode(_Version, data, str(file)).format_version
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{file}: format_version {version}, this EdgeGen reads up to {FORMAT_VERSION}",
            "run: pip install --upgrade edgegen",
        )
    return Bundle(path, records.decode(Manifest, data, str(file)))


def digest(path: Path | str) -> str:
    """The sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path) -> dict[str, FileSum]:
    """Size and hash of every file under `folder` but the manifest, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): FileSum(p.stat().st_size, digest(p)) for p in files}


def check_files(bundle: Bundle, only: set[str] | None = None) -> None:
    """Raise `FormatError`, naming the file and both hashes, unless every file is as exported."""
    for name, want in bundle.manifest.files.items():
        if only is not None and name not in only:
            continue
        file = bundle.path / name
        if not file.is_file():
            raise FormatError(f"{file}: missing from the bundle", "export or copy it again")
        if file.stat().st_size != want.bytes or digest(file) != want.sha256:
            raise FormatError(
                f"{file}: altered or truncated: {file.stat().st_size} bytes sha256 {digest(file)}, "
                f"the manifest says {want.bytes} bytes sha256 {want.sha256}",
                "export or copy the bundle again",
            )


class Case(Struct, frozen=True):
    """One parity case: inputs, and what the reference made of them in fp32."""

    graph: str
    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def title(self) -> str:
        """Its name without the adapter's."""
        return self.name.partition("@")[0]

    @property
    def adapter(self) -> str | None:
        """The adapter it is computed with: cases of one are called `TITLE@ADAPTER`."""
        return self.name.partition("@")[2] or None


def write_golden(cases: list[Case], path: Path) -> None:
    """Store cases as one `.npz`; keys are `graph/case/in|out/tensor`."""
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

    arrays: dict[str, Array] = {}
    for case in cases:
        for side, tensors in (("in", case.inputs), ("out", case.outputs)):
            arrays |= {f"{case.graph}/{case.name}/{side}/{n}": a for n, a in tensors.items()}
    with ZipFile(path, "w") as file:
        for name, array in arrays.items():
            entry = ZipInfo(f"{name}.npy")
            entry.compress_type = ZIP_DEFLATED if _repeats(array) else ZIP_STORED
            with file.open(entry, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, np.asanyarray(array), allow_pickle=False)


def _repeats(array: Array) -> bool:
    """Is it worth packing? A long cache holds one stretch many times; logits are noise to zlib,
    which took longer over them than the model did."""
    import zlib

    start = array.reshape(-1)[: SAMPLE // array.itemsize].tobytes()
    return len(zlib.compress(start, 1)) < 0.8 * len(start)


def read_golden(bundle: Bundle) -> list[Case]:
    """The cases of a bundle, in the order they were written.

    Raises:
        FormatError: the file is missing or broken.
    """
    from zipfile import BadZipFile

    path = bundle.path / GOLDEN
    cases: dict[tuple[str, str], Case] = {}
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            for key in file.files:
                graph, name, side, tensor = key.split("/", 3)
                case = cases.setdefault((graph, name), Case(graph, name, {}, {}))
                (case.inputs if side == "in" else case.outputs)[tensor] = file[key]
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise FormatError(f"{path}: no golden data: {error}", "export the bundle again") from error
    return list(cases.values())
