"""Pruning: whole channels, heads, groups, blocks and tokens; or zeros among the weights.

Only what is removed whole makes a model faster. Zeros make a compressed file smaller.

Source of the schedule: Zhu and Gupta 2017, arXiv:1710.01878.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgegen import checkpoint
from edgegen.compress import _decoder, _vocabulary
from edgegen.compress._fit import Fit
from edgegen.compress._groups import choose
from edgegen.compress._probe import TEXT
from edgegen.compress._prune_options import Options, check
from edgegen.compress._prune_plan import gone_in, groups_of, planned
from edgegen.compress._recover import recover
from edgegen.compress._remove import removed
from edgegen.compress._scan import examples
from edgegen.compress._sparse import sparse
from edgegen.compress._work import Setting, Work
from edgegen.errors import UsageError

__all__ = ["Options", "apply"]


def apply(work: Work, options: Options, setting: Setting) -> Work:
    """The pruned model; `notes` say what went from each layer, and what could not.

    Raises:
        UsageError: a ratio outside (0, 1), a pattern that matches nothing, options that contradict
            each other, or nothing that would be left of a layer.
        UnsupportedError: the model is quantized or carries adapters, has no channels that can be
            traced, or a part is asked for that its family does not have.
        GateError: no widths that were measured reach the target latency.
    """
    check(work, options)
    if options.kind != "structured":
        return sparse(work, options, setting)
    return _structured(work, options, setting)


def _structured(work: Work, options: Options, setting: Setting) -> Work:
    before = work
    notes: dict[str, Any] = {"kind": options.kind, "importance": options.importance}
    parts = options.parts
    if work.spec.family == TEXT:
        parts = parts or _decoder.default_parts(_decoder.config_of(work.spec))
        notes["parts"] = list(parts)
        work, setting, whole = _whole_parts(work, parts, options, setting)
        notes |= whole
    finer = [p for p in parts if p not in ("vocabulary", "blocks")]
    if finer or work.spec.family != TEXT:
        work, found = _rounds(work, finer, options, setting)
        notes |= found
    elif options.steps:
        work, trained = recover(work, setting, _fit(options), 0)
        notes["recovery"] = [trained]
    notes["parameters"] = [_exported(before), _exported(work)]
    return work._replace(notes=notes)


def _whole_parts(
    work: Work, parts: Iterable[str], options: Options, setting: Setting
) -> tuple[Work, Setting, dict[str, Any]]:
    """Tokens and blocks, which go in one round; the data in the tokens that stay."""
    notes: dict[str, Any] = {}
    coarse = [part for part in ("vocabulary", "blocks") if part in parts]
    if coarse and options.ratio is None:
        raise UsageError(
            f"prune: parts: {', '.join(coarse)}: only ratio says how many go",
            "give them a step of their own with ratio = 0.25",
        )
    if "vocabulary" in coarse:
        work, setting, notes["vocabulary"] = _fewer_tokens(work, options, setting)
    if "blocks" in coarse:
        work, notes["blocks"] = _fewer_blocks(work, options, setting)
    return work, setting, notes


def _fewer_tokens(
    work: Work, options: Options, setting: Setting
) -> tuple[Work, Setting, dict[str, Any]]:
    assert options.ratio is not None
    gone = _vocabulary.choose_tokens(work, options.ratio, setting.material)
    old = work.tokenizer
    assert old is not None
    names = _vocabulary.names_of(old, gone)
    total = _decoder.config_of(work.spec).vocab_size
    work, _ = _vocabulary.without_tokens(work, gone)
    if setting.material is not None:
        setting = setting._replace(material=_vocabulary.recoded(setting.material, old, work))
    by = "use in the data" if setting.material is not None else "the order of the merges"
    note = {"tokens": [total, total - len(gone)], "chosen_by": by, "gone": names}
    return work, setting, note | {"says": "a token's id is another one now: so is the tokenizer"}


def _fewer_blocks(work: Work, options: Options, setting: Setting) -> tuple[Work, dict[str, Any]]:
    assert options.ratio is not None
    depth = _decoder.config_of(work.spec).num_hidden_layers
    count = round(depth * options.ratio)
    if not 0 < count < depth:
        raise UsageError(
            f"prune: parts: blocks: a ratio of {options.ratio} takes {count} of {depth} blocks",
            f"take at least 1 and leave 1: a ratio from {1 / depth:.2g} to {1 - 1 / depth:.2g}",
        )
    found = examples(work, setting, 16)
    scores = _decoder.block_scores(work.net, list(found.batches))
    gone = choose(scores, count)
    note = {
        "depth": [depth, depth - count],
        "gone": gone,
        "influence": [round(float(s), 4) for s in scores],
        "on": found.origin,
    }
    return _decoder.without_blocks(work, gone), note


def _rounds(
    work: Work, parts: list[str], options: Options, setting: Setting
) -> tuple[Work, dict[str, Any]]:
    """Prune to the plan in several rounds: a few units less, and some training, in each."""
    plan = planned(work, parts, options, setting)
    recovery, left = [], dict(plan.counts)
    for number in range(options.rounds):
        done = 1 - (1 - (number + 1) / options.rounds) ** 3
        # A part that is done with may have nothing more that could go.
        ends = {"mlp" if name.endswith(".mlp") else "attention" for name, n in left.items() if n}
        open_ = [part for part in parts if ("mlp" if part == "mlp" else "attention") in ends]
        groups = [g for g in groups_of(work, open_)[0] if left.get(g.name)]
        gone = gone_in(work, groups, plan, done, options, setting)
        left |= {name: left[name] - len(units) for name, units in gone.items()}
        work = removed(work, groups, gone, merge=options.importance == "similar")
        if options.steps:
            work, trained = recover(work, setting, _fit(options), number)
            recovery.append(trained)
    return work, plan.notes | ({"recovery": recovery} if recovery else {})


def _fit(options: Options) -> Fit:
    return Fit(steps=options.steps, batch=options.batch, lr=options.lr)


def _exported(work: Work) -> int:
    """The parameters of what is exported."""
    parts = checkpoint.graphs(work.spec, work.net).values()
    return sum({id(p): p.numel() for part, _ in parts for p in part.parameters()}.values())
