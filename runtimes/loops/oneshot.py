"""A graph that is run once: what is not given is drawn from the seed."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import numpy as np

from edgegen.bundle import OneShot
from edgegen.errors import UsageError
from edgegen.rooms import nearest
from edgegen.runtimes._memory import afford, tensors_bytes
from edgegen.spec import Array, Feed, GraphSpec, Request, Session, TensorSpec

# The size of a free dimension that nobody fixed: enough to be a shape, small enough for anything.
DEFAULT_SIZE = 8


def steps(
    sessions: Mapping[str, Session],
    loop: OneShot,
    request: Request,
    rng: np.random.Generator,
    inputs: Feed | None = None,
) -> Generator[dict[str, Array], None, dict[str, Array]]:
    """One yield, one run: the outputs by name, which are also the return value.

    Free dimensions: those of the given `inputs`, then `request.batch` for "batch",
    `request.sizes`, and 8 (or the dimension's limit) for any other.

    Raises:
        UsageError: unknown inputs or dimensions, sizes out of range or beyond the memory.
        MismatchError: an input of another type or shape.
    """
    session = sessions[loop.graph]
    graph = session.graph
    given = dict(inputs or {})
    sizes = dimensions(graph, request, given)
    afford(
        f"graph {graph.name} at {sizes}",
        tensors_bytes((*graph.inputs, *graph.outputs), sizes),
        "ask for less at a time",
    )
    feed = draw(graph, sizes, rng, given)
    graph.check(feed)
    return _once(session, feed)


def _once(session: Session, feed: Feed) -> Generator[dict[str, Array], None, dict[str, Array]]:
    outputs = session.run(feed)
    yield outputs
    return outputs


def dimensions(graph: GraphSpec, request: Request, given: Feed) -> dict[str, int]:
    """The size of every free dimension of the inputs."""
    names = {n for spec in graph.inputs for n in spec.shape if isinstance(n, str)}
    _check_names(graph, request, given, names)
    sizes = {n: min(DEFAULT_SIZE, graph.limits.get(n, DEFAULT_SIZE)) for n in names}
    sizes |= request.sizes | ({"batch": request.batch} if "batch" in names else {})
    for spec in graph.inputs:
        if spec.name in given:
            spec.check(given[spec.name])
            known = zip(spec.shape, given[spec.name].shape, strict=True)
            sizes |= {n: size for n, size in known if isinstance(n, str)}
    for name, size in sizes.items():
        limit = graph.limits.get(name, size)
        if not 1 <= size <= limit:
            raise UsageError(
                f"{name} is {size}, wanted 1 to {limit}"
                if size > limit
                else f"{name} is {size}, wanted 1 or more"
            )
    return sizes


def _check_names(graph: GraphSpec, request: Request, given: Feed, names: set[str]) -> None:
    inputs = [spec.name for spec in graph.inputs]
    for name in given:
        if name not in inputs:
            raise UsageError(f"graph {graph.name} has no input {name!r}", nearest(name, inputs))
    for name in request.sizes:
        if name not in names:
            raise UsageError(
                f"graph {graph.name} has no free dimension {name!r}", nearest(name, names)
            )
    if "batch" not in names and request.batch not in (1, lead(graph)):
        raise UsageError(
            f"graph {graph.name} was exported without a free batch, it cannot run "
            f"batch {request.batch}",
            "use batch 1, or export it again with a free dimension named batch",
        )


def lead(graph: GraphSpec) -> int | str | None:
    """The first dimension of the first output: along it lie the samples."""
    return next(iter(graph.outputs[0].shape), None)


def draw(
    graph: GraphSpec, sizes: Mapping[str, int], rng: np.random.Generator, given: Feed
) -> dict[str, Array]:
    """`given` and, drawn from `rng`, every other input.

    Samples are drawn one after the other, so that sample i depends on the seed and on i alone:
    not on the batch, the engine or the precision.
    """
    along = lead(graph)
    feed = dict(given)
    batched: dict[str, list[Array]] = {}
    for spec in graph.inputs:
        if spec.name not in given and spec.shape and spec.shape[0] == along:
            batched[spec.name] = []
        elif spec.name not in given:
            feed[spec.name] = values(spec, sizes, rng, spec.shape)
    count = along if isinstance(along, int) else sizes.get(along or "", 0)
    for _ in range(count if batched else 0):
        for spec in graph.inputs:
            if spec.name in batched:
                batched[spec.name].append(values(spec, sizes, rng, spec.shape[1:]))
    return feed | {name: np.stack(rows) for name, rows in batched.items()}


def values(
    spec: TensorSpec,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    shape: tuple[int | str, ...],
) -> Array:
    """Standard normal, or uniform in the spec's bounds; integers without bounds are 0 or 1.

    Drawn in float64 and then cast, so that half precision starts from the same numbers.
    """
    size = [sizes[n] if isinstance(n, str) else n for n in shape]
    dtype = np.dtype(spec.dtype)
    low = spec.low or 0
    high = low + 1 if spec.high is None else spec.high
    if dtype.kind in "iub":
        return rng.integers(int(low), int(high), size, endpoint=True).astype(dtype)
    if spec.low is None and spec.high is None:
        return rng.standard_normal(size).astype(dtype)
    return rng.uniform(low, high, size).astype(dtype)
