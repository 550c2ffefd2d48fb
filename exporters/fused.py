"""A decoder as the few large operators that ONNX Runtime has for one, for its CPU alone.

What `exporters/onnx.py` writes is portable; this is read by ONNX Runtime only, for the operators
are its own: attention that turns and keeps keys and values itself, in place, query, key and value
in one product, the sum of the residual inside the norm, weights of 8 and 4 bit, and a tied
embedding that stands in the file once. The head sees only the rows that are asked for.

    input_ids (batch, seq)   position_ids (batch, seq), of GPT-2 alone
    rows (rows,)             positions of batch * seq whose logits are wanted
    lengths (batch,)         tokens of each sequence, the new ones included, less one
    longest ()               the most of any of them
    past_key_values.N.key|value -> present.N.key|value   one buffer, (batch, heads, room, size)
    logits (rows, vocabulary)
    next (rows,)             the most likely token of each

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import group_size, is_text
from edgegen.exporters._onnx_nodes import Writer, drop_unused
from edgegen.exporters._onnx_quantize import save
from edgegen.exporters._weights import weights_of
from edgegen.spec import Array, Feed, GraphSpec

FILE = "model.fused.onnx"
PLAIN = True
OWN = "com.microsoft"
OPSET, IR_VERSION = 21, 10
EMBEDDING = "embed_tokens.weight"
BITS = {"int8": (8, 8), "int4": (4, 8)}  # of the layers, and of embedding and head, as `native`

Floats = NDArray[np.float32]
Weights = dict[str, Floats]


def write(module: Any, graph: GraphSpec, path: Path) -> tuple[str, ...]:
    """The decoder in fp32, straight from its weights.

    Raises:
        UnsupportedError: no decoder of the `gpt` family, or heads that attention cannot take.
    """
    weights = weights_of(module)
    if not weights or not is_text(graph):
        raise UnsupportedError(
            f"fused: graph {graph.name} is no decoder of the gpt family",
            "leave fused out of --to: it runs text alone",
        )
    size, unit = module.config.head_size, 16 if module.config.style == "llama" else 8
    if size % unit:
        raise UnsupportedError(
            f"fused: head_dim is {size}, ONNX Runtime's attention wants a multiple of {unit}",
            "leave fused out of --to: onnx and openvino run any size",
        )
    drawn = helper.make_graph([], graph.name, *_ends(graph, module.config.style))
    Decoder(drawn, module, weights).draw()
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)]
    save(helper.make_model(drawn, opset_imports=opsets, ir_version=IR_VERSION), path)
    return ("runs on ONNX Runtime's CPU alone",)


def _ends(graph: GraphSpec, style: str) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs, the caches as in `graph` but of one length in and out."""
    whole, floats = TensorProto.INT64, TensorProto.FLOAT
    sizes: list[tuple[str, int, list[Any]]] = [("input_ids", whole, ["batch", "seq"])]
    if style == "gpt2":
        sizes.append(("position_ids", whole, ["batch", "seq"]))
    sizes += [("rows", whole, ["rows"]), ("lengths", TensorProto.INT32, ["batch"])]
    sizes.append(("longest", TensorProto.INT32, []))
    pasts = [s for s in graph.inputs if s.name.startswith("past_key_values.")]
    caches = [(s.name, floats, ["batch", s.shape[1], "room", s.shape[3]]) for s in pasts]
    presents = [(n.replace("past_key_values", "present"), kind, s) for n, kind, s in caches]
    vocabulary = next(s.shape[-1] for s in graph.outputs if s.name == "logits")
    results = [("logits", floats, ["rows", vocabulary]), ("next", whole, ["rows"]), *presents]
    made = helper.make_tensor_value_info
    return [made(*one) for one in (*sizes, *caches)], [made(*one) for one in results]


class Decoder:
    """Draws the nodes of one decoder into a graph."""

    def __init__(self, graph: Any, module: Any, weights: Weights) -> None:
        self._graph, self._config, self._weights = graph, module.config, weights
        self._writer = Writer(graph)
        self._angles: list[str] = []
        if self._config.style == "llama":
            turns = np.outer(
                np.arange(self._config.max_position_embeddings),
                weights["frequencies"].astype(np.float64),
            )
            self._angles = [
                self._keep(turn(turns), name) for name, turn in (("cos", np.cos), ("sin", np.sin))
            ]

    def draw(self) -> None:
        """Embedding, layers, the wanted rows, head."""
        embedding = self._stored(EMBEDDING)
        x = self._node("Gather", [embedding, "input_ids"], name="embedding")
        if self._config.style == "gpt2":
            table = self._stored("embed_positions.weight")
            place = self._node("Gather", [table, "position_ids"], name="positions")
            x = self._node("Add", [x, place])
        normal = self._norm(x, "layers.0.input_layernorm")
        for n in range(self._config.num_hidden_layers):
            added, x = self._attention(n, normal), x
            normal, x = self._add_norm(x, added, f"layers.{n}.post_attention_layernorm")
            last = n + 1 == self._config.num_hidden_layers
            following = "norm" if last else f"layers.{n + 1}.input_layernorm"
            normal, x = self._add_norm(x, self._inner(n, normal), following)
        flat = self._node("Reshape", [normal, self._writer.ints([-1, self._config.hidden_size])])
        rows = self._node("Gather", [flat, "rows"], name="wanted rows")
        head = self._stored("lm_head.weight") if "lm_head.weight" in self._weights else embedding
        self._node("Gemm", [rows, head], name="head", output="logits", transB=1)
        self._node("ArgMax", ["logits"], output="next", axis=-1, keepdims=0)
        self._graph.node.extend(self._writer.nodes)

    def _attention(self, n: int, x: str) -> str:
        here = f"layers.{n}.self_attn"
        size = self._config.head_size
        parts = [f"{here}.{part}_proj" for part in "qkv"]
        heads, shared = (len(self._weights[f"{parts[i]}.weight"]) // size for i in (0, 1))
        together = self._linear(x, f"{here}.qkv", parts)
        cache = [f"{n}.{side}" for side in ("key", "value")]
        inputs = [together, "", "", *(f"past_key_values.{name}" for name in cache)]
        inputs += ["lengths", "longest", *self._angles]
        found = [f"{here}.attended", *(f"present.{name}" for name in cache)]
        self._writer.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                found,
                name=here,
                domain=OWN,
                num_heads=heads,
                kv_num_heads=shared,
                do_rotary=int(bool(self._angles)),
            )
        )
        return self._linear(found[0], f"{here}.o_proj")

    def _inner(self, n: int, x: str) -> str:
        here = f"layers.{n}.mlp"
        if self._config.style == "gpt2":
            x = self._node("FastGelu", [self._linear(x, f"{here}.up_proj")], domain=OWN)
        else:
            # x * sigmoid(alpha x), which with alpha 1 is SiLU.
            gate = self._linear(x, f"{here}.gate_proj")
            gate = self._node("QuickGelu", [gate], domain=OWN, alpha=1.0)
            x = self._node("Mul", [gate, self._linear(x, f"{here}.up_proj")])
        return self._linear(x, f"{here}.down_proj")

    def _linear(self, x: str, name: str, parts: Sequence[str] = ()) -> str:
        """A product, of several matrices side by side where `parts` names them; and its bias."""
        parts = parts or [name]
        rows = np.concatenate([self._weights[f"{part}.weight"] for part in parts])
        y = self._node("MatMul", [x, self._keep(rows.T, f"{name}.weight")], name=name)
        if f"{parts[0]}.bias" not in self._weights:
            return y
        bias = np.concatenate([self._weights[f"{part}.bias"] for part in parts])
        return self._node("Add", [y, self._keep(bias, f"{name}.bias")])

    def _norm(self, x: str, name: str) -> str:
        kind = "LayerNormalization" if self._config.style == "gpt2" else None
        return self._node(
            kind or "SimplifiedLayerNormalization",
            [x, *self._scales(name)],
            name=name,
            epsilon=self._config.norm_eps,
        )

    def _add_norm(self, x: str, more: str, name: str) -> tuple[str, str]:
        """The norm of x + more, and x + more."""
        kind = "Skip" if self._config.style == "gpt2" else "SkipSimplified"
        found = [f"{name}.normal", "", "", f"{name}.sum"]
        self._writer.nodes.append(
            helper.make_node(
                f"{kind}LayerNormalization",
                [x, more, *self._scales(name)],
                found,
                name=name,
                domain=OWN,
                epsilon=self._config.norm_eps,
            )
        )
        return found[0], found[3]

    def _scales(self, name: str) -> list[str]:
        parts = [f"{name}.{part}" for part in ("weight", "bias")]
        return [self._stored(part) for part in parts if part in self._weights]

    def _stored(self, name: str) -> str:
        return self._writer.once(name, lambda: self._keep(self._weights[name], name))

    def _keep(self, array: Array, name: str) -> str:
        return self._writer.add(np.asarray(array, np.float32), name)

    def _node(self, kind: str, inputs: list[str], **options: Any) -> str:
        return self._writer.node(kind, inputs, **options)


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """Matrices of 8 or 4 bit, a scale a group; embedding and head of 8.

    Raises:
        UnsupportedError: another precision, or a hidden size that groups do not fill.
    """
    if precision not in BITS:
        raise UnsupportedError(
            f"fused: has no {precision}; it runs fp32, int8 and int4",
            "export at --precision fp32, int8 or int4, or --to onnx",
        )
    model = onnx.load(path)
    weights = {w.name: w for w in model.graph.initializer}
    width = weights[EMBEDDING].dims[1]
    size, notes = group_size(
        {n.name: weights[n.input[1]].dims[0] for n in model.graph.node if n.op_type == "MatMul"},
        group,
    )
    if width % size:
        raise UnsupportedError(
            f"fused: hidden_size is {width}, wanted a multiple of the group size {size}",
            "take another --group-size, or --to onnx",
        )
    _Quantizer(model, weights, size).rewrite(*BITS[precision])
    save(model, path)
    return (
        f"weight-only {precision}, group size {size}; embedding and head int8",
        "MatMulNBits at accuracy level 4: inputs are rounded to int8 within each group",
        *notes,
    )


class _Quantizer:
    """Puts integers in the place of matrices; one that two nodes read is stored once."""

    def __init__(self, model: Any, weights: dict[str, Any], size: int) -> None:
        self._model, self._weights, self._size = model, weights, size
        self._writer = Writer(model.graph)
        self._known: dict[str, tuple[str, str]] = {}

    def rewrite(self, bits: int, outer: int) -> None:
        """`bits` for products with a matrix, `outer` for embedding and head."""
        old = list(self._model.graph.node)
        for node in old:
            if node.op_type == "MatMul":
                array = numpy_helper.to_array(self._weights[node.input[1]]).T
                self._product(node, node.input[1], array, bits)
            elif node.op_type == "Gemm":
                self._product(node, node.input[1], self._array(node.input[1]), outer)
            elif node.op_type == "Gather" and node.input[0] == EMBEDDING:
                self._look_up(node, outer)
            else:
                self._writer.nodes.append(node)
        del self._model.graph.node[:]
        self._model.graph.node.extend(self._writer.nodes)
        drop_unused(self._model)

    def _array(self, name: str) -> Floats:
        return numpy_helper.to_array(self._weights[name])

    def _packed(self, name: str, rows: Floats, bits: int) -> tuple[str, str]:
        """Integers (rows, groups, bytes of a group) and scales (rows, groups) of a matrix."""
        if name not in self._known:
            codes, scale = pack(rows, bits, self._size)
            names = name, f"{name}.scale"
            self._known[name] = self._writer.add(codes, names[0]), self._writer.add(scale, names[1])
        return self._known[name]

    def _product(self, node: Any, name: str, rows: Floats, bits: int) -> None:
        codes, scale = self._packed(f"{name}.int{bits}", rows, bits)
        self._writer.node(
            "MatMulNBits",
            [node.input[0], codes, scale],
            output=node.output[0],
            name=node.name,
            domain=OWN,
            K=rows.shape[1],
            N=rows.shape[0],
            bits=bits,
            block_size=self._size,
            accuracy_level=4,
        )

    def _look_up(self, node: Any, bits: int) -> None:
        rows = self._array(node.input[0])
        codes, scale = self._packed(f"{node.input[0]}.int{bits}", rows, bits)
        flat = self._writer.node("Reshape", [codes, self._writer.ints([-1, rows.shape[1]])])
        self._writer.node(
            "GatherBlockQuantized",
            [flat, node.input[1], scale],
            output=node.output[0],
            name=node.name,
            domain=OWN,
            gather_axis=0,
            quantize_axis=1,
            block_size=self._size,
            bits=bits,
        )


def pack(rows: Floats, bits: int, size: int) -> tuple[Array, Floats]:
    """Codes (rows, groups, size * bits / 8) as MatMulNBits reads them, scales (rows, groups).

    Zero is the middle of the range, the last group padded with it. At 4 bit the value furthest
    from zero, sign and all, becomes -8. Source: ggml, Q4_0.
    """
    groups = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(len(rows), -1, size)
    first = np.abs(groups).argmax(axis=-1, keepdims=True)
    most = np.take_along_axis(groups, first, axis=-1)
    scale = np.abs(most) / 127 if bits == 8 else most / -8
    steps = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0))
    middle = 1 << (bits - 1)
    codes: Array = (np.clip(steps, -middle, middle - 1) + middle).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scale[..., 0].astype(np.float32)


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every matrix as it stands in the file; a tied embedding once, with its head."""
    graph = onnx.load(path, load_external_data=False).graph
    return tuple(_rows(graph, {w.name: w for w in graph.initializer}))


def _rows(graph: Any, weights: dict[str, Any]) -> Iterator[Layer]:
    told: set[str] = set()
    makers = {name: node for node in graph.node for name in node.output}
    for node in reversed(graph.node):  # the head before the embedding it is tied to
        at = 0 if node.op_type in ("Gather", "GatherBlockQuantized") else 1
        if len(node.input) <= at:
            continue
        name = node.input[at]
        name = makers[name].input[0] if name in makers else name
        if name in told or len(getattr(weights.get(name), "dims", ())) < 2:
            continue
        told.add(name)
        yield _row(node, weights[name])


def _row(node: Any, weight: Any) -> Layer:
    count = int(np.prod(weight.dims))
    if weight.data_type == TensorProto.FLOAT:
        return Layer(node.name, node.op_type, "fp32", count)
    options = {a.name: a.i for a in node.attribute}
    bits, size = options["bits"], options["block_size"]
    note = "weight-only; inputs rounded to int8 within groups"
    return Layer(node.name, node.op_type, f"int{bits}", count * 8 // bits, size, note)
