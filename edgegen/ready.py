"""What an export starts from: adapters taken off or merged, quantized layers folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgegen.errors import UsageError
from edgegen.exporters import PRECISIONS
from edgegen.exporters._adapters import Placed, merged, named, taken_off
from edgegen.exporters._grid import precision_name
from edgegen.folding import Folded, fold
from edgegen.quantized import is_quantized
from edgegen.sources import Model, Part


def adapted(
    model: Model, adapters: Mapping[str, Path | str], merge: bool
) -> tuple[Model, tuple[dict[str, Placed], str]]:
    """The model without adapters, or with them merged; the others by name, and which is first."""
    parts, own = taken_off(model.parts)
    found, first = named(parts, adapters, own, model.name)
    if merge and not found:
        raise UsageError(
            f"{model.name}: no adapters to merge", "leave --merge out, or add --adapter NAME=FOLDER"
        )
    if merge and len(adapters) > 1:
        raise UsageError(
            f"--merge: {len(adapters)} adapters: {', '.join(adapters)}",
            "give one: merged, they could not be told apart",
        )
    if merge:
        for placed in found.values():
            parts = merged(parts, placed)
        found, first = {}, ""
    if own:
        model = model._replace(parameters=_count(part.module for part in parts.values()))
    return model._replace(parts=parts), (found, first)


def _count(modules: Iterable[Any]) -> int:
    """The parameters of all modules, shared ones once; those of ONNX files are not known."""
    nets = [each for each in modules if not isinstance(each, Path)]
    return sum({id(p): p.numel() for net in nets for p in net.parameters()}.values())


def folded_parts(
    model: Model, precisions: Sequence[str] | None
) -> tuple[Model, dict[str, Folded], Sequence[str]]:
    """The model with quantized graphs as their own reference; what was folded; the precisions."""
    modules = {name: part.module for name, part in model.parts.items()}
    quantized = {n: m for n, m in modules.items() if not isinstance(m, Path) and is_quantized(m)}
    if not quantized:
        for precision in set(precisions or ()) - set(PRECISIONS):
            raise UsageError(
                f"{model.name}: is not quantized, so it is not {precision}",
                f"take one of {', '.join(PRECISIONS)}, or quantize it first: edgegen compress",
            )
        return model, {}, precisions or ("fp32",)
    folded = {name: fold(module) for name, module in quantized.items()}
    own = precision_name([w.scheme for f in folded.values() for w in f.weights.values()])
    if precisions and list(precisions) != [own]:
        raise UsageError(
            f"{model.name}: is quantized already ({own}), cannot be {', '.join(precisions)}",
            "leave --precision out, or export the checkpoint it was quantized from",
        )
    parts = dict(model.parts)
    for name, found in folded.items():
        parts[name] = Part(found.reference, parts[name].spec)
    plain = _count(folded[n].net if n in folded else module for n, module in modules.items())
    return model._replace(parts=parts, parameters=plain), folded, (own,)
