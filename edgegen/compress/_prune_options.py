"""What pruning can be asked for, and what contradicts itself or the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from edgegen.adapters import MERGE
from edgegen.compress import _decoder
from edgegen.compress._probe import TEXT
from edgegen.compress._work import Work
from edgegen.errors import UnsupportedError, UsageError

Kind = Literal["structured", "unstructured", "n:m"]
Scope = Literal["local", "global", "sensitivity"]
Importance = Literal["l1", "l2", "bn", "taylor", "similar"]


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """What goes, how much of it, and how what is lost is won back.

    `ratio` is the share that goes, of each layer alike (`scope` local), of all layers together
    by importance (global) or by the loss that is measured for each (sensitivity). `ratios` are
    for layers by name or pattern, before `ratio`; 0 leaves them as they are. `target_latency`
    ("0.5x") is instead of these: widths are chosen by a table measured on the target. `layers`
    are those that may be pruned at all.

    `kind` structured removes channels, of a text model `parts` of it (vocabulary, blocks,
    kv_groups, heads, mlp). `importance` "bn" is the scale of the batch norm, "taylor" the loss
    to first order, "similar" removes what has a twin and hands on what is read from it.
    `multiple` is what channels are rounded to; 0 measures it on the target.

    Pruning is done in `rounds`, with `steps` of training in `batch`es at `lr` after each.
    """

    ratio: float | None = None
    kind: Kind = "structured"
    scope: Scope = "local"
    importance: Importance = "l2"
    parts: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    ratios: dict[str, float] = {}
    target_latency: float | str = ""
    multiple: int = 0
    n: int = 2
    m: int = 4
    rounds: int = 1
    steps: int = 0
    batch: int = 16
    lr: float = 1e-4


def goal_of(options: Options) -> float:
    """The latency asked for as a share of today's; 0 for none."""
    text = str(options.target_latency).strip().removesuffix("x")
    try:
        return float(text or 0)
    except ValueError:
        raise UsageError(
            f"prune: target_latency {options.target_latency!r} is no share of today's latency",
            "write target_latency = 0.5, or --target-latency 0.5x",
        ) from None


def check(work: Work, options: Options) -> None:
    """Refuse what cannot be before any work is done."""
    if work.spec.layers:
        raise UnsupportedError(
            "prune: the model is quantized: its scales belong to the channels it has",
            "prune first, then quantize",
        )
    if work.spec.adapters:
        raise UnsupportedError(
            "prune: adapters are attached that belong to the layers as they are",
            MERGE,
        )
    goal = goal_of(options)
    given = {"ratio": options.ratio} if options.ratio is not None else {}
    given |= {"target_latency": goal} if options.target_latency != "" else {}
    for name, value in given.items():
        _check_ratio(name, value, 0 < value < 1)
    for pattern, value in options.ratios.items():
        _check_ratio(f"ratios: {pattern}", value, 0 <= value < 1)
    _check_contradictions(options, given)
    if work.spec.family != TEXT and options.parts:
        raise UnsupportedError(
            f"prune: parts = {list(options.parts)}: only models of text have these, this is a "
            f"{work.spec.family}",
            "leave parts out, and choose layers = ['decoder.*'] instead",
        )
    for part in options.parts:
        if part not in _decoder.PARTS:
            raise UsageError(
                f"prune: parts: no {part!r} in a model of text",
                f"have: {', '.join(_decoder.PARTS)}",
            )


def _check_ratio(name: str, value: float, ok: bool) -> None:
    if not ok:
        raise UsageError(
            f"prune: {name} is {value:g}, wanted more than 0 and less than 1",
            "0.5 removes half, 0.75 three quarters",
        )


def _check_contradictions(options: Options, given: Mapping[str, float]) -> None:
    sparse = options.kind != "structured"
    zeros = options.kind == "n:m"
    wrong = {
        "ratio and target_latency are both given": len(given) == 2,
        "neither ratio, ratios nor target_latency is given": not (given or options.ratios or zeros),
        f"n is {options.n}, m is {options.m}: wanted 1 <= n < m": zeros
        and not 1 <= options.n < options.m,
        "kind n:m keeps n of every m: no ratio": zeros and bool(given or options.ratios),
        f"target_latency, but {options.kind} pruning makes nothing faster": sparse
        and "target_latency" in given,
        f"importance = {options.importance!r} is for structured pruning": sparse
        and options.importance not in ("l1", "l2"),
        "parts are for structured pruning": sparse and bool(options.parts),
        "scope = 'sensitivity' is for structured pruning": sparse
        and options.scope == "sensitivity",
        "ratios are for scope = 'local'": bool(options.ratios) and options.scope != "local",
        "ratios and target_latency are both given": bool(options.ratios)
        and "target_latency" in given,
        "rounds is below 1": options.rounds < 1,
        "steps is below 0": options.steps < 0,
        "several rounds without training between them are one round": options.rounds > 1
        and not options.steps,
        "multiple is below 0": options.multiple < 0,
    }
    for what, found in wrong.items():
        if found:
            raise UsageError(f"prune: {what}", "see: help(edgegen.compress.prune.Options)")
