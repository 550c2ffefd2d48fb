"""Graphs whose low-rank adapters are inputs, so that a device can switch them at run time.

For each adapted layer the graph takes A and B of `edgegen.adapters.LowRank`, the scale already
multiplied into B, all of one free rank. Zeros of rank 1 leave the model as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.functional import pad

from edgegen.adapter_files import Factors, fitted, read
from edgegen.adapters import adaptable, adapted, attach, low_rank, shapes
from edgegen.bundle import BASE
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.rooms import nearest
from edgegen.spec import Array, GraphSpec, TensorSpec

RANK = "rank"
FORMATS = ("onnx", "openvino", "torch")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Placed = dict[str, dict[str, Factors]]  # graph -> layer in its module -> the adapter


def place(parts: Mapping[str, Any], found: Mapping[str, Factors], where: Path | str) -> Placed:
    """Which graph each adapter is for, by the name its layer has in the graph's module.

    Raises:
        UnsupportedError: a foreign ONNX file.
        MismatchError: an adapter of another model.
    """
    placed: Placed = {}
    have: list[str] = []
    for graph, (module, _) in parts.items():
        if isinstance(module, Path):
            raise UnsupportedError(
                f"{module}: adapters are put on torch modules, not on an ONNX file",
                "export the model it came from",
            )
        have += adaptable(module)
        for given, factors in found.items():
            mine = [n for n in _names(given, graph, len(parts)) if n in adaptable(module)]
            if mine:
                placed.setdefault(graph, {})[mine[0]] = factors
    if sum(map(len, placed.values())) != len(found):
        known = {id(f) for layers in placed.values() for f in layers.values()}
        lost = next((name for name, f in found.items() if id(f) not in known), "")
        raise MismatchError(
            f"{where}: an adapter of {lost}, which this model does not have", nearest(lost, have)
        )
    return {g: fitted(parts[g][0], layers, where) for g, layers in placed.items()}


def _names(given: str, graph: str, graphs: int) -> Iterator[str]:
    """What a layer may be called in the module of `graph`.

    Hugging Face's names begin with "model."; a net's part goes by the name of its graph, and a
    GAN's generator, the only graph, by "average"; a module without a family is inside another.
    """
    yield from (given, given.removeprefix("model."), f"module.{given}")
    head, _, rest = given.partition(".")
    if head == graph or graphs == 1:
        yield rest


def check(
    parts: Mapping[str, Any], layers: Mapping[str, Iterable[str]], formats: Iterable[str]
) -> None:
    """Raise `UnsupportedError` for a format that cannot take the adapters of `layers` as inputs."""
    for kind in formats:
        if kind not in FORMATS:
            raise UnsupportedError(
                f"{kind}: adapters cannot be switched in it",
                f"take --to {','.join(FORMATS[:2])}, or merge the adapter first",
            )
    for graph, names in layers.items():
        convs = [n for n in names if not isinstance(parts[graph][0].get_submodule(n), nn.Linear)]
        if convs and "openvino" in formats:
            raise UnsupportedError(
                f"openvino: a convolution's weights cannot be inputs on its CPU: {convs[0]}",
                "leave openvino out (--to onnx), or merge the adapter first",
            )


def switchable(
    module: nn.Module, graph: GraphSpec, layers: Sequence[str]
) -> tuple[nn.Module, GraphSpec]:
    """A copy of `module` that takes the adapters of `layers` behind its own inputs, and its spec.

    Its parameters are called as before.
    """
    twin: Any = copy.deepcopy(module)
    own, plain = len(graph.inputs), twin.forward
    now: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(*inputs: Tensor) -> Any:
        given = inputs[own:]
        now.update(zip(layers, zip(given[::2], given[1::2], strict=True), strict=True))
        return plain(*inputs[:own])

    def add(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return output + low_rank(layer, args[0], *now[name])

        return hook

    for name in layers:
        twin.get_submodule(name).register_forward_hook(add(name))
    twin.forward = forward
    extra = tuple(spec for name in layers for spec in _specs(module, name))
    return twin, replace(graph, inputs=(*graph.inputs, *extra))


def _specs(module: nn.Module, name: str) -> Iterator[TensorSpec]:
    layer = module.get_submodule(name)
    for title, axis, shape in zip("AB", _rank_axes(layer), shapes(layer, 1), strict=True):
        free = tuple(RANK if index == axis else size for index, size in enumerate(shape))
        yield TensorSpec(f"adapter.{name}.{title}", "float32", free)


def _rank_axes(layer: nn.Module) -> tuple[int, int]:
    """Which axis of A and of B is the rank."""
    return 0, 0 if isinstance(layer, nn.ConvTranspose2d) else 1


def arrays(
    module: nn.Module, layers: Sequence[str], found: Mapping[str, Factors]
) -> dict[str, Array]:
    """The inputs of a switchable graph for one adapter, in their order; zeros where it has none.

    All ranks are brought to the largest.
    """
    rank = max((len(each.a) for each in found.values()), default=1)
    feed: dict[str, Array] = {}
    for name in layers:
        layer = module.get_submodule(name)
        zeros = Factors(*(torch.zeros(shape) for shape in shapes(layer, 1)), 0.0)
        a, b, scale = found.get(name, zeros)
        for spec, axis, factor in zip(
            _specs(module, name), _rank_axes(layer), (a, b * scale), strict=True
        ):
            short = rank - factor.shape[axis]
            wide = pad(factor.detach().movedim(axis, -1), (0, short)).movedim(-1, axis)
            feed[spec.name] = np.ascontiguousarray(wide.numpy())
    return feed


def with_adapter(module: nn.Module, found: Mapping[str, Factors]) -> nn.Module:
    """A copy of `module` with an adapter attached: what a switched graph must compute."""
    twin = copy.deepcopy(module)
    attach(twin, {name: len(factors.a) for name, factors in found.items()})
    for name, factors in found.items():
        adapter = adapted(twin)[name]
        scale = adapter.scale.new_tensor(factors.scale)
        adapter.load_state_dict({"A": factors.a, "B": factors.b, "scale": scale})
    return twin.eval()


class Switched(NamedTuple):
    """The adapters of a bundle by name, and the layers of each graph that any of them is on."""

    named: dict[str, Placed]
    layers: dict[str, list[str]]

    def feeds(self, parts: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Array]]]:
        """What each adapter, and `BASE`, feeds each graph; nothing where there are none."""
        everyone: dict[str, Placed] = {BASE: {}, **self.named} if self.named else {}
        return {
            name: {g: arrays(parts[g][0], n, placed.get(g, {})) for g, n in self.layers.items()}
            for name, placed in everyone.items()
        }


def gather(
    parts: Mapping[str, Any], adapters: Mapping[str, Path | str], formats: Sequence[str]
) -> Switched:
    """Read the adapters of an export, `{name: folder}`, and find their layers.

    Raises:
        UsageError: a name that cannot be one.
        UnsupportedError: a format that cannot take them.
        MismatchError: an adapter of another model.
    """
    named: dict[str, Placed] = {}
    for name, folder in adapters.items():
        if name == BASE or not NAME.fullmatch(name):
            raise UsageError(
                f"--adapter {name}: cannot be an adapter's name",
                f"take letters, digits, '.', '_' and '-'; {BASE!r} is the model without one",
            )
        named[name] = place(parts, read(folder), folder)
    layers: dict[str, list[str]] = {}
    for graph, (module, _) in parts.items():
        used = {layer for placed in named.values() for layer in placed.get(graph, {})}
        if used:
            layers[graph] = [layer for layer in adaptable(module) if layer in used]
    if named:
        check(parts, layers, formats)
    return Switched(named, layers)
