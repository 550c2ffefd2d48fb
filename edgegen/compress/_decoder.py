"""What can go from a decoder of text: heads, key/value groups, MLP channels, blocks.

The cache has one shape for all layers, so heads and groups go from all of them alike; MLPs may
end up of different widths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgegen.compress._groups import Gone, Group, Slice, kept
from edgegen.compress._probe import run_text
from edgegen.compress._work import Work
from edgegen.errors import UsageError
from edgegen.models import gpt
from edgegen.spec import ModelSpec
from edgegen.structure import resize, shapes_of

PARTS = ("vocabulary", "blocks", "kv_groups", "heads", "mlp")  # in the order they are pruned


def config_of(spec: ModelSpec) -> gpt.Config:
    """The configuration of a decoder."""
    return msgspec.convert(spec.config, gpt.Config)


def default_parts(config: gpt.Config) -> tuple[str, ...]:
    """What goes when nobody says: attention, by whole groups where there are several, and MLPs."""
    if config.num_key_value_heads > 1:
        return ("kv_groups", "mlp")
    return ("heads", "mlp") if config.num_attention_heads > 1 else ("mlp",)


def groups_of(work: Work, part: str) -> tuple[Group, ...]:
    """The groups of `part` ("heads", "kv_groups" or "mlp"), one a layer.

    Raises:
        UsageError: a single head, which cannot be shared out.
    """
    config, state = config_of(work.spec), work.net.state_dict()
    layers = range(config.num_hidden_layers)
    if part == "mlp":
        return tuple(_mlp(f"layers.{n}.mlp", state) for n in layers)
    # Each query has keys of its own: they go with it.
    own_keys = config.num_attention_heads == config.num_key_value_heads
    by_key = part == "kv_groups" or own_keys
    units = config.num_key_value_heads if by_key else config.num_attention_heads
    if units == (1 if by_key else config.num_key_value_heads):
        raise UsageError(
            f"prune: parts: {part}: there is nothing to remove: each layer has "
            f"{config.num_attention_heads} heads and {config.num_key_value_heads} key/value heads",
            "prune other parts: parts = ['mlp', 'blocks']",
        )
    return tuple(_attention(f"layers.{n}.self_attn", config, state, by_key, part) for n in layers)


def _mlp(name: str, state: Mapping[str, Tensor]) -> Group:
    width = len(state[f"{name}.up_proj.weight"])
    index = torch.arange(width)[:, None]
    makes = [t for p in ("gate_proj", "up_proj") for t in _rows(f"{name}.{p}", state)]
    slices = [Slice(tensor, 0, index, True) for tensor in makes]
    slices.append(Slice(f"{name}.down_proj.weight", 1, index, False))
    layers = tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor in makes))
    return Group(name, width, tuple(slices), layers)


def _attention(
    name: str, config: gpt.Config, state: Mapping[str, Tensor], by_key: bool, part: str
) -> Group:
    """Heads, or groups of heads with the keys and values they share."""
    shared = config.num_attention_heads // config.num_key_value_heads
    units = config.num_key_value_heads if by_key else config.num_attention_heads
    queries = _blocks(units, config.head_size * (shared if by_key else 1))
    slices = [Slice(t, 0, queries, True) for t in _rows(f"{name}.q_proj", state)]
    if by_key:
        keys = _blocks(units, config.head_size)
        both = [t for p in ("k_proj", "v_proj") for t in _rows(f"{name}.{p}", state)]
        slices += [Slice(tensor, 0, keys, True) for tensor in both]
    slices.append(Slice(f"{name}.o_proj.weight", 1, queries, False))
    layers = tuple(dict.fromkeys(s.tensor.rpartition(".")[0] for s in slices if s.makes))
    strata = 1 if by_key else config.num_key_value_heads
    return Group(name, units, tuple(slices), layers, strata, tie=part, kernel=False)


def _rows(layer: str, state: Mapping[str, Tensor]) -> list[str]:
    return [f"{layer}.{part}" for part in ("weight", "bias") if f"{layer}.{part}" in state]


def _blocks(units: int, size: int) -> Tensor:
    return torch.arange(units * size).view(units, size)


def without(work: Work, groups: tuple[Group, ...], gone: Gone) -> Work:
    """The decoder without those units, its configuration with it."""
    config = config_of(work.spec)
    left = kept(work.net.state_dict(), groups, gone)
    size, depth = config.head_size, range(config.num_hidden_layers)
    heads = {len(left[f"layers.{n}.self_attn.q_proj.weight"]) // size for n in depth}
    keys = {len(left[f"layers.{n}.self_attn.k_proj.weight"]) // size for n in depth}
    assert len(heads) == len(keys) == 1  # tied groups lose the same number
    changed: dict[str, Any] = {
        "num_attention_heads": heads.pop(),
        "num_key_value_heads": keys.pop(),
        "intermediate_size": max(len(left[f"layers.{n}.mlp.up_proj.weight"]) for n in depth),
    }
    if changed["num_attention_heads"] != config.num_attention_heads:
        changed["head_dim"] = size
    return rebuilt(work, msgspec.structs.replace(config, **changed), left)


def without_blocks(work: Work, gone: Collection[int]) -> Work:
    """The decoder without those layers."""
    config = config_of(work.spec)
    stay = [n for n in range(config.num_hidden_layers) if n not in gone]
    place = {old: new for new, old in enumerate(stay)}
    left: dict[str, Tensor] = {}
    for name, tensor in work.net.state_dict().items():
        found = re.match(r"layers\.(\d+)\.", name)
        if found and int(found[1]) in place:
            left[f"layers.{place[int(found[1])]}.{name[found.end() :]}"] = tensor
        elif not found:
            left[name] = tensor
    return rebuilt(work, msgspec.structs.replace(config, num_hidden_layers=len(stay)), left)


def rebuilt(work: Work, config: gpt.Config, state: Mapping[str, Tensor]) -> Work:
    """A decoder of that configuration with these weights, whose shapes may be smaller."""
    with torch.device("meta"):  # only its shapes are needed
        plan = gpt.Net(config)
    wanted = plan.state_dict()
    shapes = {n: tuple(t.shape) for n, t in state.items() if t.shape != wanted[n].shape}
    rng = torch.get_rng_state()
    net = gpt.Net(config)
    torch.set_rng_state(rng)  # its first weights are thrown away
    resize(net, shapes)
    net.load_state_dict(dict(state))
    assert shapes_of(net, plan) == shapes
    same = config == config_of(work.spec)
    written = work.spec.config if same else msgspec.json.decode(msgspec.json.encode(config))
    spec = msgspec.structs.replace(work.spec, config=written, shapes=shapes)
    return work._replace(spec=spec, net=net.eval())


def block_scores(net: nn.Module, batches: list[Tensor]) -> Tensor:
    """How much each layer turns its input: 1 - cosine, the mean over tokens; shape (layers,).

    `batches` are token ids (batch, time).

    Source: Men et al. 2024, arXiv:2403.03853 (ShortGPT, block influence).
    """
    turned = torch.zeros(len(net.layers))
    tokens = 0

    def look(index: int) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            cosine = nn.functional.cosine_similarity(given[0], result[0], dim=-1)
            turned[index] += (1 - cosine).sum()

        return hook

    hooks = [layer.register_forward_hook(look(n)) for n, layer in enumerate(net.layers)]
    try:
        with torch.no_grad():
            for ids in batches:
                run_text(net, ids)
                tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return turned / tokens
