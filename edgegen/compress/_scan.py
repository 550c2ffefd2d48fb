"""What each group of channels costs at each ratio, measured: the sensitivity of pruning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgegen.compress._allocate import level
from edgegen.compress._groups import Group, choose, shrink, silence
from edgegen.compress._importance import Scores
from edgegen.compress._probe import Probe, measured, probe
from edgegen.compress._work import Setting, Work

RATIOS = (0.25, 0.5, 0.75)
SAMPLES, TOKENS = 32, 128


def examples(work: Work, setting: Setting, samples: int) -> Probe:
    """Batches to look at a model with, no longer than it has positions."""
    longest = int(work.spec.config.get("max_position_embeddings", TOKENS))
    return probe(work, setting, samples=samples, tokens=min(TOKENS, longest))


def scan(
    work: Work,
    setting: Setting,
    groups: Iterable[Group],
    scores: Scores,
    ratios: Sequence[float] = RATIOS,
) -> tuple[dict[str, dict[float, float]], str]:
    """The loss by group and ratio when that group alone is pruned; and what was measured.

    Units go in the order of `scores`. A ratio at which nothing would go is left out.
    """
    groups = list(groups)
    found = examples(work, setting, SAMPLES)
    name, loss, _ = measured(work, setting, found)
    table: dict[str, dict[float, float]] = {}
    for number, group in enumerate(groups):
        setting.report("sensitivity to pruning", number, len(groups))
        table[group.name] = {}
        for ratio in ratios:
            count = level(group, ratio)
            if not count:
                continue
            gone = choose(scores[group.name], count, group.strata)
            # Of a decoder's layers all or none lose heads: alone, they can only be silent.
            small = (
                silence(work.net, group, gone)
                if group.tie
                else shrink(work.net, [group], {group.name: gone})
            )
            table[group.name][count / group.units] = loss(small)
    setting.report("sensitivity to pruning", len(groups), len(groups))
    return table, f"{name} on {found.origin}"
