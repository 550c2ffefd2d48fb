"""What one run of a bundle asks of a device: operations and bytes for each kind of operator.

Counted in the ONNX graph at the sizes of the request; nothing is run. A multiply-accumulate is two
operations. Bytes are the least that have to move: each operator reads its inputs and weights and
writes its outputs once, in the type they are kept in; what engines merge into the operator before
(activations, biases, quantizing) moves nothing of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

from msgspec import Struct

from edgegen import macs, onnxfile
from edgegen.bundle import Bundle, Text
from edgegen.errors import NotFoundError, UnsupportedError
from edgegen.roofs import Peaks
from edgegen.spec import Request

OTHER = "other"
# The operators that calculate, in the standard's names; all others together are `OTHER`.
KINDS = {
    "Conv": "Conv",
    "ConvInteger": "Conv",
    "QLinearConv": "Conv",
    "ConvTranspose": "ConvTranspose",
    "MatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "QLinearMatMul": "MatMul",
    "Gemm": "MatMul",
    "Einsum": "MatMul",
    "Attention": "Attention",
}
MERGED = {
    *("Add", "BatchNormalization", "Cast", "Clip", "Constant", "DequantizeLinear", "Div", "Elu"),
    *("Equal", "Erf", "Flatten", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
    *("Mul", "Neg", "Pow", "PRelu", "QuantizeLinear", "Relu", "Reshape", "Shape", "Sigmoid"),
    *("Softplus", "Sqrt", "Squeeze", "Sub", "Tanh", "Unsqueeze", "Where"),
}
FOLDED = ("Cast", "Identity", "Reshape", "Transpose", "Unsqueeze")  # once, where it is a weight's
INTEGER = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")


class Kind(Struct, frozen=True):
    """All operators of one kind; `int8_flops` of `flops` are on 8-bit inputs and weights.

    `weights` counts parameters, which take `weight_bytes`; `moved_bytes` is inputs and outputs.
    """

    kind: str
    flops: float = 0.0
    int8_flops: float = 0.0
    weights: float = 0.0
    weight_bytes: float = 0.0
    moved_bytes: float = 0.0


class Work(Struct, frozen=True):
    """One phase: "run", "prefill" or "decode", which a request goes through `times` times.

    `resident_bytes` is what is touched over and over: all weights, and the largest operator's
    inputs and outputs.
    """

    phase: str
    times: int
    kinds: tuple[Kind, ...]
    resident_bytes: float
    notes: tuple[str, ...] = ()


def least_ms(kind: Kind, work: Work, peaks: Peaks) -> tuple[float, float]:
    """(ms of the operations at the peak, ms of the bytes at the bandwidth) of one kind, once."""
    fp32 = peaks.gflops("fp32") or float("inf")
    int8 = peaks.gflops("int8") or fp32
    compute = (kind.flops - kind.int8_flops) / fp32 + kind.int8_flops / int8
    memory = (kind.weight_bytes + kind.moved_bytes) / peaks.level(work.resident_bytes).gb_s
    return compute / 1e6, memory / 1e6


def of_bundle(bundle: Bundle, request: Request, engine: str = "") -> tuple[Work, ...]:
    """The phases of a request, the one it spends its time in last.

    `engine` "onnxruntime" heeds what the file says of rounding the inputs of 8-bit products.

    Raises:
        UnsupportedError: the bundle holds no ONNX graph, or one whose shapes do not follow.
        MissingExtraError: onnx is not installed.
    """
    loop = bundle.manifest.loop
    graph = "model" if isinstance(loop, Text) else loop.graph
    try:
        path = bundle.path / bundle.artifact(graph, "onnx").path
    except NotFoundError as error:
        raise UnsupportedError(
            f"{bundle.path}: operations are counted in an ONNX graph, and there is none", error.hint
        ) from error
    phases = _phases(request) if isinstance(loop, Text) else [("run", 1, request.sizes)]
    return tuple(
        of_model(onnxfile.load(path), {**sizes, "batch": request.batch}, phase, times, engine)
        for phase, times, sizes in phases
    )


def _phases(request: Request) -> list[tuple[str, int, dict[str, int]]]:
    """Reading the prompt, and writing one token in the middle of all that are written."""
    prompt = max(map(len, request.prompts), default=request.prompt_tokens)
    later = request.new_tokens - 1
    decode = ("decode", later, {"seq": 1, "past": prompt + later // 2})
    return [("prefill", 1, {"seq": prompt, "past": 0}), *([decode] if later else [])]


def of_model(
    model: Any, sizes: Mapping[str, int], phase: str = "run", times: int = 1, engine: str = ""
) -> Work:
    """The work of a parsed ONNX file at `sizes`; uses `model` up.

    Raises:
        UnsupportedError: types or shapes in it contradict each other.
    """
    stored = _stored(model.graph)
    rounded = _rounded(model.graph) if engine == "onnxruntime" else set()
    graph = macs.inferred(model, sizes)
    tensors = Tensors(graph, stored, rounded)
    lost: Counter[str] = Counter()
    groups: dict[str, list[Kind]] = defaultdict(list)
    for node in graph.node:
        try:
            groups[KINDS.get(node.op_type, OTHER)].append(tensors.kind(node))
        except UnsupportedError:
            lost[node.op_type] += 1
    found = tuple(_summed(kind, parts) for kind, parts in groups.items())
    largest = max((part.moved_bytes for parts in groups.values() for part in parts), default=0.0)
    notes = tuple(f"{phase}: not counted: {n}x {kind}" for kind, n in lost.most_common())
    return Work(phase, times, found, sum(k.weight_bytes for k in found) + largest, notes)


def _summed(kind: str, parts: list[Kind]) -> Kind:
    names = Kind.__struct_fields__[1:]
    return Kind(kind, **{name: sum(getattr(part, name) for part in parts) for name in names})


def _stored(graph: Any) -> dict[str, tuple[float, float]]:
    """(elements, bytes) of each stored weight; of a block-quantized one with its scales."""
    weights = {w.name: w for w in graph.initializer} | dict(onnxfile.constants(graph))
    sizes = {n: (prod(w.dims), prod(w.dims) * _item(w.data_type)) for n, w in weights.items()}
    found = {name: (float(count), size) for name, (count, size) in sizes.items()}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            held = sum(found[name][1] for name in node.input[1:] if name in found)
            shape = onnxfile.options(node)
            found[f"{node.output[0]} weight"] = (float(shape["K"] * shape["N"]), held)
    return found


def _rounded(graph: Any) -> set[str]:
    """Outputs of the products whose inputs ONNX Runtime rounds to int8: accuracy level 4."""
    return {
        node.output[0]
        for node in graph.node
        if node.op_type == "MatMulNBits" and onnxfile.options(node).get("accuracy_level") == 4
    }


def _item(data_type: int) -> float:
    """Bytes of one element."""
    from onnx import TensorProto, helper

    if data_type in (TensorProto.INT4, TensorProto.UINT4):
        return 0.5
    return float(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


class Tensors:
    """The values of a graph: how many elements each has, and in what type it is kept."""

    def __init__(
        self, graph: Any, stored: Mapping[str, tuple[float, float]], rounded: set[str]
    ) -> None:
        self.shapes = macs.shapes_of(graph)
        self._stored = stored
        self._rounded = rounded
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, set[str]] = defaultdict(set)
        for node in graph.node:
            for name in node.input:
                self._readers[name].add(node.op_type)
        values = (*graph.input, *graph.value_info, *graph.output)
        types = {v.name: v.type.tensor_type.elem_type for v in values}
        types |= {w.name: w.data_type for w in graph.initializer}
        self._items = {name: _item(kind) for name, kind in types.items() if kind}

    def kind(self, node: Any) -> Kind:
        """What one operator asks for.

        Raises:
            UnsupportedError: its operations cannot be counted.
        """
        flops = 2.0 * macs.of_node(node, self.shapes)
        folded = node.op_type in FOLDED and self._source(node.output[0]) in self._stored
        if node.op_type in MERGED or folded:
            return Kind(node.op_type)
        sources = [self._source(name) for name in node.input if name]
        kept = [self._stored[name] for name in sources if name in self._stored]
        if node.op_type.startswith("Gather"):  # a look-up: the rows that come out, and no others
            return Kind(node.op_type, moved_bytes=2 * self._written(node))
        read = sum(self._bytes(name) for name in sources if name not in self._stored)
        return Kind(
            node.op_type,
            flops,
            flops if self._is_int8(node, sources) else 0.0,
            sum(elements for elements, _ in kept),
            sum(size for _, size in kept),
            read + self._written(node),
        )

    def _source(self, name: str) -> str:
        """What is really read: quantized values, and a weight as it is stored."""
        maker = self._makers.get(name)
        if maker and maker.op_type == "DequantizeLinear":
            return self._source(maker.input[0])
        if maker and maker.op_type in FOLDED and self._source(maker.input[0]) in self._stored:
            return self._source(maker.input[0])
        return name

    def _bytes(self, name: str) -> float:
        return prod(self.shapes.get(name, (0,))) * self._items.get(name, 4.0)

    def _written(self, node: Any) -> float:
        """In one byte an element where nobody but a QuantizeLinear reads it."""
        return sum(
            prod(self.shapes.get(name, (0,)))
            if self._readers[name] == {"QuantizeLinear"}
            else self._bytes(name)
            for name in node.output
        )

    def _is_int8(self, node: Any, sources: list[str]) -> bool:
        """Both factors are bytes: an integer operator, or one between two DequantizeLinear."""
        if node.op_type in INTEGER or node.output[0] in self._rounded:
            return True
        both = zip(node.input[:2], sources[:2], strict=True)
        return all(name != source and self._items.get(source, 4.0) <= 1 for name, source in both)
