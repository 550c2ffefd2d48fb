"""A run of a recipe: what stays the same from step to step, what is kept of a step, and how the
gate comes to its verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgegen import checkpoint, records
from edgegen.bundle import Bundle, open_bundle
from edgegen.compress._gate import (
    Figures,
    bundle_of,
    judge,
    kept,
    over_budget,
    quality_of,
)
from edgegen.compress._work import Setting, Work
from edgegen.recipe import LEARNS, Recipe
from edgegen.steps import Entry, Verdict

ORIGINAL = "original.json"


class Run(NamedTuple):
    """What stays the same from step to step."""

    recipe: Recipe
    options: list[Any]
    folder: Path
    source: str
    original: Work | None  # where it is not the source
    setting: Setting
    data: str | None
    measure: bool
    keep_anyway: bool
    note: Callable[[str], None]
    show: Callable[[Entry], None]


def save(path: Path, work: Work, entry: Entry) -> Work:
    """Write a step's checkpoint with `entry` as the last of its history."""
    history = (*work.history[:-1], msgspec.to_builtins(entry))
    work = work._replace(history=history)
    checkpoint.save(path, work.spec, work.net, history, work.tokenizer, work.chat_template)
    return work


def load(path: Path) -> tuple[Work, Entry]:
    """A step's result as it was written: the next one starts from that and nothing else."""
    found = checkpoint.load(path)
    work = Work(found.spec, found.net, found.tokenizer, found.chat_template, found.history)
    return work, msgspec.convert(found.history[-1], Entry)


def baseline(run: Run, work: Work) -> None:
    """The source and the original, exported once; the original's quality, and the budgets tried
    on it: a figure that there is none of is not found out after an hour."""
    _exported(run, work, 0)
    if run.original:
        _exported(run, run.original, "original")
    path = run.folder / ORIGINAL
    if not path.is_file():
        records.write(_quality(run, _original(run)), path)
    figures = records.read(Figures, path)
    over_budget(run.recipe.gate, figures, figures)


def _original(run: Run) -> Bundle:
    return open_bundle(run.folder / f"bundle-{'original' if run.original else 0}")


def _quality(run: Run, bundle: Bundle) -> Figures:
    setting = run.setting
    return quality_of(
        bundle, _original(run), run.data, setting.target, run.recipe.gate, setting.report
    )


def verdict_of(run: Run, work: Work, number: int, measured: int, had: Verdict) -> Verdict:
    """What the gate says of a step, or why it says nothing."""
    if not run.measure:
        return Verdict("not measured", "run with --no-measure")
    if not run.recipe.steps[number - 1].gate:
        return Verdict("not asked", "the recipe says gate = false")
    if had.outcome == "refused" and run.keep_anyway:
        return kept(had)
    original = records.read(Figures, run.folder / ORIGINAL)
    before, after = open_bundle(run.folder / f"bundle-{measured}"), _exported(run, work, number)
    verdict = judge(
        before,
        after,
        run.recipe.gate,
        run.setting.target,
        original=original,
        was=_figures(run, measured, before),
        now=_quality(run, after),
        learns=run.recipe.steps[number - 1].kind in LEARNS,
        report=run.setting.report,
    )
    return kept(verdict) if verdict.outcome == "refused" and run.keep_anyway else verdict


def _figures(run: Run, number: int, bundle: Bundle) -> Figures:
    """The quality of the source, or of a step that was measured."""
    if number == 0:
        same = run.original is None
        return records.read(Figures, run.folder / ORIGINAL) if same else _quality(run, bundle)
    verdict = load(run.folder / f"step-{number}")[1].verdict
    return verdict.after.quality if verdict.after else {}


def _exported(run: Run, work: Work, name: int | str) -> Bundle:
    path = run.folder / f"bundle-{name}"
    return bundle_of(work, path, run.setting.target, run.setting.report)
