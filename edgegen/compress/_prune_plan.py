"""What goes from each layer, decided by importance, by measured loss or by measured time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from edgegen import records
from edgegen.compress import _decoder, _importance, _latency
from edgegen.compress._allocate import Counts, by_importance, by_loss, lanes_of, share
from edgegen.compress._dependency import trace
from edgegen.compress._groups import Gone, Group, choose, weights
from edgegen.compress._names import select
from edgegen.compress._probe import TEXT
from edgegen.compress._prune_options import Options, goal_of
from edgegen.compress._recover import Loss, loss_of
from edgegen.compress._remove import removed
from edgegen.compress._scan import examples, scan
from edgegen.compress._work import Setting, Work
from edgegen.errors import UnsupportedError, UsageError

TAYLOR_BATCHES = 8
PLAN = "plan.json"


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided before the first round: a killed run must not decide again."""

    counts: dict[str, int]
    units: dict[str, int]
    notes: dict[str, Any]


def groups_of(work: Work, parts: Iterable[str] = ()) -> tuple[tuple[Group, ...], dict[str, str]]:
    """All that can be removed from a model, and why other layers must stay as they are.

    `parts` are a decoder's: of all other models channels are traced.
    """
    if work.spec.family == TEXT:
        return tuple(g for part in parts for g in _decoder.groups_of(work, part)), {}
    found = trace(work.spec, work.net)
    if not found.groups:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(found.fixed.items())[:4])
        raise UnsupportedError(
            f"prune: no channel can be removed: {reasons or 'no layers with weights'}",
            "use kind = 'unstructured'",
        )
    return found.groups, found.fixed


def planned(work: Work, parts: list[str], options: Options, setting: Setting) -> Plan:
    """How many units go from each group; decided once, for widths are chosen by measurement."""
    path = setting.folder / PLAN
    if path.is_file():
        return records.read(Plan, path)
    if {"heads", "kv_groups"} <= set(parts):
        raise UsageError(
            "prune: parts: heads and kv_groups cut the same rows", "give each a step of its own"
        )
    groups, fixed = groups_of(work, parts)
    asked = _asked(groups, fixed, options)
    chosen = [group for group in groups if group.name in asked]
    _check_ties(groups, asked)
    multiple, rounding = _multiple(work, chosen, max(asked.values()), options, setting)
    counts, notes = _counts(work, chosen, asked, multiple, options, setting)
    if not any(counts.values()) and any(asked.values()):
        raise UsageError(
            f"prune: a ratio of {max(asked.values()):g} removes nothing: channels are rounded to "
            f"multiples of {multiple}",
            "use a larger ratio, or multiple = 1",
        )
    units = {group.name: group.units for group in chosen}
    layers = {name: [n, n - counts.get(name, 0)] for name, n in units.items()}
    notes |= {"layers": layers, "rounding": rounding} | ({"fixed": fixed} if fixed else {})
    plan = Plan(counts, units, notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(plan, path)
    return plan


def _asked(groups: Iterable[Group], fixed: Mapping[str, str], options: Options) -> dict[str, float]:
    """The ratio of each group that may be pruned, by its name.

    Raises:
        UsageError: a pattern that matches nothing.
        UnsupportedError: one that matches only layers that must stay as they are.
    """
    names = {name: g.name for g in groups for name in (g.name, *g.layers)}
    known = [*names, *(name for name in fixed if name not in names)]

    def matched(pattern: str, option: str) -> set[str]:
        found = select(known, [pattern], option)
        mine = {names[name] for name in found if name in names}
        if not mine:
            raise UnsupportedError(
                f"prune: {option}: {found[0]} cannot lose channels: {fixed[found[0]]}",
                "choose other layers",
            )
        return mine

    allowed = set(names.values())
    if options.layers:
        allowed = set().union(*(matched(pattern, "layers") for pattern in options.layers))
    ratio = options.ratio if options.ratio is not None else 1 - (goal_of(options) or 1.0)
    # With ratios alone, layers that none of them matches stay.
    asked = {} if options.ratios and options.ratio is None else dict.fromkeys(allowed, ratio)
    for pattern, value in options.ratios.items():
        asked |= dict.fromkeys(matched(pattern, "ratios") & allowed, value)
    return asked


def _check_ties(groups: Iterable[Group], asked: Mapping[str, float]) -> None:
    for lane in lanes_of(groups):
        if len({asked.get(group.name, 0.0) for group in lane}) > 1:
            raise UsageError(
                f"prune: {lane[0].tie} go from all layers alike: the cache has one shape",
                f"give all of them one ratio, or leave {lane[0].tie} out of parts",
            )


def _multiple(
    work: Work, groups: list[Group], ratio: float, options: Options, setting: Setting
) -> tuple[int, dict[str, Any]]:
    """What channels are rounded to, and how that was found."""
    if options.multiple:
        return options.multiple, {"multiple": options.multiple, "why": "as given"}
    kernels = [group for group in groups if group.kernel]
    if not kernels or not ratio:
        return 1, {"multiple": 1, "why": "no channels are removed"}
    state = work.net.state_dict()
    largest = max(kernels, key=lambda group: group.units * weights(group, state))
    stay = round(largest.units * (1 - ratio))
    if largest.units < 2 * _latency.MULTIPLES[1]:
        return 1, {"multiple": 1, "why": f"{largest.name} has only {largest.units} channels"}
    return _latency.favourite(work, largest, max(1, stay), setting)


def _counts(
    work: Work,
    groups: list[Group],
    asked: Mapping[str, float],
    multiple: int,
    options: Options,
    setting: Setting,
) -> tuple[Counts, dict[str, Any]]:
    """Units that go from each group, and what that was decided by."""
    goal = goal_of(options)
    if not goal and options.scope == "local":
        return {g.name: share(g, asked[g.name], multiple) for g in groups}, {"scope": "local"}
    scores = scores_of(work, groups, options, setting)
    if goal:
        counts, note = _by_latency(work, groups, scores, goal, options, setting, multiple)
        return counts, {"latency": note}
    assert options.ratio is not None
    if options.scope == "global":
        counts = by_importance(groups, options.ratio, multiple, scores)
        return counts, {"scope": "global: importance in units of its layer's mean"}
    losses, what = scan(work, setting, groups, scores)
    counts = by_loss(groups, options.ratio, multiple, losses)
    table = {
        name: {f"{ratio:.3g}": round(loss, 6) for ratio, loss in each.items()}
        for name, each in losses.items()
    }
    return counts, {"scope": f"sensitivity: {what}", "sensitivity": table}


def _by_latency(
    work: Work,
    groups: list[Group],
    scores: _importance.Scores,
    goal: float,
    options: Options,
    setting: Setting,
    multiple: int,
) -> tuple[Counts, dict[str, Any]]:
    """A decoder's layers get narrower alike: a table of each by itself would take hours."""

    def prune(counts: Mapping[str, int]) -> Work:
        gone = {g.name: choose(scores[g.name], counts.get(g.name, 0), g.strata) for g in groups}
        return removed(work, groups, gone)

    lanes: dict[str, list[Group]] = {}
    for group in groups:
        alike = group.name.rpartition(".")[2] if work.spec.family == TEXT else group.name
        lanes.setdefault(alike, []).append(group)
    listed = [(name, tuple(lane)) for name, lane in lanes.items()]
    return _latency.reach(work, listed, scores, prune, goal, setting, multiple)


def scores_of(
    work: Work, groups: Iterable[Group], options: Options, setting: Setting
) -> _importance.Scores:
    """The importance of every unit of every group."""
    match options.importance:
        case "l1" | "l2":
            return _importance.magnitude(work.net, groups, int(options.importance[1]))
        case "bn":
            return _importance.batch_norm_scale(work.net, groups)
        case "similar":
            return _importance.similarity(work.net, groups)
        case "taylor":
            return _importance.taylor(work.net, groups, _taylor_losses(work, options, setting))


def _taylor_losses(
    work: Work, options: Options, setting: Setting
) -> list[Callable[[nn.Module], Tensor]]:
    """The family's own loss on some batches; else each output with random signs.

    The square of what those change by is, on average, the square of what the outputs change by.
    """
    if work.spec.family in ("gpt", "vae") and (work.spec.family == TEXT or setting.material):
        loss, _ = loss_of(work, work.net, setting, options.batch)
        return [partial(_first, loss, step) for step in range(TAYLOR_BATCHES)]
    found = examples(work, setting, 8 * TAYLOR_BATCHES)
    generator = torch.Generator().manual_seed(setting.seed)

    def signed(batch: Any, net: nn.Module) -> Tensor:
        total = torch.zeros(())
        for output in found.run(net, batch):
            heads = torch.rand(output.shape, generator=generator) < 0.5
            total = total + torch.where(heads, output, -output).sum()
        return total

    return [partial(signed, batch) for batch in found.batches]


def _first(loss: Loss, step: int, net: nn.Module) -> Tensor:
    """The loss that is minimised; it is one of `net` already."""
    return next(iter(loss(step).values()))


def gone_in(
    work: Work,
    groups: list[Group],
    plan: Plan,
    done: float,
    options: Options,
    setting: Setting,
) -> Gone:
    """Units that go in a round, when the share `done` of all that go shall be gone after it."""
    now: Counts = {}
    for group in groups:
        whole = plan.counts[group.name]
        so_far = round(whole * done) // group.strata * group.strata
        now[group.name] = so_far - (plan.units[group.name] - group.units)
    groups = [group for group in groups if now[group.name] > 0]
    scores = scores_of(work, groups, options, setting)
    return {g.name: choose(scores[g.name], now[g.name], g.strata) for g in groups}
