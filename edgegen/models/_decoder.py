"""What a decoder of family `gpt` is, without its weights: sizes, tensors, graph and loop.

Free of torch, as `edgegen.models._numpy` is.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edgegen.bundle import Text
from edgegen.errors import UsageError
from edgegen.spec import GraphSpec, TensorSpec


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder, in Hugging Face's names. `head_dim` 0 is hidden size / heads.

    `rope_factors` divide the rotary frequencies, one for each pair of channels; empty for none.

    `style` "llama": RMSNorm, rotary positions, SwiGLU, no biases but `qkv_bias` (Qwen2).
    `style` "gpt2": LayerNorm, learned positions, GELU, biases everywhere.
    """

    style: Literal["llama", "gpt2"] = "llama"
    vocab_size: int = 512
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 0
    intermediate_size: int = 384
    max_position_embeddings: int = 256
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_factors: tuple[float, ...] = ()
    qkv_bias: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        sizes = (self.vocab_size, self.hidden_size, self.num_hidden_layers, heads, kv_heads)
        if min(*sizes, self.intermediate_size, self.max_position_embeddings) < 1:
            raise UsageError("gpt: a size in the config is below 1", "make every size at least 1")
        if heads % kv_heads:
            raise UsageError(
                f"gpt: {heads} attention heads do not share {kv_heads} key/value heads evenly",
                f"set num_key_value_heads to a divisor of {heads}",
            )
        if not self.head_dim and self.hidden_size % heads:
            raise UsageError(
                f"gpt: hidden_size {self.hidden_size} does not divide into {heads} heads",
                "change hidden_size or num_attention_heads, or set head_dim",
            )
        if self.rope_factors and 2 * len(self.rope_factors) != self.head_size:
            raise UsageError(
                f"gpt: {len(self.rope_factors)} rope_factors, a head has {self.head_size} channels",
                "give one for each pair of channels",
            )

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its name, matrices (rows, columns)."""
    width, vocabulary = config.hidden_size, config.vocab_size
    found = {"embed_tokens.weight": (vocabulary, width)} | _norm("norm", config)
    if config.style == "gpt2":
        found["embed_positions.weight"] = (config.max_position_embeddings, width)
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = (vocabulary, width)
    for n in range(config.num_hidden_layers):
        found |= {f"layers.{n}.{name}": shape for name, shape in _layer(config).items()}
    return found


def _layer(config: Config) -> dict[str, tuple[int, ...]]:
    gpt2, width, inner = config.style == "gpt2", config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    found = _norm("input_layernorm", config) | _norm("post_attention_layernorm", config)
    for name, count in rows.items():
        bias = gpt2 or config.qkv_bias
        found |= _linear(f"self_attn.{name}_proj", count * config.head_size, width, bias)
    found |= _linear("self_attn.o_proj", width, heads * config.head_size, gpt2)
    for name in ("up",) if gpt2 else ("gate", "up"):
        found |= _linear(f"mlp.{name}_proj", inner, width, gpt2)
    return found | _linear("mlp.down_proj", width, inner, gpt2)


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, config: Config) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias") if config.style == "gpt2" else ("weight",)
    return {f"{name}.{kind}": (config.hidden_size,) for kind in kinds}


def graph(config: Config) -> GraphSpec:
    """The one graph, "model", with the tensor names of optimum."""
    limit = config.max_position_embeddings
    sides: list[list[TensorSpec]] = []
    for prefix, time in (("past_key_values", "past"), ("present", "past+seq")):
        shape = ("batch", config.num_key_value_heads, time, config.head_size)
        names = (
            f"{prefix}.{n}.{side}"
            for n in range(config.num_hidden_layers)
            for side in ("key", "value")
        )
        sides.append([TensorSpec(name, "float32", shape) for name in names])
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "seq"), 0, config.vocab_size - 1),
        TensorSpec("attention_mask", "int64", ("batch", "past+seq"), 0, 1),
        TensorSpec("position_ids", "int64", ("batch", "seq"), 0, limit - 1),
        *sides[0],
    )
    logits = TensorSpec("logits", "float32", ("batch", "seq", config.vocab_size))
    limits = {"seq": limit, "past": limit, "past+seq": limit}
    return GraphSpec("model", inputs, (logits, *sides[1]), limits)


def loop(config: Config) -> Text:
    """What the autoregressive loop must know."""
    return Text(
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_size,
        bos=config.bos_token_id,
        eos=config.eos_token_ids,
    )
