"""One decoder of text: the Llama style (Llama, SmolLM2, Qwen2) and the GPT-2 style.

The key/value cache is an input and an output of the graph, so that any engine can keep it.
Weights are called as in Hugging Face's Llama, without the leading "model.".

Source: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 (GPT-2); Touvron et al. 2023,
arXiv:2302.13971 (Llama).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgegen.models._decoder import Config as Config
from edgegen.models._decoder import graph
from edgegen.models._decoder import loop as loop
from edgegen.spec import GraphSpec

Turn = tuple[Tensor, Tensor]  # cos and sin of each angle, (batch, 1, time, head_dim / 2)


def rope_frequencies(config: Config) -> Tensor:
    """Radians a position for each pair of channels, shape (head_dim / 2,).

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    size = config.head_size
    # The device is named so that a net built on "meta" still has its frequencies.
    pairs = torch.arange(0, size, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (pairs / size)
    if config.rope_factors:
        frequencies = frequencies / torch.tensor(config.rope_factors, device="cpu")
    return frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (c, c + head_dim / 2) of `x` (batch, heads, time, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_mask(attention_mask: Tensor, time: int, past: int) -> Tensor:
    """Which key each query may see, bool (batch, 1, time, past + time).

    Every query sees itself, padding too: a row that sees nothing is NaN in some engines. The
    batch is expanded because OpenVINO's fused attention in bf16 is wrong for a broadcast mask.
    """
    keys = torch.arange(past + time, device=attention_mask.device)
    queries = keys[past:, None]
    real = attention_mask[:, None, None, :].bool()
    mask = (keys < queries) & real | (keys == queries)
    return mask.expand(attention_mask.shape[0], 1, time, past + time)


class Attention(nn.Module):
    """Self-attention with a cache; `num_key_value_heads` heads are shared by groups of queries."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_size
        gpt2 = config.style == "gpt2"
        width = config.num_attention_heads * self.head_dim
        kv_width = config.num_key_value_heads * self.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        bias = gpt2 or config.qkv_bias
        self.q_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=gpt2)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, time, heads * head_dim) -> (batch, heads, time, head_dim)."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def repeat(self, x: Tensor) -> Tensor:
        """(batch, kv_heads, time, head_dim) -> (batch, heads, time, head_dim)."""
        batch, kv_heads, time, size = x.shape
        x = x[:, :, None].expand(batch, kv_heads, self.groups, time, size)
        return x.reshape(batch, kv_heads * self.groups, time, size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        key: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        key, value = torch.cat((key, k), dim=2), torch.cat((value, v), dim=2)
        k, v, grouped = key, value, self.groups > 1
        if grouped and torch.jit.is_tracing():
            # OpenVINO converts from a trace, and keeps the cache inside fused attention only where
            # the shared heads are repeated in the open; ONNX's Attention shares them by itself.
            k, v, grouped = self.repeat(k), self.repeat(v), False
        y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).flatten(2)), key, value


class GatedMLP(nn.Module):
    """SwiGLU. Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """GPT-2's: GELU by its tanh formula."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Layer(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = _norm(config)
        self.mlp = MLP(config) if config.style == "gpt2" else GatedMLP(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        key: Tensor,
        value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, key, value = self.self_attn(self.input_layernorm(x), mask, turn, key, value)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Net(nn.Module):
    """The whole decoder. Tied embeddings are used twice: there is no `lm_head` then."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.style == "gpt2":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.register_buffer("frequencies", rope_frequencies(config), persistent=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _norm(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            # Residual branches add up: GPT-2 keeps their sum at unit scale.
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.num_hidden_layers))

    def empty_cache(self, batch: int) -> tuple[Tensor, ...]:
        """Keys and values of no tokens: k0, v0, k1, v1, ... each (batch, kv_heads, 0, head_dim)."""
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_size)
        weight = self.embed_tokens.weight
        return tuple(weight.new_zeros(shape) for _ in range(2 * len(self.layers)))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (batch, time, vocabulary), then the longer cache in the order it came.

        `input_ids`, `position_ids` are (batch, time); `attention_mask` (batch, past + time).
        """
        mask = causal_mask(attention_mask, input_ids.shape[1], past[0].shape[2])
        x = self.embed_tokens(input_ids)
        turn = None
        if self.config.style == "gpt2":
            x = x + self.embed_positions(position_ids)
        else:
            angles = position_ids[:, None, :, None].to(x.dtype) * self.frequencies
            turn = angles.cos(), angles.sin()
        present: list[Tensor] = []
        for layer, key, value in zip(self.layers, past[::2], past[1::2], strict=True):
            x, key, value = layer(x, mask, turn, key, value)
            present += [key, value]
        x = self.norm(x)
        tied = self.config.tie_word_embeddings
        return F.linear(x, self.embed_tokens.weight if tied else self.lm_head.weight), *present


def _norm(config: Config) -> nn.Module:
    kind = nn.LayerNorm if config.style == "gpt2" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def graphs(net: Net) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph, "model"."""
    return {"model": (net.eval(), graph(net.config))}


def phases(net: Net) -> dict[str, list[nn.Parameter]]:
    """One optimiser for everything."""
    return {"net": list(net.parameters())}


def loss(net: Net, batch: Tensor, phase: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Cross entropy of each next token of `batch` (batch, time + 1), in nats; and in bits."""
    ids, targets = batch[:, :-1], batch[:, 1:]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    logits, *_ = net(ids, torch.ones_like(ids), positions, *net.empty_cache(ids.shape[0]))
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return {"loss": nats, "bits_per_token": nats.detach() / math.log(2)}


def samples(net: Net, num: int, generator: torch.Generator) -> None:
    """Text has no images to look at."""
