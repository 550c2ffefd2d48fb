"""Adapters on disk, in the format of PEFT: a folder of two files.

    adapter_config.json          rank, alpha, and which layers
    adapter_model.safetensors    base_model.model.LAYER.lora_A.weight, ...lora_B.weight

Of a transposed convolution the same two are stored, in `LowRank`'s shapes; PEFT itself has no
adapters for those layers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec import Struct
from torch import Tensor, nn

from edgegen import checkpoint, records
from edgegen.adapters import adaptable, adapted, attach, largest_rank, shapes
from edgegen.checkpoint import pack, unpack
from edgegen.errors import FormatError, MismatchError, UnsupportedError, UsageError
from edgegen.rooms import nearest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What of PEFT changes the numbers in ways that `LowRank` does not know.
FOREIGN = (
    *("use_dora", "use_qalora", "lora_bias", "modules_to_save", "trainable_token_indices"),
    *("alora_invocation_tokens", "layer_replication"),
)


class Factors(NamedTuple):
    """One layer's adapter: its output gains `scale * b(a(x))`; shapes as in `LowRank`."""

    a: Tensor
    b: Tensor
    scale: float


class _Config(Struct, frozen=True):
    """What is read of PEFT's forty fields."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    bias: str = "none"


def save_peft(net: nn.Module, folder: Path | str) -> None:
    """Write the adapters on `net`.

    Raises:
        UsageError: `net` has none.
    """
    found = adapted(net)
    if not found:
        raise UsageError("no adapter to save", "attach adapters first, or do not merge them")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, adapter in found.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapter.A
        tensors[f"base_model.model.{name}.lora_B.weight"] = adapter.B
    ranks = {name: adapter.rank for name, adapter in found.items()}
    alphas = {name: float(adapter.scale) * adapter.rank for name, adapter in found.items()}
    with records.whole(folder / WEIGHTS) as part:
        part.write_bytes(pack(tensors))
    with records.whole(folder / CONFIG) as part:
        part.write_bytes(records.encode(_config(ranks, alphas, list(adaptable(net)))))


def _config(ranks: dict[str, int], alphas: dict[str, float], layers: list[str]) -> dict[str, Any]:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    # PEFT takes a name in the list for the end of a name, too: "fc" also means "block.fc".
    ends = [n for n in layers if n not in ranks and n.endswith(tuple(f".{mine}" for mine in ranks))]
    exact = "|".join(re.escape(name) for name in ranks)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": exact if ends else list(ranks),
        "rank_pattern": {f"^{re.escape(n)}": r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(n)}": _whole(a) for n, a in alphas.items() if a != alpha},
    }


def _whole(number: float) -> float | int:
    """PEFT writes whole alphas as integers."""
    return int(number) if number == int(number) else number


def read_peft(folder: Path | str) -> dict[str, Factors]:
    """The adapters in a folder, by the name of their layer.

    Raises:
        NotFoundError: a file is missing.
        FormatError: a broken file, or one half of an adapter.
        UnsupportedError: another kind of adapter than LoRA.
    """
    path = Path(folder) / CONFIG
    options, config = records.read(dict[str, Any], path), records.read(_Config, path)
    used = [name for name in FOREIGN if options.get(name)]
    if config.peft_type.upper() != "LORA" or config.bias != "none" or used:
        what = used[0] if used else f"{config.peft_type}, bias {config.bias}"
        raise UnsupportedError(
            f"{path}: {what}: only plain LoRA is read", "merge it with peft, and export the result"
        )
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(unpack(Path(folder) / WEIGHTS).items()):
        named = KEY.fullmatch(key)
        if named is None:
            raise UnsupportedError(f"{path.parent / WEIGHTS}: {key} is no LoRA of a layer")
        halves.setdefault(named[1], {})[named[2]] = tensor.float()
    for name, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise FormatError(f"{path.parent / WEIGHTS}: {name} has only lora_{min(pair)}")
    return {n: Factors(p["A"], p["B"], _scale(config, n, p["A"])) for n, p in halves.items()}


def _scale(config: _Config, name: str, a: Tensor) -> float:
    """alpha / rank; alpha as PEFT finds it."""
    keys = [k for k in config.alpha_pattern if re.match(rf"(.*\.)?({k})$", name)]
    alpha = config.alpha_pattern[keys[0]] if keys else config.lora_alpha
    return alpha / (math.sqrt(len(a)) if config.use_rslora else len(a))


def load_peft(net: nn.Module, folder: Path | str) -> dict[str, int]:
    """Attach the adapters in `folder` to `net`, in place; their ranks, by layer.

    Raises:
        MismatchError: they are of another model: the layer and both shapes are named.
        UsageError: a layer of `net` has an adapter already.
    """
    found = fitted(net, read_peft(folder), folder)
    ranks = {name: len(factors.a) for name, factors in found.items()}
    attach(net, ranks)
    with torch.no_grad():
        for name, adapter in adapted(net).items():
            if name in found:
                adapter.A.copy_(found[name].a)
                adapter.B.copy_(found[name].b)
                adapter.scale.fill_(found[name].scale)
    return ranks


def fitted(net: nn.Module, found: Mapping[str, Factors], place: Path | str) -> dict[str, Factors]:
    """`found` by the names of `net`'s layers; Hugging Face's may begin with "model.".

    Raises:
        MismatchError: a layer that `net` does not have, or of another shape or too high a rank.
    """
    layers, out = adaptable(net), dict[str, Factors]()
    for given, factors in found.items():
        name = given if given in layers else given.removeprefix("model.")
        if name not in layers:
            raise MismatchError(
                f"{place}: an adapter of {given}, which this model does not have",
                nearest(name, layers),
            )
        want = shapes(layers[name], len(factors.a))
        have = tuple(factors.a.shape), tuple(factors.b.shape)
        if want != have:
            raise MismatchError(
                f"{place}: adapter of {name}: A {list(have[0])} and B {list(have[1])}, "
                f"wanted A {list(want[0])} and B {list(want[1])}",
                "it was made for another model: give the adapter of this one",
            )
        if len(factors.a) > largest_rank(layers[name]):
            raise MismatchError(
                f"{place}: adapter of {name}: rank {len(factors.a)}, the layer's smaller side is "
                f"{largest_rank(layers[name])}",
                "merge it with peft: as an adapter it is larger than the layer itself",
            )
        out[name] = factors
    return out


def factors_of(net: nn.Module) -> dict[str, Factors]:
    """The adapters on `net`, by the name of their layer."""
    return {n: Factors(a.A.detach(), a.B.detach(), float(a.scale)) for n, a in adapted(net).items()}


def read(folder: Path | str) -> dict[str, Factors]:
    """The adapters in a PEFT folder, or of a checkpoint whose adapters were not merged.

    Raises:
        UsageError: a checkpoint without adapters.
        EdgeGenError: as `read_peft` and `checkpoint.load`.
    """
    if (Path(folder) / CONFIG).is_file() or not (Path(folder) / checkpoint.CONFIG).is_file():
        return read_peft(folder)
    found = factors_of(checkpoint.load(folder).net)
    if not found:
        raise UsageError(
            f"{folder}: a checkpoint without adapters",
            "give one that was adapted with merge = false, or a PEFT folder",
        )
    return found
