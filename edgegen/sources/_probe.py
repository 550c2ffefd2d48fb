"""What a module puts out, found by running it: names, types, and which dimensions are free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgegen.errors import UnsupportedError, UsageError
from edgegen.runtimes.loops.oneshot import values
from edgegen.spec import Array, GraphSpec, TensorSpec

Feed = dict[str, Array]


class Plain(nn.Module):
    """A module called by the names of its inputs, its outputs as a flat tuple of tensors."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], positional: bool) -> None:
        super().__init__()
        self.module, self.names, self.positional = module, names, positional

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The tensors that come out, by name."""
        if self.positional:
            return dict(flat(self.module(*inputs)))
        return dict(flat(self.module(**dict(zip(self.names, inputs, strict=True)))))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(*inputs).values())


def flat(found: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside tuples, lists and dicts; None is left out.

    Names are the keys of a dict; in a tuple output, output1, output2, ...
    """
    if isinstance(found, Tensor):
        yield name, found
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from flat(value, str(key))
    elif isinstance(found, tuple | list):
        for index, value in enumerate(found):
            yield from flat(value, f"{name}{index}" if index else name)
    elif found is not None:
        raise UnsupportedError(
            f"output {name} is of type {type(found).__name__}, not a tensor",
            "give a module whose forward returns tensors, in tuples or dicts",
        )


def sizes(
    inputs: tuple[TensorSpec, ...], limits: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes for each free dimension, no two alike where the limits allow it.

    Large enough for convolutions to have something to look at, but for the batch.
    """
    free = dict.fromkeys(n for spec in inputs for n in spec.shape if isinstance(n, str))
    taken: set[int] = set()
    small: dict[str, int] = {}
    large: dict[str, int] = {}
    for index, name in enumerate(free):
        wanted = (3, 2) if name == "batch" else (128 + 32 * index, 64 + 32 * index)
        for found, size in zip((large, small), wanted, strict=True):
            size = min(size, limits.get(name, size))
            while size in taken and size > 1:
                size -= 1
            taken.add(size)
            found[name] = size
    for found in (small, large):
        _add_up(found, limits)
    return small, large


def _add_up(at: dict[str, int], limits: Mapping[str, int]) -> None:
    """Make "past+seq" the sum of both, and both so small that it keeps within its limit."""
    for name in [name for name in at if "+" in name]:
        parts = [part for part in name.split("+") if part in at]
        most = limits.get(name, sum(at[part] for part in parts))
        for index, part in enumerate(parts):
            at[part] = min(at[part], max(1, most // len(parts) - index))
        at[name] = sum(at[part] for part in parts)


def draw(inputs: tuple[TensorSpec, ...], at: Mapping[str, int]) -> Feed:
    """Random inputs of those sizes."""
    rng = np.random.default_rng(0)
    return {spec.name: values(spec, at, rng, spec.shape) for spec in inputs}


def probe(
    plain: Plain, inputs: tuple[TensorSpec, ...], limits: dict[str, int], place: str
) -> tuple[GraphSpec, dict[str, Array]]:
    """The graph's spec, and what came out of the second run.

    A dimension that moves with a free dimension of the inputs has its name.

    Raises:
        UsageError: the module does not take these inputs.
        UnsupportedError: it puts out something else than tensors, or is random.
    """
    at = sizes(inputs, limits)
    small, large = (_run(plain, draw(inputs, sized), sized, place) for sized in at)
    again = _run(plain, draw(inputs, at[1]), at[1], place)
    if any(not np.array_equal(large[n], again[n], equal_nan=True) for n in large):
        raise UnsupportedError(
            f"{place}: two runs on the same input differ: forward draws random numbers",
            "pass what it draws as an input, or export the part that does not",
        )
    clash = {spec.name for spec in inputs}
    named = [(f"{n}_out" if n in clash else n, small[n], large[n]) for n in large]
    outputs = tuple(_output(name, a, b, at) for name, a, b in named)
    return GraphSpec("model", inputs, outputs, limits), {n: b for n, _, b in named}


def _run(plain: Plain, feed: Feed, at: Mapping[str, int], place: str) -> dict[str, Array]:
    try:
        with torch.no_grad():
            found = plain.outputs(*(torch.from_numpy(array) for array in feed.values()))
    except UnsupportedError as error:
        raise UnsupportedError(f"{place}: {error}", error.hint) from error
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise UsageError(
            f"{place}: forward failed on {shapes}: {type(error).__name__}: {error}",
            "check --input: a dimension the module fixes must be a number, and ids need a range "
            "(@LOW..HIGH)",
        ) from error
    if not found:
        raise UnsupportedError(f"{place}: forward returned no tensor", "return what it computes")
    return {name: tensor.numpy() for name, tensor in found.items()}


def _output(
    name: str, small: Array, large: Array, at: tuple[dict[str, int], dict[str, int]]
) -> TensorSpec:
    pairs = {(at[0][free], at[1][free]): free for free in at[0]}
    dims: list[int | str] = []
    for axis, pair in enumerate(zip(small.shape, large.shape, strict=True)):
        fixed = pair[0] == pair[1] and pair not in pairs
        dims.append(pair[0] if fixed else pairs.get(pair, f"{name}_dim{axis}"))
    return TensorSpec(name, str(large.dtype), tuple(dims))


def image_of(
    spec: GraphSpec, found: Mapping[str, Array], pixels: tuple[float, float] | None
) -> tuple[str, tuple[float, float], str]:
    """Which output is a picture, its pixel range, and why; the name is empty for none.

    Grey or RGB of at least 4x4, and only one such output, or nobody could say which.
    """
    pictures = [o for o in spec.outputs if len(o.shape) == 4 and o.shape[1] in (1, 3)]
    pictures = [o for o in pictures if min(found[o.name].shape[2:]) > 3 and "float" in o.dtype]
    if len(pictures) != 1:
        return "", (0.0, 1.0), ""
    values = found[pictures[0].name]
    low, high = float(values.min()), float(values.max())
    seen = f"on random inputs its values were {low:.3g}..{high:.3g}"
    if pixels:
        return pictures[0].name, pixels, f"as given; {seen}"
    if low < 0 and low >= -1 and high <= 1:
        return pictures[0].name, (-1.0, 1.0), seen
    return pictures[0].name, (0.0, 1.0) if low >= 0 and high <= 1 else (low, high), seen
