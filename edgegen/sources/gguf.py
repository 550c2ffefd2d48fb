"""A GGUF file, llama.cpp's format: weights, tokenizer and chat template in one.

Weights are dequantized to float32: what comes out is the model llama.cpp runs, not the one it
was made from.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from edgegen.errors import FormatError, UnsupportedError
from edgegen.models.gpt import Config, loop
from edgegen.sources import Model, _sidefiles
from edgegen.sources._bytelevel import byte_level
from edgegen.sources._decoder import assemble

ARCHITECTURES = ("llama", "qwen2", "gpt2")

# llama.cpp's names -> ours, in a layer and outside.
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd": "embed_tokens",
    "position_embd": "embed_positions",
    "output_norm": "norm",
    "output": "lm_head",
}


class Fields:
    """The key/value part of a file; a key that must be there is named when it is not."""

    def __init__(self, reader: gguf.GGUFReader, place: str) -> None:
        self.reader, self.place = reader, place
        self.architecture: str = self.need("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise FormatError(f"{self.place}: key {key!r} is missing", "convert the model again")
        return value

    def of_model(self, key: str, default: Any = None) -> Any:
        return self.get(f"{self.architecture}.{key}", default)


def read(source: str, inputs: Sequence[str] = (), pixels: object = None) -> Model:
    """The decoder in a GGUF file, and its tokenizer as `tokenizer.json`.

    Raises:
        FormatError: not GGUF, truncated, or without a key or tensor it must have.
        UnsupportedError: an architecture, tokenizer or rotary scaling that is not known.
    """
    path = Path(source)
    reader = _open(path)
    fields = Fields(reader, source)
    if fields.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{source}: architecture {fields.architecture!r} is not supported",
            f"supported: {', '.join(ARCHITECTURES)}",
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, tensors)
    template = fields.get("tokenizer.chat_template", "")
    files = _files(fields, config, path, template)
    weights = dict(_weights(tensors, config, fields))
    entry = {"kind": "source", "format": "gguf", "source": path.name, "stored": _stored(tensors)}
    return assemble(
        path.stem, config, weights, files, chat_template=template, entry=entry, place=source
    )


def _stored(tensors: dict[str, Any]) -> dict[str, int]:
    """How many tensors are stored in which type: {"Q4_1": 210, "F32": 61}."""
    return dict(Counter(tensor.tensor_type.name for tensor in tensors.values()))


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: not a whole GGUF file: {error}", "copy or download it again"
        ) from error


def _config(fields: Fields, tensors: dict[str, Any]) -> Config:
    name = fields.architecture
    gpt2 = name == "gpt2"
    heads = fields.need(f"{name}.attention.head_count")
    width = fields.need(f"{name}.embedding_length")
    head_dim = fields.of_model("attention.key_length", width // heads)
    if fields.of_model("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedError(f"{fields.place}: only a part of each head is rotated")
    norm = "layer_norm_epsilon" if gpt2 else "layer_norm_rms_epsilon"
    return Config(
        style="gpt2" if gpt2 else "llama",
        vocab_size=int(_need_tensor(tensors, "token_embd.weight", fields.place).shape[1]),
        hidden_size=width,
        num_hidden_layers=fields.need(f"{name}.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=fields.of_model("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=fields.need(f"{name}.feed_forward_length"),
        max_position_embeddings=fields.need(f"{name}.context_length"),
        norm_eps=fields.need(f"{name}.attention.{norm}"),
        rope_theta=fields.of_model("rope.freq_base", 10000.0),
        rope_factors=_rope_factors(fields, tensors, head_dim),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=_ends(fields),
    )


def _need_tensor(tensors: dict[str, Any], name: str, place: str) -> Any:
    if name not in tensors:
        raise FormatError(f"{place}: missing tensors: {name}", "convert the model again")
    return tensors[name]


def _ends(fields: Fields) -> tuple[int, ...]:
    """End of text, and end of turn where that is another token."""
    found = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _rope_factors(fields: Fields, tensors: dict[str, Any], head_dim: int) -> tuple[float, ...]:
    """Llama 3 stores its factors as a tensor, linear scaling is one number."""
    if "rope_freqs.weight" in tensors:
        return tuple(_array(tensors["rope_freqs.weight"]).tolist())
    kind = fields.of_model("rope.scaling.type", "none")
    if kind == "linear":
        return (float(fields.of_model("rope.scaling.factor", 1.0)),) * (head_dim // 2)
    if kind != "none":
        raise UnsupportedError(
            f"{fields.place}: rotary scaling {kind!r} is not supported",
            "supported: none, linear, llama3",
        )
    return ()


def _array(tensor: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 in torch's order of dimensions; a copy, for the file is mapped read-only."""
    try:
        return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"{tensor.name}: {error}", "requantize the model: Q4_0, Q4_1, Q8_0, Q4_K, F16, ..."
        ) from error


def _weights(
    tensors: dict[str, Any], config: Config, fields: Fields
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            continue
        weight = torch.from_numpy(_array(tensor))
        if "attn_qkv" in name:
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                yield _our_name(name.replace("attn_qkv", f"attn_{part}")), third
            continue
        if fields.architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            weight = halves_first(weight, config.head_size)
        yield _our_name(name), weight


def _our_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`; unknown names stay."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{OUTSIDE.get(stem, stem)}.{kind}"
    _, layer, inner = stem.split(".", 2)
    return f"layers.{layer}.{IN_LAYER.get(inner, inner)}.{kind}"


def halves_first(weight: Tensor, head_dim: int) -> Tensor:
    """Undo llama.cpp's order of rotary channels: a pair is side by side there, not here."""
    pairs = weight.view(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _files(fields: Fields, config: Config, path: Path, template: str) -> dict[str, bytes]:
    beside = path.parent / "tokenizer.json"
    tokenizer = beside.read_bytes() if beside.is_file() else byte_level(fields.get, fields.place)
    tokens: list[str] = fields.need("tokenizer.ggml.tokens")
    ids = {
        name: fields.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    special = _sidefiles.Special(**{n: tokens[i] for n, i in ids.items() if i is not None})
    return _sidefiles.all_files(config, loop(config), tokenizer, special, template)
