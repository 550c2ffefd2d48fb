"""The precision of each layer: as asked for, or mixed under a budget by the ledger."""

from __future__ import annotations

import copy
import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgegen.checkpoint import graphs
from edgegen.compress._mixed import Choice, Plan, good_enough, loss_of, size_of, within
from edgegen.compress._names import select
from edgegen.compress._probe import measured, probe
from edgegen.compress._scheme import assign, fitted, matrix, scheme_of, size_bytes
from edgegen.compress._work import Setting, Work
from edgegen.errors import UsageError
from edgegen.sensitivity import GROUP, SAMPLES, TOKENS, Sensitivity, changed, layers_of, ledger
from edgegen.spec import Scheme

if TYPE_CHECKING:
    from edgegen.compress.quantize import Options

GROUP_SIZE = 64  # columns that share a scale, below 8 bits
DECIBEL, PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?dB"), re.compile(r"\+?(\d+(?:\.\d+)?)%")


def schemes_of(
    layers: dict[str, nn.Module], options: Options
) -> tuple[dict[str, Scheme], dict[str, Any]]:
    """The scheme of each layer, and what about that was not as asked for."""
    kept = select(layers, options.keep, "keep") if options.keep else []
    own: dict[str, str] = {}
    for pattern, precision in options.layers.items():
        own |= dict.fromkeys(select(layers, [pattern], "layers"), precision)
    schemes: dict[str, Scheme] = {}
    notes: dict[str, Any] = {}
    skipped = dict.fromkeys(kept, "asked to keep")
    unfit: dict[str, str] = {}
    for name, layer in layers.items():
        scheme = _scheme_for(name, layer, own.get(name), options)
        if name in kept or scheme is None:
            skipped.setdefault(name, "embedding_bits = 0")
            continue
        schemes[name], note = fitted(scheme, matrix(layer).shape[1])
        if note:
            unfit[name] = note
    if not schemes:
        raise UsageError("quantize: every layer is kept float", "keep fewer")
    notes |= {"float": skipped} if skipped else {}
    return schemes, notes | ({"group size": unfit} if unfit else {})


def _scheme_for(name: str, layer: nn.Module, own: str | None, options: Options) -> Scheme | None:
    if own is not None:
        return scheme_of(own, options.group_size or GROUP_SIZE)
    bits = options.bits if isinstance(options.bits, int) else 8
    words = is_of_words(name, layer)
    if words:
        bits = options.embedding_bits
    if bits == 0:
        return None
    symmetric = bits == 8 if options.symmetric is None else options.symmetric
    group = options.group_size
    if group is None:
        group = 0 if bits == 8 else GROUP_SIZE
    inputs = 8 if options.activations == "static" and not words else 0
    codes = options.method == "codebook" and bits < 8
    return Scheme(bits, group, symmetric or codes, codes, inputs)


def is_of_words(name: str, layer: nn.Module) -> bool:
    """Has it a row a word: an embedding or the output layer of text?"""
    return isinstance(layer, nn.Embedding) or name == "lm_head"


def mixed(
    work: Work, schemes: dict[str, Scheme], options: Options, setting: Setting
) -> tuple[dict[str, Scheme], dict[str, Any]]:
    """The schemes with those of `choices` that lose least within the budget, by measurement; and
    what was decided on. Rows of words and layers with a precision of their own keep it.

    Raises:
        UsageError: a budget that cannot be met or read.
    """
    layers = layers_of(work)
    free = [n for n in schemes if not is_of_words(n, layers[n]) and not _own(n, layers, options)]
    if not free:
        raise UsageError("quantize: no layer is left to choose for", "give fewer in layers or keep")
    drawn = options.calibration == "self"
    found = ledger(work, setting, options.choices, drawn=drawn)
    table = {name: _choices(name, layers[name], options, found) for name in free}
    told: dict[str, Any] = {"measure": found.measure, "data": found.data}
    if options.quality:
        plan, loss = _by_quality(work, table, options, setting, found)
        told["measured loss"] = loss
    else:
        plan = within(table, _budget(work, schemes, layers, free, options))
    sizes = {name: layers[name].weight.numel() for name in free}
    told |= {"ledger sum": loss_of(plan), "mb": size_of(plan) / 1e6}
    told["average bits"] = 8 * size_of(plan) / sum(sizes.values())
    chosen = {n: _scheme(choice.name, layers[n]) for n, choice in plan.items()}
    return schemes | chosen, told


def _own(name: str, layers: dict[str, nn.Module], options: Options) -> bool:
    return any(name in select(layers, [pattern], "layers") for pattern in options.layers)


def _scheme(choice: str, layer: nn.Module) -> Scheme:
    return fitted(scheme_of(choice, GROUP), matrix(layer).shape[1])[0]


def _choices(name: str, layer: nn.Module, options: Options, found: Sensitivity) -> list[Choice]:
    rows, columns = matrix(layer).shape
    return [
        Choice(c, size_bytes(_scheme(c, layer), rows, columns), found.loss(name, c))
        for c in options.choices
    ]


def _budget(
    work: Work,
    schemes: dict[str, Scheme],
    layers: dict[str, nn.Module],
    free: list[str],
    options: Options,
) -> int:
    """Bytes for the free layers: their share of the average, or what the others leave."""
    if options.average_bits is not None:
        total = sum(layers[name].weight.numel() for name in free)
        return int(total * options.average_bits / 8)
    assert options.size_mb is not None
    fixed = {n: s for n, s in schemes.items() if n not in free}
    return int(options.size_mb * 1e6) - weight_bytes(work, fixed, free)


def weight_bytes(work: Work, schemes: dict[str, Scheme], without: list[str] | None = None) -> int:
    """All weights that are exported, in bytes: quantized ones as `schemes` says, the rest fp32."""
    layers = layers_of(work)
    parts = graphs(work.spec, work.net).values()
    exported = {id(p): p.numel() for module, _ in parts for p in module.parameters()}
    total = 0
    for name, layer in layers.items():
        weight = layer.weight
        exported.pop(id(weight), None)
        if name not in (without or []):
            total += size_bytes(schemes.get(name), *matrix(layer).shape)
    return total + 4 * sum(exported.values())


def limit_of(quality: str, measure: str, reference: float) -> float:
    """The most that may be lost: "+1%" of perplexity or ELBO, "25dB" of the outputs' SQNR.

    Raises:
        UsageError: not understood, or not for this measure.
    """
    percent, decibel = PERCENT.fullmatch(quality.strip()), DECIBEL.fullmatch(quality.strip())
    if percent and measure == "kl_nats":
        return math.log1p(float(percent[1]) / 100)
    if percent and measure == "elbo_nats":
        return float(percent[1]) / 100 * reference
    if decibel and measure == "noise":
        return float(10 ** (-float(decibel[1]) / 10))
    wanted = '"25dB" (SQNR of the outputs)' if measure == "noise" else '"+1%"'
    raise UsageError(f"quantize: quality = {quality!r} is no bound of {measure}", f"give {wanted}")


def _by_quality(
    work: Work,
    table: dict[str, list[Choice]],
    options: Options,
    setting: Setting,
    found: Sensitivity,
) -> tuple[Plan, float]:
    limit = limit_of(options.quality, found.measure, found.reference)
    drawn = options.calibration == "self"
    batches = probe(work, setting, samples=SAMPLES, tokens=TOKENS, drawn=drawn)
    _, loss, _ = measured(work, setting, batches)

    def measure(plan: Plan) -> float:
        net = copy.deepcopy(work.net)
        for name, choice in plan.items():
            layer = net.get_submodule(name)
            with torch.no_grad():
                assign(layer, changed(matrix(layer), choice.name))
        return loss(net)

    return good_enough(table, limit, measure)
