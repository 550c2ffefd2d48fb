"""A model with free dimensions fixed, for accelerators that compile for one shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from torch import Tensor, nn

from edgegen.errors import UnsupportedError, UsageError
from edgegen.exporters import is_text
from edgegen.rooms import nearest
from edgegen.spec import GraphSpec, TensorSpec


class Window(nn.Module):
    """A decoder without its cache: logits of a whole window, of fixed length."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        empty = self.net.empty_cache(input_ids.shape[0])
        return self.net(input_ids, attention_mask, position_ids, *empty)[0]


def fix(parts: Mapping[str, Any], static: Mapping[str, int]) -> dict[str, tuple[Any, GraphSpec]]:
    """Every graph with the dimensions of `static` fixed.

    A text graph loses its cache and becomes a window of `seq` tokens.

    Raises:
        UsageError: a dimension that no graph has, or a size out of its limit.
        UnsupportedError: a foreign ONNX file.
    """
    free = {n for _, g in parts.values() for s in g.inputs for n in s.shape if isinstance(n, str)}
    for name, size in static.items():
        if name not in free:
            raise UsageError(f"--static {name}: no graph has it free", nearest(name, free))
        limit = min((g.limits.get(name, 1 << 20) for _, g in parts.values()), default=1 << 20)
        if not 1 <= size <= limit:
            raise UsageError(f"--static {name}={size}: wanted 1 to {limit}")
    return {name: _fix_one(module, graph, static) for name, (module, graph) in parts.items()}


def _fix_one(module: Any, graph: GraphSpec, static: Mapping[str, int]) -> tuple[Any, GraphSpec]:
    if isinstance(module, Path):
        raise UnsupportedError(
            f"{module}: fixing the shapes of an ONNX file is not supported",
            "run: python -m onnxruntime.tools.make_dynamic_shape_fixed, then export the result",
        )
    if is_text(graph):
        if "seq" not in static or "batch" not in static:
            raise UsageError("--static for text needs both", "write --static batch=1,seq=256")
        inputs = tuple(s for s in graph.inputs if not s.name.startswith("past_key_values."))
        graph = GraphSpec(graph.name, inputs, graph.outputs[:1], graph.limits)
        module, static = Window(module).eval(), {**static, "past+seq": static["seq"]}
    return module, GraphSpec(
        graph.name,
        tuple(_fix_tensor(spec, static) for spec in graph.inputs),
        tuple(_fix_tensor(spec, static) for spec in graph.outputs),
        {n: limit for n, limit in graph.limits.items() if n not in static},
    )


def _fix_tensor(spec: TensorSpec, static: Mapping[str, int]) -> TensorSpec:
    return replace(
        spec, shape=tuple(static.get(n, n) if isinstance(n, str) else n for n in spec.shape)
    )
