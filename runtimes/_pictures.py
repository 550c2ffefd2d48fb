"""Many images from a graph that makes a few at a time, from latents that know no batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import numpy as np

from edgegen.bundle import Bundle, OneShot
from edgegen.errors import UnsupportedError, UsageError
from edgegen.runtimes._memory import afford, tensors_bytes
from edgegen.runtimes.loops import oneshot
from edgegen.spec import Array, Feed, GraphSpec, Request, Session, TensorSpec

CHUNK = 64  # images a run, where the batch is free


class Opens(Protocol):
    """The part of a `Deployment` that is needed here."""

    bundle: Bundle

    def session(self, graph: str) -> Session:
        """The session of one graph."""


def generate(deployment: Opens, loop: OneShot, num: int, seed: int) -> Array:
    """`num` images, float32 (num, channels, height, width)."""
    graph = deployment.bundle.graph(loop.graph)
    return render(deployment.session(loop.graph), latents(graph, num, seed), loop.image)


def reconstruct(deployment: Opens, loop: OneShot, images: Array) -> Array:
    """`images` through encoder and decoder."""
    graph = encoder(deployment.bundle, loop)
    (source,) = graph.inputs
    # Any number of float32 images goes in, whatever batch and precision the graph was made for.
    free = _free(source, oneshot.lead(graph))
    msgspec.structs.replace(free, dtype="float32").check(images)
    if not len(images):
        raise UsageError("no images to reconstruct", "give at least one")
    session = deployment.session(loop.encoder)
    mean = session.graph.outputs[0].name
    latent = render(session, {source.name: images.astype(source.dtype)}, mean)
    (target,) = deployment.bundle.graph(loop.graph).inputs
    feed = {target.name: latent.astype(target.dtype)}
    return render(deployment.session(loop.graph), feed, loop.image)


def interpolate(deployment: Opens, loop: OneShot, num: int, seed: int) -> Array:
    """`num` images along the arc between the first two latents of `seed`."""
    if num < 2:
        raise UsageError(f"num is {num}, an interpolation needs 2 or more")
    graph = deployment.bundle.graph(loop.graph)
    _check_num(graph, num, seed)
    ends = latents(graph, 2, seed)
    batched = _batched(graph)
    feed = {n: arc(a[0], a[1], num) if n in batched else a for n, a in ends.items()}
    return render(deployment.session(loop.graph), feed, loop.image)


def encoder(bundle: Bundle, loop: OneShot) -> GraphSpec:
    """The graph that turns images into latents."""
    if not loop.encoder:
        raise UsageError(
            f"{bundle.path} has no encoder, it cannot reconstruct images",
            "generate some: edgegen run BUNDLE --num 16 -o grid.png",
        )
    return bundle.graph(loop.encoder)


def latents(graph: GraphSpec, num: int, seed: int) -> dict[str, Array]:
    """The inputs of `num` images; row i depends on `seed` and on i only."""
    _check_num(graph, num, seed)
    # As if the batch had never been fixed: a fixed-shape variant starts from the same numbers.
    free = msgspec.structs.replace(
        graph,
        inputs=tuple(_free(spec, oneshot.lead(graph)) for spec in graph.inputs),
        outputs=tuple(_free(spec, oneshot.lead(graph)) for spec in graph.outputs),
    )
    sizes = oneshot.dimensions(free, Request(batch=num), {})
    return oneshot.draw(free, sizes, np.random.default_rng(seed), {})


def _free(spec: TensorSpec, along: int | str | None) -> TensorSpec:
    if not spec.shape or spec.shape[0] != along:
        return spec
    return msgspec.structs.replace(spec, shape=("batch", *spec.shape[1:]))


def _check_num(graph: GraphSpec, num: int, seed: int) -> None:
    for name, value, least in (("num", num, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}, wanted {least} or more")
    along = oneshot.lead(graph)
    if not _batched(graph):
        raise UnsupportedError(
            f"graph {graph.name}: no input and output share their first dimension, the batch",
            "export the model again with a batch dimension",
        )
    one = tensors_bytes((_free(s, along) for s in (*graph.inputs, *graph.outputs)), {"batch": 1})
    # Twice: the pieces, and the whole that is made of them.
    afford(f"num {num}", 2 * one * num, "ask for fewer images at a time")


def _batched(graph: GraphSpec) -> set[str]:
    """The inputs that hold one row an image."""
    along = oneshot.lead(graph)
    return {spec.name for spec in graph.inputs if spec.shape and spec.shape[0] == along}


def render(session: Session, feed: Feed, output: str) -> Array:
    """One output for every row of `feed`, float32, in as many runs as the graph's batch needs.

    Where the session has streams, as many runs go side by side, a thread each.
    """
    along, streams = oneshot.lead(session.graph), getattr(session, "streams", 1)
    batched = _batched(session.graph)
    count = next(len(array) for name, array in feed.items() if name in batched)
    size = along if isinstance(along, int) else min(CHUNK, -(-count // streams))
    pieces = []
    for first in range(0, count, size * streams):
        # The last run of a fixed batch is filled up with copies, thrown away below.
        starts = range(first, min(first + size * streams, count), size)
        stops = [n + size if isinstance(along, int) else min(n + size, count) for n in starts]
        rows = [np.arange(a, b).clip(max=count - 1) for a, b in zip(starts, stops, strict=True)]
        feeds = [_rows(feed, batched, chosen) for chosen in rows]
        pieces += [outputs[output] for outputs in _run(session, feeds)]
    return np.concatenate(pieces)[:count].astype(np.float32)


def _run(session: Session, feeds: list[dict[str, Array]]) -> list[dict[str, Array]]:
    if len(feeds) == 1:
        return [session.run(feeds[0])]
    beside: Callable[..., list[dict[str, Array]]] = session.run_beside  # type: ignore[attr-defined]
    return beside(feeds)


def _rows(feed: Mapping[str, Array], batched: set[str], rows: Array) -> dict[str, Array]:
    return {name: array[rows] if name in batched else array for name, array in feed.items()}


def arc(start: Array, end: Array, num: int) -> Array:
    """`num` points from `start` to `end` (both exact), at the lengths that Gaussian latents have.

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; for latents White 2016,
    arXiv:1609.04468.
    """
    if start.dtype.kind != "f":  # classes and the like have nothing in between
        return np.repeat(start[None], num, axis=0)
    a, b = start.astype(np.float64), end.astype(np.float64)
    cosine = np.vdot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
    angle = np.arccos(np.clip(cosine, -1, 1))
    t = np.linspace(0, 1, num).reshape(-1, *[1] * a.ndim)
    if np.sin(angle) < 1e-6:  # the same or opposite directions: a straight line
        points = (1 - t) * a + t * b
    else:
        points = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return np.asarray(points.astype(start.dtype))
