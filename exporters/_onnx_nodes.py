"""Nodes and constants added to an ONNX graph, and packed integers turned into floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgegen.spec import Array


class Writer:
    """Collects the nodes of a graph in order. Constants that several nodes read are kept once."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.nodes: list[Any] = []
        self._made: dict[Any, str] = {}
        self._taken: Counter[str] = Counter()

    def node(
        self,
        kind: str,
        inputs: list[str],
        *,
        output: str = "",
        name: str = "",
        domain: str = "",
        **options: Any,
    ) -> str:
        """Add a node; the name of its output."""
        output = output or f"grid_{len(self.nodes)}_{kind}"
        name = name or output
        made = helper.make_node(kind, inputs, [output], name=name, domain=domain, **options)
        self.nodes.append(made)
        return output

    def called(self, name: str) -> str:
        """`name`, with a number from the second time on."""
        self._taken[name] += 1
        return name if self._taken[name] == 1 else f"{name}.{self._taken[name]}"

    def ints(self, values: list[int]) -> str:
        """A constant of int64."""
        return self.small(np.array(values, np.int64))

    def float(self, value: Any) -> str:
        """A constant of float32."""
        return self.small(np.asarray(value, np.float32))

    def small(self, array: Any) -> str:
        """A constant that is known by its value."""
        array = np.asarray(array)
        return self.once((array.dtype.str, array.shape, array.tobytes()), lambda: self.add(array))

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """The value made for `key`, by `make` the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def add(self, array: Array, name: str = "grid") -> str:
        """A new constant."""
        name = self.called(name)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def decoded(
        self,
        codes: str,
        bits: int,
        shape: list[int],
        *,
        scale: str,
        zero: str | None = None,
        table: Array | None = None,
    ) -> str:
        """Packed integers as floats of `shape`: (code - zero) * scale, or table[code] * scale.

        Without a `zero` it is the middle of the range. Plain arithmetic, which engines fold.
        """
        value = self.node("Cast", [codes], to=onnx.TensorProto.FLOAT)
        if bits == 4:
            high = self.node("Floor", [self.node("Mul", [value, self.float(1 / 16)])])
            low = self.node("Sub", [value, self.node("Mul", [high, self.float(16)])])
            pair = [self.node("Unsqueeze", [part, self.ints([-1])]) for part in (low, high)]
            value = self.node("Concat", pair, axis=-1)
        value = self.node("Reshape", [value, self.ints(shape)])
        if table is not None:
            index = self.node("Cast", [value], to=onnx.TensorProto.INT32)
            value = self.node("Gather", [self.float(table), index])
        else:
            value = self.node("Sub", [value, zero or self.float(2 ** (bits - 1))])
        return self.node("Mul", [value, scale])

    def cut(self, value: str, have: int, columns: int) -> str:
        """(rows, blocks, block) as (rows, columns): without the padding."""
        value = self.node("Reshape", [value, self.ints([-1, have])])
        if have == columns:
            return value
        return self.node("Slice", [value, *(self.ints([each]) for each in (0, columns, 1))])


def drop_unused(model: Any) -> None:
    """Take out the constants that nothing reads any more, dequantized or not."""
    graph = model.graph
    dead = [None]
    while dead:
        used = {output.name for output in graph.output} | set(_read(graph))
        weights = [n for n in graph.node if n.op_type == "DequantizeLinear"]
        dead = [node for node in weights if node.output[0] not in used]
        for node in dead:
            graph.node.remove(node)
    for weight in [w for w in graph.initializer if w.name not in used]:
        graph.initializer.remove(weight)


def _read(graph: Any) -> Iterator[str]:
    """What the nodes of a graph read, and those of the graphs inside it."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _read(attribute.g)
