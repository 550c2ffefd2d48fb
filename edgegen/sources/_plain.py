"""A `gpt` model in numpy alone, its weights mapped from safetensors: torch is not imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from edgegen.errors import FormatError, MismatchError
from edgegen.models._decoder import Config, graph, loop, shapes
from edgegen.models._numpy import Decoder
from edgegen.sources import Model, Part
from edgegen.spec import Array

SHOWN = 5
BF16 = "BF16"
KINDS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    BF16: np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Mapped(NamedTuple):
    """The tensors of a file, those in bfloat16 widened; and how many are stored as what."""

    tensors: dict[str, Array]
    stored: Counter[str]


def read(path: Path, hint: str) -> Mapped | None:
    """A safetensors file, mapped into memory; None where numpy lacks one of its types.

    Raises:
        FormatError: truncated or not safetensors; `hint` says what to do.
    """
    try:
        with safe_open(path, "np"):  # checks header and length
            pass
    except SafetensorError as error:
        raise FormatError(f"{path}: not a whole safetensors file: {error}", hint) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
    header.pop("__metadata__", None)
    if {entry["dtype"] for entry in header.values()} - set(KINDS):
        return None
    start = 8 + length
    is_empty = path.stat().st_size == start  # which cannot be mapped
    data = np.zeros(0, np.uint8) if is_empty else np.memmap(path, np.uint8, "r", start)
    tensors = {name: _tensor(data, entry) for name, entry in header.items()}
    return Mapped(tensors, Counter(_name(entry["dtype"]) for entry in header.values()))


def _name(kind: str) -> str:
    return "bfloat16" if kind == BF16 else np.dtype(KINDS[kind]).name


def _tensor(data: Array, entry: dict[str, Any]) -> Array:
    begin, end = entry["data_offsets"]
    array = data[begin:end].view(np.ndarray).view(KINDS[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == BF16:  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def assemble(
    name: str,
    config: Config,
    weights: Mapping[str, Array],
    files: dict[str, bytes],
    *,
    chat_template: str,
    history: tuple[dict[str, Any], ...],
    place: str,
) -> Model:
    """The model; its weights are those given, not copies, where they are float32 in rows already.

    Raises:
        FormatError, MismatchError: as `check`.
    """
    check(weights, shapes(config), place)
    ours = {n: np.require(array, np.float32, ["C", "A"]) for n, array in weights.items()}
    found = msgspec.structs.replace(loop(config), chat_template=chat_template)
    parts = {"model": Part(Decoder(config, ours), graph(config))}
    count = sum(array.size for array in ours.values())
    settings = msgspec.to_builtins(config)
    return Model(name, "gpt", settings, found, parts, files, history, count)


def check(weights: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Is there every wanted tensor, of the wanted shape, and no other?

    Raises:
        FormatError: tensors that are missing or unknown, by name.
        MismatchError: a tensor of another shape than the config says.
    """
    lost, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if lost or extra:
        raise FormatError(
            f"{place}: missing tensors: {_some(lost)}; unknown tensors: {_some(extra)}",
            "the weights and the config are not of the same model, or a shard is missing",
        )
    for name, tensor in weights.items():
        if tuple(tensor.shape) != wanted[name]:
            raise MismatchError(
                f"{place}: {name} is {tuple(tensor.shape)}, the config wants {wanted[name]}",
                "the weights and the config are not of the same model",
            )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest if names else "none"
