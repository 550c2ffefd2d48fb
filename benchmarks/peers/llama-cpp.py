"""llama.cpp through llama-cpp-python's C functions: decode and greedy sampler, nothing between."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np

# Q4_0 with Q8_0 outside: what llama.cpp's own quantizer makes of a width that 256 does not divide.
KINDS = {"fp32": ("F32", "F32"), "int8": ("Q8_0", "Q8_0"), "int4": ("Q4_0", "Q8_0")}
LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    """A GGUF file of the weights and of a vocabulary that is never asked for."""
    import gguf
    from safetensors import safe_open

    config = json.loads((model / "config.json").read_text())
    output.mkdir(parents=True)
    writer = gguf.GGUFWriter(output / "model.gguf", config["model_type"])
    {"llama": _llama_sizes, "gpt2": _gpt2_sizes}[config["model_type"]](writer, config)
    _vocabulary(writer, config["vocab_size"])
    inner, outer = KINDS[precision]
    with safe_open(model / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            mapped, array = _tensor(name, file.get_tensor(name), config)
            kind = outer if mapped.startswith(("token_embd", "output.")) else inner
            if array.ndim < 2 or mapped.startswith("position_embd"):
                kind = "F32"
            quantized = gguf.GGMLQuantizationType[kind]
            data = gguf.quants.quantize(array, quantized)
            writer.add_tensor(mapped, data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rounded = "" if precision == "fp32" else ", activations Q8_0"
    return f"{inner}, embedding and head {outer}{rounded}; cache f16"


def _llama_sizes(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _gpt2_sizes(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _vocabulary(writer: Any, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{n}" for n in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _tensor(name: str, array: Any, config: dict[str, Any]) -> tuple[str, Any]:
    """llama.cpp's name and layout of a tensor of Hugging Face's."""
    array = np.asarray(array, np.float32)
    stem, _, kind = name.removeprefix("model.").removeprefix("transformer.").rpartition(".")
    names = LLAMA if config["model_type"] == "llama" else GPT2
    layer, inner = "", stem
    if stem.startswith(("layers.", "h.")):
        _, number, inner = stem.split(".", 2)
        layer = f"blk.{number}."
    if inner.endswith(("q_proj", "k_proj")):
        key = "num_attention_heads" if inner.endswith("q_proj") else "num_key_value_heads"
        array = _pairs_together(array, config[key])
    if inner in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") and kind == "weight":
        array = np.ascontiguousarray(array.T)
    return f"{layer}{names[inner]}.{kind}", array


def _pairs_together(array: Any, heads: int) -> Any:
    """Rows c and c + size / 2 of each head side by side: how llama.cpp turns them."""
    halves = array.reshape(heads, 2, -1, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Text:
    import llama_cpp

    return Text(
        llama_cpp.Llama(
            str(path / "model.gguf"),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
    )


class Text:
    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._c, self._model, self._context = llama_cpp, model, model._ctx.ctx
        self._vocabulary = model.n_vocab()
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    def _decode(self, ids: list[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        if self._c.llama_decode(self._context, self._c.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")

    def _prefill(self, ids: list[int]) -> None:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._decode(ids)

    def generate(self, ids: list[int], count: int) -> list[int]:
        self._prefill(ids)
        found = [self._c.llama_sampler_sample(self._greedy, self._context, -1)]
        while len(found) < count:
            self._decode(found[-1:])
            found.append(self._c.llama_sampler_sample(self._greedy, self._context, -1))
        return found

    def logits(self, ids: list[int]) -> Any:
        self._prefill(ids)
        pointer = self._c.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,)).copy()
