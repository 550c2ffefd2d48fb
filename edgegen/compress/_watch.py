"""What layers inside a net put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgegen.compress._names import select
from edgegen.compress._weights import Parts, Weights
from edgegen.errors import UsageError

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU)


@contextmanager
def watching(module: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """The outputs of the named layers, in the order of `names`, once the block is over."""
    seen: dict[str, Tensor] = {}
    out: list[Tensor] = []

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            seen[name] = output if isinstance(output, Tensor) else output[0]

        return note

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield out
    finally:
        for handle in handles:
            handle.remove()
    lost = [name for name in names if name not in seen]
    if lost:
        raise UsageError(
            f"points: {lost[0]} is not run by what is exported",
            "name layers of the exported graphs",
        )
    out += [seen[name] for name in names]


def activations(net: nn.Module) -> list[str]:
    """The names of the rectifiers of a convolutional net, in order."""
    return [name for name, each in net.named_modules() if isinstance(each, ACTIVATIONS)]


def hidden_points(net: nn.Module, parts: Parts, weights: Weights) -> list[str]:
    """The layers whose output is compared: those of `points`, or a family's own among `parts`."""
    if not weights.hidden:
        return []
    if weights.points:
        # A generator in training is its average, too: it goes by both names.
        names = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
        return select(names, weights.points, "points")
    if hasattr(net, "layers"):
        return [f"layers.{n}" for n in range(len(net.layers))]
    exported = {id(each) for part, _ in parts.values() for each in part.modules()}
    return [name for name in activations(net) if id(net.get_submodule(name)) in exported]


def attention_points(net: Any, weights: Weights) -> list[str]:
    """The queries, keys and values of the last layer of text."""
    if not weights.attention:
        return []
    last = len(net.layers) - 1
    return [f"layers.{last}.self_attn.{side}_proj" for side in "qkv"]
