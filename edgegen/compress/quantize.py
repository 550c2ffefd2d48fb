"""Weights as integers of few bits, and with `activations` inputs as uint8, without training.

    method      rtn       round to nearest, with `clip` in the range of the least squared error
                hqq       half-quadratic: the least error^0.7, no data
                gptq      columns one by one, later ones make good the error; needs data
                awq       scales by the strength of inputs, folded into the layer before; needs data
                codebook  2^bits free values a layer, scaled by group
    smooth      smoothquant (decoders), equalise (convolutions with ReLU between them)
    bits        2 to 8, or "mixed": each layer's from `choices` by what it loses, under one of
                `size_mb`, `average_bits` (scales included) and `quality` ("+1%", "25dB")

Data-free: rtn, hqq, codebook, equalise, bias_correction = "analytic" (from batch norms); the others
with `calibration = "self"`, text that the model says itself. Models of images need no data: latents
are drawn.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from edgegen.adapters import MERGE
from edgegen.compress._bias import shift_biases
from edgegen.compress._layerwise import How, Method, Rounded, Zero, plain, round_layers
from edgegen.compress._observers import Observer, Range
from edgegen.compress._precision import mixed, schemes_of, weight_bytes
from edgegen.compress._probe import TEXT, Probe, probe
from edgegen.compress._replay import Replay
from edgegen.compress._rounding import Grid, sqnr_db
from edgegen.compress._scheme import matrix, name_of
from edgegen.compress._smooth import activation_aware, equalised, fold, links, migrated, seams, seen
from edgegen.compress._static import correct_bias, ranges
from edgegen.compress._work import Setting, Work
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.folding import settle_biases
from edgegen.quantized import attach, is_quantized, set_input, set_weight
from edgegen.sensitivity import layers_of
from edgegen.spec import Scheme

MIXED = "mixed"
NEEDS_DATA = ("gptq", "awq")
SYMMETRIC = ("native",)  # engines whose kernels have no zero points
FREE = 'use calibration = "self", or method = "hqq", which needs none'


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """How to quantize; the module says what the methods are.

    `group_size` columns share a scale: None is 64 below 8 bits, else a row; 0 a row, -1 all.
    `embedding_bits` are those of embeddings and of the output layer, 0 for float. `symmetric` None
    gives fewer than 8 bits a zero point where the engine has any; `zero` "auto" lets it be no whole
    number if the weights lie on such a grid. `keep` stays float; `layers` have their own precision.
    """

    bits: Annotated[int, Meta(ge=2, le=8)] | Literal["mixed"] = 8
    method: Method = "rtn"
    group_size: Annotated[int, Meta(ge=-1)] | None = None
    symmetric: bool | None = None
    clip: bool = False
    zero: Zero = "auto"
    embedding_bits: Annotated[int, Meta(ge=0, le=8)] = 8
    activations: Literal["float", "dynamic", "static"] = "float"
    observer: Observer = "mse"
    smooth: Literal["none", "smoothquant", "equalise"] = "none"
    alpha: Annotated[float, Meta(ge=0, le=1)] = 0.5
    bias_correction: bool | Literal["analytic"] = False
    calibration: Literal["data", "self"] = "data"
    samples: Annotated[int, Meta(ge=1)] = 32
    tokens: Annotated[int, Meta(ge=2)] = 256
    damping: Annotated[float, Meta(gt=0)] = 0.01
    act_order: bool = False
    keep: tuple[str, ...] = ()
    layers: dict[str, str] = {}
    choices: tuple[str, ...] = ("int8", "int4-g32", "int4-g64", "int4-g128")
    size_mb: float | None = None
    average_bits: float | None = None
    quality: str = ""


def apply(work: Work, options: Options, setting: Setting) -> Work:
    """The model with quantized layers; each layer's grid and error stand in the notes.

    Raises:
        UsageError: options that contradict each other; a method that needs data, without any; a
            pattern that matches no layer; a budget that cannot be met.
        UnsupportedError: already quantized; nothing to quantize; no place for scales to go.
        MismatchError: weights or inputs that are not finite.
    """
    _check(work, options, setting)
    net = copy.deepcopy(work.net)
    layers = layers_of(work._replace(net=net))
    _check_layers(layers, options)
    if options.symmetric is None and setting.target.runtime in SYMMETRIC:
        options = msgspec.structs.replace(options, symmetric=True)
    schemes, notes = schemes_of(layers, options)
    if options.bits == MIXED:
        schemes, notes["mixed"] = mixed(work, schemes, options, setting)
    found = _calibration(work, options, setting)
    if found is not None:
        notes["calibration"] = found.origin
    folded, importance = _smoothed(net, schemes, options, found, setting)
    before = {name: matrix(layers[name]).clone() for name in schemes}
    how = How(options.method, options.clip, options.zero, options.damping, options.act_order)
    rounded = round_layers(net, schemes, how, found, setting.report, importance)
    notes |= folded | ({"grid": rounded.notes} if rounded.notes else {})
    if options.bias_correction == "analytic":
        after = {name: grid.weight for name, grid in rounded.grids.items()}
        notes["bias corrected"] = shift_biases(net, before, after)
    elif options.bias_correction and found is not None:
        notes["bias corrected"] = correct_bias(net, work.net, list(schemes), found, setting.report)
    bounds: dict[str, Range] = {}
    if options.activations == "static" and found is not None:
        bounds, lost = _bounds(net, schemes, found, options, setting)
        schemes |= lost
        notes |= {"input stays float, it did not run": list(lost)} if lost else {}
    _fill(net, schemes, rounded.grids, bounds)
    notes |= _told(work, options, schemes, rounded, before)
    spec = msgspec.structs.replace(work.spec, layers=schemes)
    return work._replace(spec=spec, net=net.eval(), notes=notes)


def _check(work: Work, options: Options, setting: Setting) -> None:
    if is_quantized(work.net) or work.spec.layers:
        raise UnsupportedError(
            "quantize: the model is quantized already",
            "start from the checkpoint before it was quantized",
        )
    if work.spec.adapters:
        raise UnsupportedError("quantize: adapters are attached", MERGE)
    budgets = [options.size_mb, options.average_bits, options.quality or None]
    given = sum(budget is not None for budget in budgets)
    if options.bits == MIXED and given != 1:
        raise UsageError(
            f"quantize: bits = {MIXED!r} with {given} budgets",
            "give exactly one of size_mb, average_bits, quality",
        )
    if options.bits != MIXED and given:
        raise UsageError(
            f"quantize: a budget is for mixed precision, found bits = {options.bits}",
            f'say bits = "{MIXED}"',
        )
    if options.activations != "float" and options.bits != 8:
        raise UsageError(
            f"quantize: {options.activations} activations with {options.bits} bits",
            "engines multiply 8-bit inputs with 8-bit weights: say bits = 8",
        )
    if options.activations == "static" and (options.group_size or 0) > 0:
        raise UsageError(
            f"quantize: static activations with groups of {options.group_size}",
            "engines take one scale a row then: leave group_size out",
        )
    if options.method == "codebook" and options.activations != "float":
        raise UsageError("quantize: no engine multiplies codebooks by integers", "use method = rtn")
    if work.spec.family == TEXT and setting.material is None and options.calibration == "data":
        _check_needs(options)
    if work.spec.family != TEXT and (options.method == "awq" or options.smooth == "smoothquant"):
        what = "awq" if options.method == "awq" else "smoothquant"
        raise UnsupportedError(
            f"quantize: {what} folds scales into a decoder's norms, this is {work.spec.family}",
            "use gptq or hqq; for convolutions smooth = equalise",
        )


def _check_needs(options: Options) -> None:
    """Raise `UsageError` where text is needed."""
    needs: list[str] = [options.method] if options.method in NEEDS_DATA else []
    needs += ["smoothquant"] if options.smooth == "smoothquant" else []
    needs += ["static activations"] if options.activations == "static" else []
    needs += ["bias correction"] if options.bias_correction is True else []
    needs += ["mixed precision"] if options.bits == MIXED else []
    if needs:
        raise UsageError(f"quantize: {needs[0]} needs data", f"give --data text:FILES; or {FREE}")


def _check_layers(layers: dict[str, nn.Module], options: Options) -> None:
    if not layers:
        raise UnsupportedError("quantize: no layer that can be quantized", "see edgegen inspect")
    for name, layer in layers.items():
        if not bool(torch.isfinite(layer.weight).all()):
            raise MismatchError(f"{name}: its weight is not finite", "train or copy it again")
    if options.activations == "dynamic" and not all(
        isinstance(layer, nn.Linear | nn.Embedding) for layer in layers.values()
    ):
        raise UnsupportedError(
            "quantize: dynamic activations are for linear layers, this model has convolutions",
            "use activations = static",
        )


def _calibration(work: Work, options: Options, setting: Setting) -> Probe | None:
    needed = (
        options.method in NEEDS_DATA
        or options.smooth == "smoothquant"
        or options.activations == "static"
        or options.bias_correction is True
    )
    if not needed:
        return None
    drawn = options.calibration == "self"
    return probe(work, setting, samples=options.samples, tokens=options.tokens, drawn=drawn)


def _smoothed(
    net: Any,
    schemes: dict[str, Scheme],
    options: Options,
    found: Probe | None,
    setting: Setting,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fold scales into `net`, in place; what was done, and AWQ's importance of columns."""
    if options.smooth == "equalise":
        scales = {f"{link.first} -> {link.second}": equalised(net, link) for link in links(net)}
        if not scales:
            raise UnsupportedError(
                "quantize: equalise finds no two layers with only ReLU or LeakyReLU between them",
                "use smoothquant for decoders, or leave smooth out",
            )
        told = {name: f"{s.min():.3g} to {s.max():.3g}" for name, s in scales.items()}
        return {"equalised": told}, {}
    aware = options.method == "awq"
    if not aware and options.smooth == "none":
        return {}, {}
    assert found is not None
    places = [seam for seam in seams(net) if all(name in schemes for name in seam.targets)]
    stats = seen(Replay(net, found), [name for seam in places for name in seam.targets])
    alphas: dict[str, float] = {}
    importance: dict[str, Tensor] = {}
    how = How("rtn", True, options.zero if options.zero != "auto" else "whole")
    for index, seam in enumerate(places):
        mine = stats[seam.targets[0]]
        scale, alpha = (
            activation_aware(net, seam, mine, _rounds(schemes, how))
            if aware
            else (migrated(net, seam, mine, options.alpha), options.alpha)
        )
        fold(net, seam, scale)
        alphas[seam.source] = alpha
        importance |= dict.fromkeys(seam.targets, mine.hessian.diagonal() / scale.square())
        setting.report("folding scales", index + 1, len(places))
    return {f"{'awq' if aware else 'smoothquant'} alpha": alphas}, importance if aware else {}


def _rounds(schemes: dict[str, Scheme], how: How) -> Callable[[str, Tensor, Tensor], Tensor]:
    return lambda name, weight, importance: plain(weight, schemes[name], how, importance).weight


def _bounds(
    net: nn.Module,
    schemes: dict[str, Scheme],
    found: Probe,
    options: Options,
    setting: Setting,
) -> tuple[dict[str, Range], dict[str, Scheme]]:
    """Ranges of inputs, and the schemes of layers that never ran, whose inputs stay float."""
    names = [name for name, scheme in schemes.items() if scheme.input_bits]
    bounds = ranges(net, names, found, options.observer, setting.report)
    lost = [name for name in names if name not in bounds]
    return bounds, {n: msgspec.structs.replace(schemes[n], input_bits=0) for n in lost}


def _fill(
    net: nn.Module,
    schemes: dict[str, Scheme],
    grids: dict[str, Grid],
    bounds: dict[str, Range],
) -> None:
    """Attach the quantizers and set them; the float weights lie on the grid already."""
    attach(net, schemes)
    for name, grid in grids.items():
        layer = net.get_submodule(name)
        set_weight(layer, grid.scale, grid.zero, grid.table)
        if name in bounds:
            set_input(layer, *bounds[name])
    settle_biases(net)


def _told(
    work: Work,
    options: Options,
    schemes: dict[str, Scheme],
    rounded: Rounded,
    before: dict[str, Tensor],
) -> dict[str, Any]:
    """The notes: sizes, how many layers of which precision, and each layer's with its error."""
    layers = {
        name: f"{name_of(scheme)} {sqnr_db(before[name], rounded.grids[name].weight):.1f} dB"
        for name, scheme in schemes.items()
    }
    notes: dict[str, Any] = {
        "method": options.method,
        "weights_mb": [weight_bytes(work, {}) / 1e6, weight_bytes(work, schemes) / 1e6],
        "precisions": dict(Counter(map(name_of, schemes.values()))),
        "layers": layers,
    }
    if options.activations == "dynamic":
        notes["dynamic"] = (
            "weights int8; inputs are rounded as the engine does at run time: ONNX Runtime's 8-bit "
            "kernel in groups of columns, OpenVINO's dynamic quantization where it is on"
        )
    if any(scheme.bits == 3 for scheme in schemes.values()):
        notes["3 bits"] = "no engine has a kernel: stored in 4 bits, no smaller than int4"
    return notes
