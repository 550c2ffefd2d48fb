"""Hugging Face's `config.json` as a `gpt` Config; what cannot be expressed is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgegen.errors import FormatError, UnsupportedError
from edgegen.models._decoder import Config

Keys = dict[str, Any]

# Options that change the model: (key, the values we compute, the value where it is absent).
ALLOWED: dict[str, list[tuple[str, tuple[Any, ...], Any]]] = {
    "llama": [
        ("hidden_act", ("silu",), "silu"),
        ("attention_bias", (False,), False),
        ("mlp_bias", (False,), False),
        ("partial_rotary_factor", (1, None), None),
        ("quantization_config", (None,), None),
    ],
    "qwen2": [
        ("hidden_act", ("silu",), "silu"),
        ("use_sliding_window", (False,), False),
        ("quantization_config", (None,), None),
    ],
    "gpt2": [
        ("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new"),
        ("scale_attn_weights", (True,), True),
        ("scale_attn_by_inverse_layer_idx", (False,), False),
        ("add_cross_attention", (False,), False),
        ("quantization_config", (None,), None),
    ],
}


def reject(kind: str, keys: Keys, place: str) -> None:
    """Raise `UnsupportedError` for an option of the config that changes what is computed."""
    for key, values, absent in ALLOWED[kind]:
        if (found := keys.get(key, absent)) not in values:
            raise UnsupportedError(
                f"{place}: {key} {found!r} is not supported",
                f"supported: {', '.join(map(repr, values))}; "
                "or give the model as FILE.py:CALLABLE with --input",
            )


def _llama(keys: Keys) -> Config:
    heads, width = _need(keys, "num_attention_heads"), _need(keys, "hidden_size")
    head_dim = keys.get("head_dim") or width // heads
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}  # new and old name
    theta = float(rope.get("rope_theta") or keys.get("rope_theta", 10000.0))
    return Config(
        vocab_size=_need(keys, "vocab_size"),
        hidden_size=width,
        num_hidden_layers=_need(keys, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=keys.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=_need(keys, "intermediate_size"),
        max_position_embeddings=keys.get("max_position_embeddings", 2048),
        norm_eps=keys.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factors=rope_factors(rope, theta, head_dim),
        qkv_bias=keys["model_type"] == "qwen2",
        tie_word_embeddings=keys.get("tie_word_embeddings", False),
    )


def _gpt2(keys: Keys) -> Config:
    heads, width = _need(keys, "n_head"), _need(keys, "n_embd")
    return Config(
        style="gpt2",
        vocab_size=_need(keys, "vocab_size"),
        hidden_size=width,
        num_hidden_layers=_need(keys, "n_layer"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=keys.get("n_inner") or 4 * width,
        max_position_embeddings=_need(keys, "n_positions"),
        norm_eps=keys.get("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=keys.get("tie_word_embeddings", True),
    )


CONFIGS: dict[str, Callable[[Keys], Config]] = {"llama": _llama, "qwen2": _llama, "gpt2": _gpt2}


def _need(keys: Keys, key: str) -> Any:
    if key not in keys:
        raise FormatError(f"config.json: key {key!r} is missing", "restore the file")
    return keys[key]


def rope_factors(rope: Keys, theta: float, head_dim: int) -> tuple[float, ...]:
    """What each rotary frequency is divided by; empty for the default.

    `linear` divides all alike; `llama3` leaves the fast ones, which turn more than
    `high_freq_factor` times within the length trained at, and divides the slow ones.

    Source: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * (head_dim // 2)
    if kind != "llama3":
        raise UnsupportedError(
            f"config.json: rotary scaling {kind!r} is not supported",
            "supported: default, linear, llama3",
        )
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    factors = []
    for pair in range(head_dim // 2):
        turns = length * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / (kept + (1.0 - kept) / factor))
    return tuple(factors)


def ends(generation: Keys, keys: Keys) -> tuple[int | None, tuple[int, ...]]:
    """Begin and end tokens: those of `generation_config.json`, else those of `config.json`."""
    both = {**keys, **{key: value for key, value in generation.items() if value is not None}}
    bos, eos = both.get("bos_token_id"), both.get("eos_token_id")
    if eos is None:
        return bos, ()
    return bos, tuple(eos) if isinstance(eos, list) else (eos,)
