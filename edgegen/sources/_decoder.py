"""A `gpt` model from a config, its weights and its tokenizer, wherever they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgegen.models import gpt
from edgegen.sources import Model, Part
from edgegen.sources._plain import check


def assemble(
    name: str,
    config: gpt.Config,
    weights: Mapping[str, Tensor],
    files: dict[str, bytes],
    *,
    chat_template: str,
    entry: dict[str, Any],
    place: str,
) -> Model:
    """The model; its weights are those given, not copies, where they are float32 already.

    `entry` is what its history says of where it came from.

    Raises:
        FormatError, MismatchError: as `fill`.
    """
    # No memory, and no drawing, for weights that are about to be replaced.
    with torch.device("meta"), _Undrawn():
        net = gpt.Net(config)
    fill(net, weights, place)
    loop = msgspec.structs.replace(gpt.loop(config), chat_template=chat_template)
    parts = {graph: Part(module, spec) for graph, (module, spec) in gpt.graphs(net).items()}
    count = sum(p.numel() for p in net.parameters())
    settings = msgspec.to_builtins(config)
    return Model(name, "gpt", settings, loop, parts, files, (entry,), count)


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are where they would be drawn: on "meta" that imports the whole of
    torch's compiler, half of the time that a small model takes to export."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def fill(net: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """Give `net` its weights in float32, every one of them and no other.

    Raises:
        FormatError, MismatchError: as `check`.
    """
    check(weights, {name: tuple(t.shape) for name, t in net.state_dict().items()}, place)
    net.load_state_dict({n: t.float().contiguous() for n, t in weights.items()}, assign=True)
