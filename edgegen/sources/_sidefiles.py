"""What other tools look for beside the graphs of a text bundle, as JSON bytes by file name.

`config.json`, `generation_config.json` and `tokenizer_config.json` are Hugging Face's, read by
optimum and openvino_genai as well; `genai_config.json` is onnxruntime-genai's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from edgegen.bundle import Text
from edgegen.models._decoder import Config


class Special(NamedTuple):
    """Which tokens mean something to a loop, by their text; empty for none."""

    bos: str = ""
    eos: str = ""
    pad: str = ""
    unk: str = ""


def to_json(record: Any) -> bytes:
    """Indented JSON, as these tools write it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def model_config(config: Config) -> dict[str, Any]:
    """`config.json` for a decoder that did not come with one."""
    ends: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
    }
    return ends | (_gpt2_config(config) if config.style == "gpt2" else _llama_config(config))


def _llama_config(config: Config) -> dict[str, Any]:
    qwen2 = config.qkv_bias
    return {
        "architectures": ["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen2 else "llama",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }


def _gpt2_config(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
    }


def tokenizer_config(special: Special, positions: int, chat_template: str) -> dict[str, Any]:
    """`tokenizer_config.json`: `tokenizer.json` as it is, its special tokens and chat template."""
    named = {f"{name}_token": token for name, token in special._asdict().items() if token}
    template = {"chat_template": chat_template} if chat_template else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # else transformers adds a third
        **named,
        **template,
    }


def generation_config(config: Config) -> dict[str, Any]:
    """`generation_config.json`: where text begins and ends."""
    ids: dict[str, Any] = {"do_sample": False}
    if config.bos_token_id is not None:
        ids["bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        ids |= {"eos_token_id": list(config.eos_token_ids), "pad_token_id": config.eos_token_ids[0]}
    return ids


def genai_config(model_type: str, config: Config, loop: Text) -> dict[str, Any]:
    """`genai_config.json`, over the names that graph "model" has.

    Source: https://onnxruntime.ai/docs/genai/reference/config.html
    """
    decoder = {
        "filename": "model.onnx",
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": loop.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": loop.layers,
        "num_key_value_heads": loop.kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ids: dict[str, Any] = {"bos_token_id": loop.bos} if loop.bos is not None else {}
    if loop.eos:
        ids |= {"eos_token_id": list(loop.eos), "pad_token_id": loop.eos[0]}
    model = {
        # "gpt2" there means a graph of other tensor names; "decoder" is any that has these.
        "type": "decoder" if model_type == "gpt2" else model_type,
        "context_length": loop.max_positions,
        "vocab_size": loop.vocab_size,
        "decoder": decoder,
        **ids,
    }
    return {"model": model, "search": {"do_sample": False, "max_length": loop.max_positions}}


def all_files(
    config: Config, loop: Text, tokenizer: bytes, special: Special, chat_template: str
) -> dict[str, bytes]:
    """Every side file of a decoder that came with nothing but its `tokenizer.json`."""
    mine = model_config(config)
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": to_json(
            tokenizer_config(special, loop.max_positions, chat_template)
        ),
        "config.json": to_json(mine),
        "generation_config.json": to_json(generation_config(config)),
        "genai_config.json": to_json(genai_config(mine["model_type"], config, loop)),
    }


def special_of(tokenizer: bytes, config: Config) -> Special:
    """The special tokens a config names by number, by their text in `tokenizer.json`."""
    found = msgspec.json.decode(tokenizer, type=dict[str, Any])
    texts = {entry["id"]: entry["content"] for entry in found.get("added_tokens", [])}
    vocabulary = found.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, dict):
        texts |= {number: text for text, number in vocabulary.items() if number not in texts}
    ends = config.eos_token_ids
    end = texts.get(ends[0], "") if ends else ""
    begin = "" if config.bos_token_id is None else texts.get(config.bos_token_id, "")
    return Special(bos=begin, eos=end, pad=end)
