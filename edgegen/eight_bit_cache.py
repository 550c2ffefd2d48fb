"""A text model's key/value cache in 8 bits: who keeps one, what it costs, whether it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgegen import rooms
from edgegen.bundle import CACHE, Artifact, Case, Manifest, Text
from edgegen.errors import UnsupportedError, UsageError
from edgegen.runtimes import deploy
from edgegen.seal import ENGINE_OF
from edgegen.spec import Array
from edgegen.verify import TOLERANCES, sqnr_db

KEEPERS = ("native", "openvino")  # formats whose engines keep such a cache
FILLED = ("filled", "chunk")  # parity cases that begin with a filled cache


def check(kind: str, formats: Sequence[str]) -> None:
    """Raise unless every one of `formats` can have its cache kept in `kind`; "" is fp32.

    Raises:
        UsageError: no such cache.
        UnsupportedError: a format whose cache stays fp32; it is named.
    """
    if not kind:
        return
    if kind != "int8":
        raise UsageError(f"no key/value cache in {kind!r}", "take --kv-cache int8, or leave it out")
    for name in formats:
        if kind not in getattr(rooms.load("edgegen.exporters", name), "KV_CACHES", ()):
            raise UnsupportedError(
                f"{name}: a bundle cannot ask for an {kind} key/value cache: only the engines of "
                f"{' and '.join(KEEPERS)} keep one, for others the cache is what the graph says",
                f"export those alone: --to {','.join(KEEPERS)}, or one of them",
            )


def settled(
    folder: Path,
    manifest: Manifest,
    kind: str,
    golden: Sequence[Case],
    write: Callable[[Manifest], None],
) -> Manifest:
    """The manifest with the cache in `kind`, its error on each engine measured on the cases that
    have a past.

    `write` puts a manifest into `folder`.

    Raises:
        UnsupportedError: an engine keeps fp32 all the same.
    """
    engines = {each.format: ENGINE_OF[each.format] for each in manifest.artifacts}
    write(manifest)
    exact = {name: _answers(folder, engine, golden) for name, engine in engines.items()}
    write(msgspec.structs.replace(manifest, kv_cache=kind))
    noise: dict[str, float] = {}
    for name, engine in engines.items():
        rounded = _answers(folder, engine, golden)
        if np.array_equal(exact[name], rounded):
            raise UnsupportedError(
                f"{engine}: does not keep the cache of this model in {kind}: its answers are bit "
                "for bit those with a cache in fp32",
                "leave --kv-cache out",
            )
        noise[name] = sqnr_db(exact[name], rounded)
    artifacts = tuple(
        msgspec.structs.replace(
            each,
            notes=(*each.notes, _note(manifest, noise[each.format])),
            tolerance=_rule(each, manifest),
        )
        for each in manifest.artifacts
    )
    return msgspec.structs.replace(manifest, artifacts=artifacts, kv_cache=kind)


def _answers(folder: Path, engine: str, golden: Sequence[Case]) -> Array:
    with deploy(folder, engine) as deployment:
        logits = [
            deployment.session(case.graph).run(case.inputs)["logits"].ravel()
            for case in golden
            if case.name in FILLED
        ]
    return np.concatenate(logits)


def _note(manifest: Manifest, decibels: float) -> str:
    loop = manifest.loop
    assert isinstance(loop, Text)
    values = 2 * loop.layers * loop.kv_heads * loop.head_dim * loop.max_positions / 1e6
    return (
        f"key/value cache in 8 bits: {values:.3g} MB of values in a sequence of "
        f"{loop.max_positions} instead of {4 * values:.3g}, scales aside; what is computed from it "
        f"is {decibels:.1f} dB from what fp32 gives"
    )


def _rule(artifact: Artifact, manifest: Manifest) -> str:
    """The looser of its own rule and that of the cache."""
    own = artifact.tolerance or manifest.precision
    return CACHE if TOLERANCES[own].sqnr_db > TOLERANCES[CACHE].sqnr_db else artifact.tolerance
