"""A decoder as the few large operators that ONNX Runtime has for one, for its CPU alone.

What `exporters/onnx.py` writes is portable; this is read by ONNX Runtime only, for the operators
are its own: attention that turns and keeps keys and values itself, in place, query, key and value
in one product, the sum of the residual inside the norm, weights of 8 and 4 bit, and a tied
embedding that stands in the file once. Behind the last attention there are only the rows asked for.

    input_ids (batch, seq)   position_ids (batch, seq), of GPT-2 alone
    rows (rows,)             positions of batch * seq whose logits are wanted
    lengths (batch,)         tokens of each sequence, the new ones included, less one
    longest ()               the most of any of them
    count (1,)               how many of the best logits are wanted
    past_key_values.N.key|value -> present.N.key|value   one buffer, (batch, heads, room, size)
    logits (rows, vocabulary)
    best (rows, count)       the largest of them, from the largest on
    tokens (rows, count)     whose they are; of equal ones the lower token comes first

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import is_text
from edgegen.exporters._fused_quantize import EMBEDDING, OWN, Floats, quantize
from edgegen.exporters._onnx_nodes import Writer
from edgegen.exporters._onnx_quantize import save
from edgegen.exporters._weights import weights_of
from edgegen.spec import Array, GraphSpec

__all__ = ["FILE", "PLAIN", "ledger", "quantize", "write"]

FILE = "model.fused.onnx"
PLAIN = True
OPSET, IR_VERSION = 21, 10

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
    sizes += [("longest", TensorProto.INT32, []), ("count", whole, [1])]
    pasts = [s for s in graph.inputs if s.name.startswith("past_key_values.")]
    caches = [(s.name, floats, ["batch", s.shape[1], "room", s.shape[3]]) for s in pasts]
    presents = [(n.replace("past_key_values", "present"), kind, s) for n, kind, s in caches]
    vocabulary = next(s.shape[-1] for s in graph.outputs if s.name == "logits")
    results: list[tuple[str, int, list[Any]]] = [("logits", floats, ["rows", vocabulary])]
    results += [("best", floats, ["rows", "count"]), ("tokens", whole, ["rows", "count"])]
    results += presents
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
        """Embedding, layers, of the last one the wanted rows, head."""
        embedding = self._stored(EMBEDDING)
        x = self._node("Gather", [embedding, "input_ids"], name="embedding")
        if self._config.style == "gpt2":
            table = self._stored("embed_positions.weight")
            place = self._node("Gather", [table, "position_ids"], name="positions")
            x = self._node("Add", [x, place])
        normal = self._norm(x, "layers.0.input_layernorm")
        for n in range(self._config.num_hidden_layers):
            attended, last = self._attention(n, normal), n + 1 == self._config.num_hidden_layers
            if last:  # of the other rows nothing is wanted but their keys and values
                attended, x = self._wanted(attended), self._wanted(x)
            added = self._linear(attended, f"layers.{n}.self_attn.o_proj")
            normal, x = self._add_norm(x, added, f"layers.{n}.post_attention_layernorm")
            following = "norm" if last else f"layers.{n + 1}.input_layernorm"
            normal, x = self._add_norm(x, self._inner(n, normal), following)
        head = self._stored("lm_head.weight") if "lm_head.weight" in self._weights else embedding
        self._node("Gemm", [normal, head], name="head", output="logits", transB=1)
        # Of 32,000 logits the best is found in 20 us so, where ArgMax takes 29.
        chosen = helper.make_node("TopK", ["logits", "count"], ["best", "tokens"], name="best")
        self._graph.node.extend([*self._writer.nodes, chosen])

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
        return found[0]

    def _wanted(self, x: str) -> str:
        """(batch, seq, width) as (rows, width)."""
        flat = self._node("Flatten", [x], axis=2)
        return self._node("Gather", [flat, "rows"])

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
