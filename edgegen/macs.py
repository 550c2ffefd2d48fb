"""Multiply-accumulates of an ONNX graph, from the graph alone: nothing is run.

| operator | MACs |
|---|---|
| Conv | outputs x input channels per group x kernel |
| ConvTranspose | inputs x output channels per group x kernel |
| Gemm, MatMul, MatMulNBits | outputs x the length summed over |
| Einsum of two | the sizes of all its letters, multiplied |
| Attention | batch x heads x queries x keys x (head size of keys + of values) |

Everything else (norms, activations, softmax, positions) is additions and look-ups and counts 0, as
in torch's counter of floating-point operations, which counts each MAC as two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from edgegen.errors import UnsupportedError
from edgegen.onnxfile import STANDARD, constants, options, unpacked, walk

LARGE, SMALL = 4096, 64  # elements; inference needs the values of what may be a shape
FOLDED = {
    *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity"),
    *("Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
}
NOT_COUNTED = ("LSTM", "GRU", "RNN", "Loop", "Scan", "MultiHeadAttention")

Shapes = Mapping[str, tuple[int, ...]]


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int:
    """A dimension as a number: "past+seq" is the sum of both, a name without a size is 1."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    parts = [part.strip() for part in dim.split("+")]
    return sum(int(p) if p.isdigit() else sizes.get(p, 1) for p in parts)


def count(model: Any, sizes: Mapping[str, int]) -> tuple[int | None, tuple[str, ...]]:
    """MACs with the free dimensions at `sizes`, 1 where not given; uses `model` up.

    None where an operator hid its shapes or is not counted; the notes then say which.
    """
    try:
        graph = inferred(model, sizes)
    except UnsupportedError as error:
        return None, (str(error),)
    lost: list[str] = []
    total = _sum(graph, shapes_of(graph), lost)
    notes = tuple(f"MACs not counted: {n}x {kind}" for kind, n in Counter(lost).most_common())
    return (None if lost else total), notes


def inferred(model: Any, sizes: Mapping[str, int]) -> Any:
    """The graph at `sizes` with every shape that follows from them; uses `model` up.

    Block-quantized operators stand as the plain ones, what depends on shapes alone is gone.

    Raises:
        UnsupportedError: types or shapes contradict each other.
    """
    from onnx.shape_inference import InferenceError

    _fix_sizes(model.graph, sizes)
    _plain_matmuls(model.graph)
    _sort(model.graph)
    _empty_weights(model.graph)
    _import_domains(model)
    try:
        return _infer(model).graph
    except InferenceError as error:
        raise UnsupportedError(f"MACs not counted: {error}") from error


def of_node(node: Any, shapes: Shapes) -> int:
    """MACs of one operator; 0 for what has none.

    Raises:
        UnsupportedError: it is not counted, or a shape that it needs is not known.
    """
    try:
        if node.op_type in NOT_COUNTED or any(a.HasField("g") for a in node.attribute):
            raise KeyError(node.op_type)
        return COUNTS[node.op_type](node, shapes) if node.op_type in COUNTS else 0
    except (KeyError, IndexError) as error:  # a shape that inference could not find
        raise UnsupportedError(f"MACs not counted: {node.op_type}") from error


def _fix_sizes(graph: Any, sizes: Mapping[str, int]) -> None:
    """Make every free dimension of the inputs a number, and forget all other shapes."""
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = size_of(dim.dim_param, sizes)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]


def _plain_matmuls(graph: Any) -> None:
    """Stand in MatMul and Gather for the block-quantized operators, whose shapes onnx ignores."""
    from onnx import TensorProto, helper

    stored = {weight.name: weight for weight in graph.initializer}
    plain = {"MatMulNBits": ("MatMul", 1), "GatherBlockQuantized": ("Gather", 0)}
    for index, node in enumerate(graph.node):
        kind, at = plain.get(node.op_type, ("", 0))
        if not kind or node.input[at] not in stored:
            continue
        weight, inputs = f"{node.output[0]} weight", list(node.input[:2])
        shape = unpacked(node, stored[inputs[at]])
        graph.input.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, shape))
        inputs[at] = weight
        graph.node[index].CopyFrom(helper.make_node(kind, inputs, list(node.output[:1])))


def _sort(graph: Any) -> None:
    """Put every node behind those it reads: converters append, and inference goes in order."""
    makers = {name: node for node in graph.node for name in node.output if name}
    order: dict[str, Any] = {}
    opened: set[str] = set()
    waiting = list(reversed(graph.node))
    while waiting:
        node = waiting.pop()
        name = next(filter(None, node.output), "")
        before = [makers[n] for n in _reads(node) if n in makers and n not in order]
        if before and name not in opened:
            opened.add(name)  # once: a file with a circle must not hang us
            waiting.extend([node, *before])
        elif name not in order:
            order.update(dict.fromkeys(filter(None, node.output), node))
    nodes = list({id(node): node for node in order.values()}.values())
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: Any) -> Iterator[str]:
    """The values a node reads, those its branches take from outside too."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from (name for inner in walk(attribute.g) for name in inner.input)


def _empty_weights(graph: Any) -> None:
    """Keep only the shapes of large weights: inference then is quick and knows no 2 GB limit."""
    from onnx import helper

    for weight in [w for w in graph.initializer if prod(w.dims) > LARGE]:
        graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
        graph.initializer.remove(weight)


def _import_domains(model: Any) -> None:
    """Declare domains that are used undeclared: engines let it pass, inference does not."""
    from onnx import helper

    declared = {entry.domain for entry in model.opset_import}
    for domain in {node.domain for node in walk(model.graph)} - declared - set(STANDARD):
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _infer(model: Any) -> Any:
    """The model with the shape of every value that follows from the inputs' sizes."""
    from onnx import shape_inference

    while True:
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not _fold(model.graph):
            return model


def _fold(graph: Any) -> bool:
    """Compute what depends on shapes alone, such as the target of a Reshape; False when nothing.

    Inference propagates a part of it, but not through every operator that exporters use for it.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    shapes = shapes_of(graph)
    known = _small_constants(graph)
    found: dict[str, Any] = {}
    for node in graph.node:
        name = node.output[0]
        if node.op_type == "Shape" and node.input[0] in shapes:
            part = slice(options(node).get("start", 0), options(node).get("end"))
            found[name] = np.array(shapes[node.input[0]][part], np.int64)
        elif node.op_type in FOLDED and all(n in known for n in node.input):
            feed = {n: known[n] for n in node.input}
            found[name] = np.asarray(ReferenceEvaluator(node).run(None, feed)[0])
        known |= {name: found[name]} if name in found else {}
    left = [node for node in graph.node if node.output[0] not in found]
    del graph.node[:]
    graph.node.extend(left)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in found.items())
    return bool(found)


def _small_constants(graph: Any) -> dict[str, Any]:
    from onnx import TensorProto, numpy_helper

    stored = {w.name: w for w in graph.initializer} | dict(constants(graph))
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL
    }


def shapes_of(graph: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each value that is known in full."""
    found = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    found |= {name: tuple(tensor.dims) for name, tensor in constants(graph)}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _sum(graph: Any, shapes: Shapes, lost: list[str]) -> int:
    """MACs of a graph; of an If the dearer branch."""
    total = 0
    for node in graph.node:
        branches = [a.g for a in node.attribute if a.HasField("g")]
        if node.op_type == "If":
            total += max(_sum(b, {**shapes, **shapes_of(b)}, lost) for b in branches)
        elif node.op_type in NOT_COUNTED:
            lost.append(node.op_type)
        elif node.op_type in COUNTS:
            try:
                total += COUNTS[node.op_type](node, shapes)
            except (KeyError, IndexError):  # a shape that inference could not find
                lost.append(node.op_type)
    return total


def _conv(node: Any, shapes: Shapes) -> int:
    """weight: (out, in / groups, *kernel)"""
    weight = node.input[3 if node.op_type == "QLinearConv" else 1]
    return prod(shapes[node.output[0]]) * prod(shapes[weight][1:])


def _conv_transpose(node: Any, shapes: Shapes) -> int:
    """weight: (in, out / groups, *kernel)"""
    return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def _matmul(node: Any, shapes: Shapes) -> int:
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: Any, shapes: Shapes) -> int:
    rows, columns = shapes[node.input[0]]
    return prod(shapes[node.output[0]]) * (rows if options(node).get("transA") else columns)


def _einsum(node: Any, shapes: Shapes) -> int:
    terms = options(node)["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "..." in "".join(terms):
        raise KeyError(node.op_type)
    sizes = {
        letter: size
        for name, term in zip(node.input, terms, strict=True)
        for letter, size in zip(term, shapes[name], strict=True)
    }
    return prod(sizes.values())


def _attention(node: Any, shapes: Shapes) -> int:
    """q, k, v: (batch, heads, time, head_dim), or (batch, time, heads * head_dim)."""
    found = options(node)
    q, k, v = (shapes[name] for name in node.input[:3])
    if len(q) == 3:
        heads, kv_heads = found["q_num_heads"], found["kv_num_heads"]
        q = (q[0], heads, q[1], q[2] // heads)
        k, v = ((x[0], kv_heads, x[1], x[2] // kv_heads) for x in (k, v))
    past = shapes[node.input[4]][2] if len(node.input) > 4 and node.input[4] else 0
    return q[0] * q[1] * q[2] * (k[2] + past) * (q[3] + v[3])


COUNTS: dict[str, Callable[[Any, Shapes], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
}
