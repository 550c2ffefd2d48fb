"""Graphs whose low-rank adapters are inputs, so that a device can switch them at run time.

For each adapted layer the graph takes A and B of `edgegen.adapters.LowRank`, the scale already
multiplied into B, all of one free rank. Zeros of rank 1 leave the model as it is.

A model may bring adapters of its own; others come from folders. All are for the model without any.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import pad

from edgegen.adapter_files import Factors, factors_of, fitted, read
from edgegen.adapters import adaptable, adapted, attach, detach, low_rank, merge, shapes
from edgegen.bundle import BASE, NONE
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.exporters._switched import Parts, Placed, Switched
from edgegen.folding import Folded
from edgegen.rooms import nearest
from edgegen.sources import Part
from edgegen.spec import Array, GraphSpec, TensorSpec

RANK = "rank"
FORMATS = ("onnx", "openvino", "torch")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def taken_off(parts: Parts) -> tuple[dict[str, Part], Placed]:
    """The parts without the adapters that they carry, and those adapters; `parts` stay."""
    modules = {n: p.module for n, p in parts.items() if isinstance(p.module, nn.Module)}
    own = {n: found for n, module in modules.items() if (found := factors_of(module))}
    twins = copy.deepcopy(modules) if own else modules  # at once: parts may share layers
    for name in own:
        detach(twins[name])
    return {n: Part(twins.get(n, module), spec) for n, (module, spec) in parts.items()}, own


def merged(parts: Parts, placed: Placed) -> dict[str, Part]:
    """The parts with an adapter added to their weights.

    Raises:
        UnsupportedError: a quantized weight.
    """
    out = dict(parts)
    for name, found in placed.items():
        twin = with_adapter(parts[name].module, found)
        merge(twin)
        out[name] = Part(twin, parts[name].spec)
    return out


def place(parts: Parts, found: Mapping[str, Factors], where: Path | str) -> Placed:
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
    layers: Mapping[str, Iterable[str]], formats: Iterable[str], folded: Mapping[str, Folded]
) -> None:
    """Raise `UnsupportedError` for a format, or a layer, that cannot take its adapter as input."""
    for kind in formats:
        if kind not in FORMATS:
            raise UnsupportedError(
                f"{kind}: adapters cannot be switched in it",
                f"take --to {','.join(FORMATS[:2])}, or merge the adapter: --merge",
            )
    for graph, names in layers.items():
        rounded = [n for n in names if graph in folded and n in folded[graph].inputs]
        if rounded:
            raise UnsupportedError(
                f"{rounded[0]}: its input is rounded to 8 bits, and an adapter beside it is not",
                "leave the inputs in float (--quantize int8 or int4), or merge before quantizing",
            )


def switchable(
    module: nn.Module, graph: GraphSpec, layers: Sequence[str], kind: str
) -> tuple[nn.Module, GraphSpec]:
    """A copy of `module` that takes the adapters of `layers` behind its own inputs, and its spec.

    Its parameters are called as before. `kind` is the format that it is for.
    """
    compute = in_places if kind == "openvino" else _directly
    twin: Any = copy.deepcopy(module)
    own, plain = len(graph.inputs), twin.forward
    now: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(*inputs: Tensor) -> Any:
        given = inputs[own:]
        now.update(zip(layers, zip(given[::2], given[1::2], strict=True), strict=True))
        return plain(*inputs[:own])

    def add(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return output + compute(layer, args[0], *now[name], output)

        return hook

    for name in layers:
        twin.get_submodule(name).register_forward_hook(add(name))
    twin.forward = forward
    extra = tuple(spec for name in layers for spec in _specs(module, name))
    return twin, replace(graph, inputs=(*graph.inputs, *extra))


def _directly(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor, output: Tensor) -> Tensor:
    return low_rank(layer, x, a, b)


def in_places(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor, output: Tensor) -> Tensor:
    """`low_rank` where a convolution's weight must be a constant, as on OpenVINO's CPU.

    One number is computed for each place of the kernel, by a matrix; a convolution of ones and
    zeros, over each channel alone, adds them up. `output` is the layer's own.
    """
    if isinstance(layer, nn.Linear):
        return low_rank(layer, x, a, b)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    places = layer.kernel_size[0] * layer.kernel_size[1]
    ones = torch.eye(places).reshape(places, *layer.kernel_size)
    if isinstance(layer, nn.ConvTranspose2d):
        inner = b.flatten(1).T @ (a @ x.flatten(2))  # (batch, out * places, height * width)
        inner = inner.reshape(-1, places, *x.shape[2:])
        where = (layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
        return functional.conv_transpose2d(inner, ones[:, None], None, *where).reshape(output.shape)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = pad(x, layer._reversed_padding_repeated_twice, mode)
    inner = a.permute(0, 2, 3, 1).reshape(-1, layer.in_channels) @ x.flatten(2)
    inner = inner.reshape(-1, places, *x.shape[2:])  # (batch * rank, places, height, width)
    inner = functional.conv2d(inner, ones[None], None, layer.stride, 0, layer.dilation).flatten(1)
    inner = inner.reshape(x.shape[0], -1, inner.shape[1])  # (batch, rank, height * width)
    return (b[:, :, 0, 0] @ inner).reshape(output.shape)


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
        shape_a, shape_b = shapes(layer, 1)
        mine = found.get(name) or Factors(torch.zeros(shape_a), torch.zeros(shape_b), 0.0)
        both = mine.a, mine.b * mine.scale
        for spec, axis, factor in zip(_specs(module, name), _rank_axes(layer), both, strict=True):
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


def _module(part: Part) -> nn.Module:
    assert isinstance(part.module, nn.Module)  # `place` looked
    return part.module


def named(
    parts: Parts, adapters: Mapping[str, Path | str], own: Placed, name: str
) -> tuple[dict[str, Placed], str]:
    """The adapters of an export by name, and what the model's `own` are called.

    `adapters` are folders; `own` goes by the `name` of the model where that can be one.

    Raises:
        UsageError: a name that cannot be one, or that two have.
        MismatchError: an adapter of another model.
    """
    found: dict[str, Placed] = {}
    first = ""
    if own:
        first = name if _can_be(name) else "adapter"
        found[first] = own
    for given, folder in adapters.items():
        if not _can_be(given):
            raise UsageError(
                f"--adapter {given}: cannot be an adapter's name",
                f"take letters, digits, '.', '_' and '-'; {BASE!r} and {NONE!r} are the model "
                "without one",
            )
        if given in found:
            raise UsageError(
                f"--adapter {given}: the model's own adapter has that name", "give it another"
            )
        found[given] = place(parts, read(folder), folder)
    return found, first


def _can_be(name: str) -> bool:
    return name not in (BASE, NONE) and bool(NAME.fullmatch(name))


def gather(
    parts: Parts,
    found: dict[str, Placed],
    first: str,
    formats: Sequence[str],
    folded: Mapping[str, Folded],
) -> Switched:
    """What is to be switched: the adapters by name, and where each of them may be.

    Raises:
        UnsupportedError: a format, or a layer whose input is rounded, that cannot take them.
    """
    layers: dict[str, list[str]] = {}
    for graph, part in parts.items():
        used = {layer for placed in found.values() for layer in placed.get(graph, {})}
        if used:
            layers[graph] = [layer for layer in adaptable(_module(part)) if layer in used]
    if found:
        check(layers, formats, folded)
    return Switched(found, layers, first)
