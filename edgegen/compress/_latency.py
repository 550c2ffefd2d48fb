"""What the target takes for each width: measured there, never assumed; and kept on disk.

Source of the idea: Yang et al. 2018, arXiv:1804.03230 (NetAdapt): a table of measured latencies,
and a search for the widths that reach a goal with it.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import platformdirs
import torch
from msgspec import Struct
from torch import Tensor, nn

from edgegen import checkpoint, records, rooms
from edgegen.bundle import Bundle, OneShot
from edgegen.compress._allocate import Lane, allocate, counts_of, level, lost
from edgegen.compress._dependency import example
from edgegen.compress._gate import bundle_of, format_of
from edgegen.compress._groups import Group
from edgegen.compress._importance import Scores
from edgegen.compress._probe import TEXT
from edgegen.compress._work import Setting, Target, Work
from edgegen.devices import cpu
from edgegen.errors import GateError, UsageError
from edgegen.measure import interleave, job
from edgegen.profile import samples
from edgegen.sources import Model, Part
from edgegen.spec import GraphSpec, TensorSpec

LEVELS = (0.3, 0.6, 0.9)  # ratios of each lane that are measured
REPEATS, ROUNDS = 30, 3
TRIES = 4  # plans that are measured before a goal is given up
SLACK = 0.03  # by which a goal may be missed: the noise of a quiet machine
FURTHER = 4.0  # by how much more is asked for at most after a plan that fell short
MULTIPLES = (1, 2, 4, 8, 16, 32)
ALIKE = 1.03  # times per channel that are no further apart count as the same

Shape = tuple[int | str, ...]
Makers = Mapping[str, Callable[[Path], Bundle]]
Prune = Callable[[Mapping[str, int]], Work]  # counts by group -> the model without so many units


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds of each candidate, all measured in turns; and where."""

    what: str
    target: str
    ms: dict[str, float]
    repeats: int


def cache_folder() -> Path:
    """Where tables are kept."""
    return platformdirs.user_cache_path("edgegen") / "latency"


def place_of(target: Target) -> str:
    """Engine and device, and all else that a table depends on."""
    engine = rooms.load("edgegen.runtimes", target.runtime)
    on = f"{target.device} of {cpu.probe()[0].description}"
    return f"{target.runtime} {engine.version()} on {on}, threads {target.threads}"


def table(what: str, makers: Makers, identity: Any, setting: Setting) -> tuple[Table, bool]:
    """The times of all candidates, and whether they were on disk already.

    `identity` is what the times depend on beside the target.
    """
    place = place_of(setting.target)
    key = hashlib.sha256(msgspec.json.encode([what, place, identity, sorted(makers), REPEATS]))
    path = cache_folder() / f"{key.hexdigest()}.json"
    if path.is_file():
        return records.read(Table, path), True
    found = Table(what, place, times(makers, setting), REPEATS)
    records.write(found, path)
    return found, False


def times(makers: Makers, setting: Setting) -> dict[str, float]:
    """Median milliseconds of a step of each candidate, in fresh processes that take turns."""
    target = setting.target
    with tempfile.TemporaryDirectory(prefix="edgegen-latency-") as folder:
        jobs = []
        for number, make in enumerate(makers.values()):
            setting.report("export what is to be measured", number, len(makers))
            bundle = make(Path(folder) / f"c{number}")
            jobs.append(
                job(
                    bundle.path,
                    runtime=target.runtime,
                    device=target.device,
                    threads=target.threads,
                    repeats=REPEATS,
                )
            )
        profiles = interleave(jobs, rounds=ROUNDS, report=setting.report)
    return {name: median(samples(p)) for name, p in zip(makers, profiles, strict=True)}


def maker(work: Work, target: Target) -> Callable[[Path], Bundle]:
    """Exports a model where it is told to."""
    return lambda path: bundle_of(work, path, target)


def reach(
    work: Work,
    lanes: list[tuple[str, tuple[Group, ...]]],
    scores: Scores,
    prune: Prune,
    goal: float,
    setting: Setting,
    multiple: int,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts by group for a latency of `goal` times today's, with the least importance lost.

    The table has each lane narrowed alone. What several lost together is not quite the sum, so
    each plan is measured, and the next one asks for more or less by as much as it was off.

    Raises:
        UsageError: the narrowest model is still too slow.
        GateError: no plan that was measured reached the goal.
    """
    found, known = table("widths", *_candidates(work, lanes, prune, setting), setting)
    curves = [_curve(name, lane, found, scores, multiple) for name, lane in lanes]
    asked, tries = -math.log(goal), []
    for _ in range(TRIES):
        counts = allocate(curves, asked)
        if counts is None:
            break
        predicted = math.exp(-sum(_gain(curve, counts) for curve in curves))
        pair = {
            "before": maker(work, setting.target),
            "after": maker(prune(counts), setting.target),
        }
        measured = times(pair, setting)
        ratio = measured["after"] / measured["before"]
        tries.append({"predicted": round(predicted, 4), "measured": round(ratio, 4)})
        if ratio <= goal + SLACK:
            note = {"goal": goal, "tries": tries, "ms": measured, "target": found.target}
            return counts, note | {"table": found.ms, "from_disk": known}
        asked *= min(FURTHER, math.log(goal) / min(math.log(ratio), math.log(goal) / FURTHER))
    if not tries:
        most = math.exp(-sum(max(curve.gain) for curve in curves))
        raise UsageError(
            f"prune: target_latency: {goal:g}x is out of reach: pruned as far as was measured, "
            f"the model would take about {most:.2f}x",
            "ask for less, prune more parts, or take out blocks in a step before",
        )
    raise GateError(
        f"prune: target_latency: {goal:g}x was not reached; predicted and measured: "
        + ", ".join(f"{t['predicted']}x -> {t['measured']}x" for t in tries),
        "ask for less, prune more parts, or measure on a quieter machine",
    )


def _gain(curve: Lane, counts: Mapping[str, int]) -> float:
    return curve.gain[list(curve.counts).index(counts[curve.groups[0].name])]


def _candidates(
    work: Work, lanes: list[tuple[str, tuple[Group, ...]]], prune: Prune, setting: Setting
) -> tuple[Makers, Any]:
    """Each lane alone at each level, and the model as it is; and what their times depend on."""
    makers = {"as it is": maker(work, setting.target)}
    for name, lane in lanes:
        for count in sorted({level(lane[0], ratio) for ratio in LEVELS} - {0}):
            # Not the pruned model itself: all of them at once would fill the memory.
            counts = {group.name: count for group in lane}
            less = f"{name}: {count} of {lane[0].units} less"
            makers[less] = partial(_make, prune, counts, setting.target)
    spec = msgspec.structs.replace(work.spec, layers={}, adapters={})
    return makers, msgspec.to_builtins(spec)


def _make(prune: Prune, counts: Mapping[str, int], target: Target, path: Path) -> Bundle:
    return bundle_of(prune(counts), path, target)


def _curve(name: str, lane: tuple[Group, ...], found: Table, scores: Scores, multiple: int) -> Lane:
    """What each count of a lane costs in importance, and the logarithm of what it gains in time.

    Logarithms, for where two lanes meet in one layer their gains multiply.
    """
    known, base = {0: 0.0}, found.ms["as it is"]
    for count in {level(lane[0], ratio) for ratio in LEVELS} - {0}:
        known[count] = math.log(base / found.ms[f"{name}: {count} of {lane[0].units} less"])
    counts = [n for n in counts_of(lane, multiple) if n <= max(known)]
    gain = np.interp(counts, sorted(known), [known[n] for n in sorted(known)])
    return Lane(lane, counts, lost(lane, counts, scores), [float(g) for g in gain])


def favourite(work: Work, group: Group, stay: int, setting: Setting) -> tuple[int, dict[str, Any]]:
    """The multiple of channels that costs least a channel around `stay`; and how it was found.

    The first layer that makes `group` is measured alone, with a power of two more or less.
    """
    name, given = _layer(work, group)
    layer = work.net.get_submodule(name)
    top = -(-stay // MULTIPLES[-1]) * MULTIPLES[-1]
    counts = {top - m % MULTIPLES[-1]: m for m in MULTIPLES if top - m % MULTIPLES[-1] > 0}
    makers = {str(n): _alone(layer, n, given, setting.target) for n in counts}
    identity = [type(layer).__name__, _sizes(layer), list(given)]
    found, known = table("channels", makers, identity, setting)
    each = {m: found.ms[str(n)] / n for n, m in counts.items()}
    best = min(each.values())
    multiple = min(m for m, ms in each.items() if ms <= ALIKE * best)
    per = {str(n): round(found.ms[str(n)] / n * 1e6, 2) for n in sorted(counts)}
    note = {"multiple": multiple, "layer": name, "ns_a_channel": per}
    return multiple, note | {"target": found.target, "from_disk": known}


def _layer(work: Work, group: Group) -> tuple[str, tuple[int, ...]]:
    """The first layer of a group that mixes channels, and the shape of what goes into it."""
    name = next(n for n in group.layers if getattr(work.net.get_submodule(n), "groups", 1) == 1)
    seen: list[tuple[int, ...]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(tuple(given[0].shape))

    hook = work.net.get_submodule(name).register_forward_hook(look)
    try:
        with torch.no_grad():
            for module, graph in checkpoint.graphs(work.spec, work.net).values():
                module(*example(graph))
    finally:
        hook.remove()
    # Text is decoded one token at a time.
    return name, (1, 1, *seen[0][2:]) if work.spec.family == TEXT else seen[0]


def _sizes(layer: nn.Module) -> list[int]:
    weight: Tensor = layer.weight
    return list(weight.shape)


def _alone(
    layer: nn.Module, count: int, given: tuple[int, ...], target: Target
) -> Callable[[Path], Bundle]:
    """Exports the layer with `count` outputs."""

    def make(path: Path) -> Bundle:
        from edgegen.export import export

        module = _alike(layer, count).eval()
        shape: Shape = ("batch", *given[1:])
        with torch.no_grad():
            out = module(torch.zeros(1, *given[1:])).shape
        graph = GraphSpec(
            "model",
            (TensorSpec("x", "float32", shape),),
            (TensorSpec("y", "float32", ("batch", *out[1:])),),
        )
        parts = {"model": Part(module, graph)}
        size = sum(p.numel() for p in module.parameters())
        model = Model(path.name, "module", {}, OneShot("model"), parts, {}, (), size)
        (bundle,) = export(model, path, formats=[format_of(target)])
        return bundle

    return make


def _alike(layer: nn.Module, count: int) -> nn.Module:
    """A layer of that kind with another number of outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, count, layer.bias is not None)
    made: nn.Module = type(layer)(
        layer.in_channels,
        count,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        dilation=layer.dilation,
        bias=layer.bias is not None,
    )
    return made
