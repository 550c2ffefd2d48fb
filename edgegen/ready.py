"""What an export starts from: adapters taken off or merged, quantized layers folded.

A decoder in numpy has neither, and then torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen import rooms
from edgegen.errors import UsageError
from edgegen.exporters import PRECISIONS
from edgegen.exporters._grid import precision_name
from edgegen.exporters._switched import Placed, Switched
from edgegen.models._numpy import Decoder
from edgegen.sources import Model, Part, open_plain, open_source

if TYPE_CHECKING:
    from edgegen.folding import Folded


def opened(
    source: str | Model,
    formats: Sequence[str],
    inputs: Sequence[str],
    pixels: tuple[float, float] | None,
    *,
    changed: bool,
) -> Model:
    """The model `source` names: in numpy where every format takes it so, else in torch.

    `changed` says that something is to be done to it that needs torch.
    """
    if isinstance(source, Model):
        return source
    takers = [getattr(rooms.load("edgegen.exporters", name), "PLAIN", False) for name in formats]
    found = None if changed or inputs or pixels or not all(takers) else open_plain(source)
    return found or open_source(source, inputs, pixels)


def adapted(
    model: Model, adapters: Mapping[str, Path | str], merge: bool
) -> tuple[Model, tuple[dict[str, Placed], str]]:
    """The model without adapters, or with them merged; the others by name, and which is first."""
    if _is_plain(model) and not adapters and not merge:
        return model, ({}, "")
    from edgegen.exporters._adapters import merged, named, taken_off

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


def _is_plain(model: Model) -> bool:
    return all(isinstance(part.module, Decoder) for part in model.parts.values())


def switched(
    model: Model,
    placed: tuple[dict[str, Placed], str],
    formats: Sequence[str],
    folded: Mapping[str, Folded],
) -> Switched:
    """The adapters to be switched at run time, and where they may be.

    Raises:
        UnsupportedError: a format, or a layer whose input is rounded, that cannot take them.
    """
    if not placed[0]:
        return Switched()
    from edgegen.exporters._adapters import gather

    return gather(model.parts, *placed, formats, folded)


def _count(modules: Iterable[Any]) -> int:
    """The parameters of all modules, shared ones once; those of ONNX files are not known."""
    nets = [each for each in modules if not isinstance(each, Path)]
    return sum({id(p): p.numel() for net in nets for p in net.parameters()}.values())


def folded_parts(
    model: Model, precisions: Sequence[str] | None
) -> tuple[Model, dict[str, Folded], Sequence[str]]:
    """The model with quantized graphs as their own reference; what was folded; the precisions."""
    modules = {name: part.module for name, part in model.parts.items()}
    quantized = {name: module for name, module in modules.items() if _is_quantized(module)}
    if not quantized:
        for precision in set(precisions or ()) - set(PRECISIONS):
            raise UsageError(
                f"{model.name}: is not quantized, so it is not {precision}",
                f"take one of {', '.join(PRECISIONS)}, or quantize it first: edgegen compress",
            )
        return model, {}, precisions or ("fp32",)
    from edgegen.folding import fold

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


def _is_quantized(module: Any) -> bool:
    if isinstance(module, Path | Decoder):
        return False
    from edgegen.quantized import is_quantized

    return is_quantized(module)
