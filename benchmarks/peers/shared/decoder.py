"""Llama-style and GPT-2-style decoders in plain torch, for peers that export a module of one's own.

How a token attends to the earlier ones is left to the exporter: `attend(layer, q, k, v, start)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

# (layer, q, k, v, start) -> the values that q finds; all (1, tokens, heads, head size)
Attend = Callable[[int, Tensor, Tensor, Tensor, Any], Tensor]


class Decoder(nn.Module):
    """Ids (1, tokens) at positions `start` and on to the logits (1, vocabulary) of the last one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        self.gpt2 = config["model_type"] == "gpt2"
        self.vocabulary = config["vocab_size"]
        if self.gpt2:
            self.width, self.heads = config["n_embd"], config["n_head"]
            self.depth, inner = config["n_layer"], 4 * config["n_embd"]
            self.kv_heads, self.eps = self.heads, config["layer_norm_epsilon"]
            self.positions = nn.Embedding(config["n_positions"], self.width)
        else:
            self.width, self.heads = config["hidden_size"], config["num_attention_heads"]
            self.depth, inner = config["num_hidden_layers"], config["intermediate_size"]
            self.kv_heads, self.eps = config["num_key_value_heads"], config["rms_norm_eps"]
        self.head_size = self.width // self.heads
        self.tokens = nn.Embedding(self.vocabulary, self.width)
        self.layers = nn.ModuleList(Layer(self, inner) for _ in range(self.depth))
        self.norm = self.make_norm()
        self.head = nn.Linear(self.width, self.vocabulary, bias=False)
        if not self.gpt2:
            self._angles(config)
        self._load(folder)

    def make_norm(self) -> nn.Module:
        """LayerNorm of GPT-2, RMSNorm of Llama."""
        kind = nn.LayerNorm if self.gpt2 else nn.RMSNorm
        return kind(self.width, eps=self.eps)

    def _angles(self, config: dict[str, Any]) -> None:
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        speed = theta ** -(torch.arange(0, self.head_size, 2).double() / self.head_size)
        angle = torch.arange(config["max_position_embeddings"])[:, None] * speed
        angle = torch.cat([angle, angle], 1)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def _load(self, folder: Path) -> None:
        """From Hugging Face's names; the head is the embedding where the file has none."""
        found = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            short = name.removeprefix("model.").removeprefix("transformer.")
            if self.gpt2 and short.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                tensor = tensor.T.contiguous()
            found[_renamed(short)] = tensor
        found.setdefault("head.weight", found["tokens.weight"].clone())
        self.load_state_dict(found)

    def forward(self, ids: Tensor, start: Any, positions: Tensor, attend: Attend) -> Tensor:
        """Of `positions` (tokens,) are the angles; `start` is for `attend`."""
        if self.gpt2:
            return self.after(self.tokens(ids) + self.positions(positions), None, start, attend)
        turn = (self.cos[positions][None, :, None], self.sin[positions][None, :, None])
        return self.after(self.tokens(ids), turn, start, attend)

    def after(self, x: Tensor, turn: Any, start: Any, attend: Attend) -> Tensor:
        """All behind the embedding `x` (1, tokens, width); `turn` are cosines and sines."""
        for number, layer in enumerate(self.layers):
            x = layer(x, turn, lambda q, k, v, n=number: attend(n, q, k, v, start))
        return self.head(self.norm(x[:, -1]))


class Layer(nn.Module):
    """Attention and MLP of either style."""

    def __init__(self, of: Decoder, inner: int) -> None:
        super().__init__()
        self.sizes = [of.heads * of.head_size, *[of.kv_heads * of.head_size] * 2]
        self.head_size, self.gpt2, bias = of.head_size, of.gpt2, of.gpt2
        self.first, self.second = of.make_norm(), of.make_norm()
        self.out = nn.Linear(of.width, of.width, bias=bias)
        self.down = nn.Linear(inner, of.width, bias=bias)
        self.up = nn.Linear(of.width, inner, bias=bias)
        if self.gpt2:
            self.qkv = nn.Linear(of.width, sum(self.sizes))
        else:
            self.q, self.k, self.v = (nn.Linear(of.width, n, bias=False) for n in self.sizes)
            self.gate = nn.Linear(of.width, inner, bias=False)

    def forward(self, x: Tensor, turn: Any, attend: Callable[..., Tensor]) -> Tensor:
        y = self.first(x)
        three = self.qkv(y).split(self.sizes, 2) if self.gpt2 else (self.q(y), self.k(y), self.v(y))
        q, k, v = (t.view(1, x.shape[1], -1, self.head_size) for t in three)
        if turn:
            q, k = turned(q, *turn), turned(k, *turn)
        x = x + self.out(attend(q, k, v).reshape(x.shape))
        y = self.second(x)
        if self.gpt2:
            return x + self.down(functional.gelu(self.up(y), approximate="tanh"))
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves of a head as pairs."""
    one, two = x.chunk(2, 3)
    return x * cos + torch.cat([-two, one], 3) * sin


NAMES = {
    "embed_tokens": "tokens",
    "wte": "tokens",
    "wpe": "positions",
    "lm_head": "head",
    "ln_f": "norm",
    "input_layernorm": "first",
    "ln_1": "first",
    "post_attention_layernorm": "second",
    "ln_2": "second",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "out",
    "attn.c_attn": "qkv",
    "attn.c_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.c_fc": "up",
    "mlp.down_proj": "down",
    "mlp.c_proj": "down",
}


def _renamed(name: str) -> str:
    """layers.3.self_attn.q_proj.weight -> layers.3.q.weight"""
    stem, _, kind = name.rpartition(".")
    place = ""
    if stem.startswith(("layers.", "h.")):
        _, number, stem = stem.split(".", 2)
        place = f"layers.{number}."
    return f"{place}{NAMES.get(stem, stem)}.{kind}"
