"""Which channels of a net hang together, traced through skips, concats, reshapes and norms.

Source: Fang et al. 2023, arXiv:2301.12900 (DepGraph), as torch-pruning implements it. What it finds
is not trusted: each group is tried before it is used.
"""

from __future__ import annotations

import copy
import ctypes
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from edgegen import checkpoint, rooms
from edgegen.compress._groups import Group, Slice, choose, shrink, silence
from edgegen.errors import UnsupportedError
from edgegen.sources._probe import draw, flat, sizes
from edgegen.spec import GraphSpec, ModelSpec

T = TypeVar("T")
Graphs = Mapping[str, tuple[nn.Module, GraphSpec]]

LIMIT_S, AGAIN_S = 60.0, 1.0
LAYERS = nn.Linear | nn.modules.conv._ConvNd
# How far a net without some units may be from one in which they are zero, as a share of the
# largest output: sums are taken in another order.
TOLERANCE = 1e-4


class Traced(NamedTuple):
    """The groups that were found and hold, and why each of the other layers must stay as it is."""

    groups: tuple[Group, ...]
    fixed: dict[str, str]


def trace(spec: ModelSpec, net: nn.Module, limit_s: float = LIMIT_S) -> Traced:
    """Every group of channels that can be removed from `net`; inputs and outputs are none.

    Raises:
        UnsupportedError: tracing fails, or takes longer than `limit_s`.
        MissingExtraError: torch-pruning is not installed.
    """
    net = copy.deepcopy(net).eval().requires_grad_()
    found: list[Group] = []
    fixed: dict[str, str] = {}
    for name, (module, graph) in checkpoint.graphs(spec, net).items():
        inputs = example(graph)
        raw = within(limit_s, partial(_groups, net, module, inputs), f"graph {name}")
        for label, group in raw.items():
            if isinstance(group, str):
                fixed[label] = group
            elif why := _fails(net, group, module, inputs):
                fixed[label] = why
            else:
                found.append(group)
    return Traced(tuple(_apart(found, fixed)), fixed)


def example(graph: GraphSpec) -> tuple[Tensor, ...]:
    """Inputs to run a graph on: drawn at random, but the same each time."""
    feed = draw(graph.inputs, sizes(graph.inputs, graph.limits)[1])
    return tuple(torch.from_numpy(array) for array in feed.values())


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a graph's module gives, as a flat list."""
    return [tensor for _, tensor in flat(module(*inputs))]


class _TooLongError(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def within(limit_s: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns, unless it is Python that computes for longer than `limit_s`.

    Where the system tells a thread's own time that counts, so that a busy machine changes nothing.

    Raises:
        UnsupportedError: it took too long and was stopped.
    """
    thread, lock = threading.get_ident(), threading.Lock()
    finished, done = threading.Event(), False

    spent = _clock(thread)
    end = spent() + limit_s

    def stop() -> None:
        # Again until it works: Python drops an exception that comes up while it frees an object.
        pause = limit_s
        while not finished.wait(pause):
            pause = end - spent()
            if pause > 0:
                continue
            with lock:
                if not done:
                    # A signal would do it in the main thread only.
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(_TooLongError)
                    )
            pause = AGAIN_S

    threading.Thread(target=stop, daemon=True).start()
    try:
        result = work()
        with lock:
            done = True
        return result
    except _TooLongError:
        with lock:
            done = True
        raise UnsupportedError(
            f"{what}: tracing which channels hang together took more than {limit_s:g} s",
            "attention with fused queries, keys and values is the usual cause: give them a Linear "
            "each; or use kind = 'unstructured'",
        ) from None
    finally:
        finished.set()


def _clock(thread: int) -> Callable[[], float]:
    """Seconds that a thread has computed for; on a system without such a clock, of any time."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    return partial(time.clock_gettime, time.pthread_getcpuclockid(thread))


class _Marked(nn.Module):
    """A module whose inputs and outputs are operations of their own in the trace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        marked = [x.requires_grad_() * 1 if x.is_floating_point() else x for x in inputs]
        return [x * 1 for x in outputs(self.module, tuple(marked)) if x.requires_grad]


def _groups(
    net: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...]
) -> dict[str, Group | str]:
    """Groups by the name of the first layer, or the reason why there is none."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "structured pruning") from error
    names: dict[Any, str] = {found: name for name, found in net.named_modules()}
    names |= {p: name for name, p in net.named_parameters()}
    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of operations that it takes for elementwise
        try:
            graph.build_dependency(
                _Marked(module),
                example_inputs=inputs,
                forward_fn=lambda marked, given: marked(*given),
                verbose=False,
            )
            raw = list(graph.get_all_groups())
        except Exception as error:  # whatever the library or the module raises
            raise UnsupportedError(
                f"which channels hang together cannot be traced: {type(error).__name__}: {error}",
                "use kind = 'unstructured'",
            ) from error
        return {label: group for items in raw for label, group in _convert(graph, items, names)}


class _Part(NamedTuple):
    """One layer's part in a group of torch-pruning: places[u] are those of unit u."""

    layer: Any
    name: str
    out: bool
    axis: int
    places: list[list[int]]


def _convert(graph: Any, items: Any, names: Mapping[Any, str]) -> Iterator[tuple[str, Group | str]]:
    """A group of torch-pruning as ours, with the names of the layers they start from.

    Behind a concat it falls apart into the units of each layer before.
    """
    root = names[items[0].dep.target.module]
    items = _coarsest(graph, items, names)
    units = len(items[0].idxs)
    if any(type(item.dep.target.module).__name__ == "_OutputOp" for item in items):
        yield root, "its channels are an output of the model"
        return
    parts = [_part(item, units, names) for item in items if item.dep.target.module in names]
    alike: dict[tuple[int, ...], list[int]] = {}
    for unit in range(units):
        alike.setdefault(tuple(len(part.places[unit]) for part in parts), []).append(unit)
    taken: set[str] = set()
    for counts, mine in alike.items():
        held = [part for part, count in zip(parts, counts, strict=True) if count]
        makes = [p.name for p in held if p.out and isinstance(p.layer, LAYERS)]
        # Not the layer that works on the whole concat, where there is another.
        whole = {p.name for p in parts if len(alike) > 1 and all(p.places)}
        label = next((n for n in makes if n not in whole | taken), root)
        taken.add(label)
        yield label, _group(label, held, mine)


def _part(item: Any, units: int, names: Mapping[Any, str]) -> _Part:
    places: list[list[int]] = [[] for _ in range(units)]
    for place, unit in zip(item.idxs, item.root_idxs, strict=True):
        places[unit].append(place)
    node = item.dep.target
    out = item.dep.handler.__name__ == "prune_out_channels"
    return _Part(node.module, names[node.module], out, node.pruning_dim, places)


def _group(label: str, parts: list[_Part], units: list[int]) -> Group | str:
    """The group of these units, or why there is none."""
    slices: dict[tuple[str, int], Slice] = {}
    layers: list[str] = []
    strata, exact = 1, True
    for part in parts:
        index = torch.tensor([sorted(part.places[unit]) for unit in units])
        found = _places(part.layer, part.name, part.out, part.axis)
        if isinstance(found, str):
            return f"{part.name}: {found}"
        if isinstance(part.layer, nn.GroupNorm) and part.layer.num_groups > 1:
            if index.tolist() != [[n] for n in range(part.layer.num_channels)]:
                return f"{part.name}: its groups do not match the channels"
            strata = math.lcm(strata, part.layer.num_groups)
        exact = exact and not _looks_at_all(part)
        if part.out and isinstance(part.layer, LAYERS):
            layers.append(part.name)
        for tensor, axis in found:
            slices.setdefault((tensor, axis), Slice(tensor, axis, index, part.out))
    if len(units) % strata:
        return "the groups of its norms do not fit each other"
    return Group(label, len(units), tuple(slices.values()), tuple(layers), strata, exact=exact)


def _coarsest(graph: Any, items: Any, names: Mapping[Any, str]) -> Any:
    """The same group, counted in the channels of the layer that has the fewest of them.

    Where a row of numbers becomes a map, a channel is many numbers of the layer before: they must
    go together. Where a group merely reaches into a part of another layer, it is left as it is.
    """
    layers = [item for item in items if item.dep.target.module in names]
    fewest = min(layers, key=lambda item: len(item.idxs))
    if len(items[0].idxs) % len(fewest.idxs) or len(items[0].idxs) == len(fewest.idxs):
        return items
    again = graph.get_pruning_group(
        fewest.dep.target.module, fewest.dep.handler, range(len(fewest.idxs))
    )
    reached = {(id(item.dep.target.module), item.dep.handler) for item in again}
    whole = all((id(item.dep.target.module), item.dep.handler) in reached for item in layers)
    return again if whole else items


def _looks_at_all(part: _Part) -> bool:
    """Does what it computes for one channel depend on the others?"""
    # A parameter by itself belongs to a layer torch-pruning does not know: a norm, most often.
    alone = isinstance(part.layer, nn.Parameter) and "norm" in part.name.lower()
    return alone or isinstance(part.layer, nn.LayerNorm | nn.GroupNorm)


def _places(module: Any, name: str, out: bool, axis: int) -> list[tuple[str, int]] | str:
    """(tensor, axis) of the channels that come out of a layer, or go in; or why it is not known."""
    match module:
        case nn.Parameter():
            return [(name, axis)]
        case nn.Linear():
            return _rows(module, name, 0) if out else [(f"{name}.weight", 1)]
        case nn.modules.conv._ConvNd() if module.groups == 1:
            first = int(module.transposed)
            return _rows(module, name, first) if out else [(f"{name}.weight", 1 - first)]
        case nn.modules.conv._ConvNd() if module.groups == module.in_channels:
            deep = module.out_channels == module.in_channels
            return _rows(module, name, 0) if deep else "several filters for each channel"
        case nn.modules.conv._ConvNd():
            return f"a convolution in {module.groups} groups"
        case nn.Embedding():
            return [(f"{name}.weight", 1)]
        case nn.LayerNorm() if len(module.normalized_shape) != 1:
            return "a norm over several axes"
        case nn.LayerNorm() | nn.GroupNorm() | nn.PReLU() | nn.modules.batchnorm._NormBase():
            held = {part: t for part, t in module.state_dict().items() if t.numel() > 1}
            return [(f"{name}.{part}", 0) for part, t in held.items() if t.dim() == 1]
        case _:
            return f"no rule for a {type(module).__name__}"


def _rows(module: nn.Module, name: str, axis: int) -> list[tuple[str, int]]:
    bias = [(f"{name}.bias", 0)] if module.bias is not None else []
    return [(f"{name}.weight", axis), *bias]


def _fails(net: nn.Module, group: Group, module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Why the net without some units of `group` is not the net in which they are zero; or ""."""
    if group.units <= group.strata:
        return "there is nothing to remove"
    # Scattered over the group, as those that will be removed are.
    scattered = torch.arange(group.units) * 7919 % group.units
    units = choose(
        scattered.float(), max(1, group.units // group.strata // 2) * group.strata, group.strata
    )
    try:
        quiet = _same_place(net, module, silence(net, group, units))
        small = _same_place(net, module, shrink(net, [group], {group.name: units}))
        with torch.no_grad():
            now, then = outputs(small, inputs), outputs(quiet, inputs)
    except Exception as error:  # a reshape with a number in it, most often
        return f"without some of its channels the model fails: {type(error).__name__}: {error}"
    if not (_agree(now, then) if group.exact else _alike(now, then)):
        return "without some of its channels the model is not what it is with them zero"
    return ""


def _same_place(net: nn.Module, module: nn.Module, other: nn.Module) -> nn.Module:
    """The module of `other` that stands where `module` stands in `net`."""
    for name, found in net.named_modules():
        if found is module:
            return other.get_submodule(name)
    outer = copy.copy(module)  # a wrapper around the net itself
    outer._modules = {
        name: other if child is net else child for name, child in module._modules.items()
    }
    return outer


def _agree(now: list[Tensor], then: list[Tensor]) -> bool:
    return _alike(now, then) and all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=TOLERANCE * _largest(b))
        for a, b in zip(now, then, strict=True)
    )


def _largest(tensor: Tensor) -> float:
    return max(1e-6, float(tensor.double().abs().max())) if tensor.numel() else 1.0


def _alike(now: list[Tensor], then: list[Tensor]) -> bool:
    return [a.shape for a in now] == [b.shape for b in then]


def _apart(groups: list[Group], fixed: dict[str, str]) -> Iterator[Group]:
    """Those groups that share no channel with one before them.

    Parts of a concat lie side by side on one axis: they share none.
    """
    taken: dict[tuple[str, int, int], str] = {}
    for group in groups:
        mine = [(s.tensor, s.axis, i) for s in group.slices for i in s.index.flatten().tolist()]
        if clash := next((taken[place] for place in mine if place in taken), ""):
            fixed[group.name] = f"its channels are in those of {clash}, too"
            continue
        taken |= dict.fromkeys(mine, group.name)
        yield group
