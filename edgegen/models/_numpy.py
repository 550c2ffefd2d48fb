"""The decoder of `gpt` in numpy: the reference of an export that needs nothing else of torch.

Importing torch takes as long as proving a compact decoder does, and a board may not have it. No
line of arithmetic is shared with `gpt` or with an engine, so that each tests the others.

Source: as `gpt`; Xiong et al. 2020, arXiv:2002.04745 (norms before), Zhang and Sennrich 2019,
arXiv:1910.07467 (RMSNorm), Hendrycks and Gimpel 2016, arXiv:1606.08415 (GELU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgegen.models._decoder import Config
from edgegen.spec import Array

Floats = NDArray[np.float32]
Turn = tuple[Floats, Floats]  # cos and sin of each angle, (batch, 1, time, head_dim / 2)


class Decoder:
    """A decoder over weights in fp32, by the names of `gpt`; called as its net is."""

    def __init__(self, config: Config, weights: Mapping[str, Floats]) -> None:
        self.config, self.weights = config, weights
        self.frequencies = frequencies(config)

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *past: Floats
    ) -> tuple[Floats, ...]:
        """Logits (batch, time, vocabulary), then the longer cache in the order it came."""
        x: Floats = self.weights["embed_tokens.weight"][input_ids]
        turn = None
        if self.config.style == "gpt2":
            x = x + self.weights["embed_positions.weight"][position_ids]
        else:
            angles = position_ids[:, None, :, None].astype(np.float32) * self.frequencies
            turn = np.cos(angles), np.sin(angles)
        seen = visible(attention_mask, input_ids.shape[1])
        present: list[Floats] = []
        for n in range(self.config.num_hidden_layers):
            cache = past[2 * n], past[2 * n + 1]
            y, *cache_now = self._attend(n, self._norm(x, f"layers.{n}.input"), seen, turn, *cache)
            x = x + y
            x = x + self._mlp(n, self._norm(x, f"layers.{n}.post_attention"))
            present += cache_now
        tied = self.config.tie_word_embeddings
        head = "embed_tokens" if tied else "lm_head"
        return self._product(self._norm(x, ""), head), *present

    def _product(self, x: Floats, name: str) -> Floats:
        """(..., columns) -> (..., rows) of a matrix, its bias added where it has one."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        # One product for the whole batch; this way round a few columns take a third of the time.
        y = (weight @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], len(weight))
        return y if bias is None else y + bias

    def _norm(self, x: Floats, place: str) -> Floats:
        name, epsilon = f"{place}_layernorm" if place else "norm", self.config.norm_eps
        weight = self.weights[f"{name}.weight"]
        if self.config.style == "llama":
            mean = np.square(x).mean(-1, keepdims=True)
            return x / np.sqrt(mean + np.float32(epsilon)) * weight
        x = x - x.mean(-1, keepdims=True)
        variance = np.square(x).mean(-1, keepdims=True)
        scaled: Floats = x / np.sqrt(variance + np.float32(epsilon)) * weight
        return scaled + self.weights[f"{name}.bias"]

    def _attend(
        self, n: int, x: Floats, seen: Array, turn: Turn | None, key: Floats, value: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Attention of one layer, and its cache with the new keys and values behind the old."""
        config, here = self.config, f"layers.{n}.self_attn"
        q, k, v = (self._heads(self._product(x, f"{here}.{p}_proj")) for p in "qkv")
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        key, value = np.concatenate((key, k), axis=2), np.concatenate((value, v), axis=2)
        batch, heads, time, size = q.shape
        groups = heads // config.num_key_value_heads
        q = q.reshape(batch, -1, groups, time, size)  # query heads beside the key head they share
        scores = q @ key[:, :, None].swapaxes(-1, -2) / np.float32(math.sqrt(size))
        scores = np.where(seen[:, None, None], scores, np.float32(-np.inf))
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        y = odds / odds.sum(-1, keepdims=True) @ value[:, :, None]
        y = y.reshape(batch, heads, time, size).swapaxes(1, 2).reshape(batch, time, -1)
        return self._product(y, f"{here}.o_proj"), key, value

    def _heads(self, x: Floats) -> Floats:
        """(batch, time, heads * head_dim) -> (batch, heads, time, head_dim)."""
        return x.reshape(*x.shape[:2], -1, self.config.head_size).swapaxes(1, 2)

    def _mlp(self, n: int, x: Floats) -> Floats:
        here = f"layers.{n}.mlp"
        y = self._product(x, f"{here}.up_proj")
        if self.config.style == "gpt2":
            y = gelu(y)
        else:
            gate = self._product(x, f"{here}.gate_proj")
            # SiLU; the tanh says sigmoid and cannot overflow.
            y = gate * (np.float32(0.5) + np.float32(0.5) * np.tanh(gate / 2)) * y
        return self._product(y, f"{here}.down_proj")


def frequencies(config: Config) -> Floats:
    """Radians a position for each pair of channels, shape (head_dim / 2,)."""
    pairs = np.arange(0, config.head_size, 2, dtype=np.float32)
    found = 1 / np.float32(config.rope_theta) ** (pairs / np.float32(config.head_size))
    if config.rope_factors:
        found = found / np.array(config.rope_factors, np.float32)
    return found.astype(np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Turn each pair of channels (c, c + head_dim / 2) of `x` (batch, heads, time, head_dim)."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def visible(attention_mask: Array, time: int) -> Array:
    """Which key each of the last `time` positions may see, bool (batch, time, past + time).

    All before it that are no padding, and itself.
    """
    keys = np.arange(attention_mask.shape[1])
    queries = keys[len(keys) - time :, None]
    seen: Array = (keys < queries) & (attention_mask[:, None] != 0) | (keys == queries)
    return seen


def gelu(x: Floats) -> Floats:
    """By its tanh formula, as GPT-2 has it."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))
