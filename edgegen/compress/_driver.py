"""One recipe, step by step; a killed run goes on at the step it was in.

OUTPUT.compressing/
  plan.json     this file's `Plan`: a run goes on only with the steps it began with
  original.json the quality of the original model
  step-N/       the checkpoint after step N; its last entry says what the gate said
  work-N/       what step N itself keeps while it runs
  bundle-N/     step N exported for the target; 0 is the source
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from edgegen import checkpoint, records, rooms
from edgegen.compress._gate import (
    OF_TOKENS,
    format_of,
)
from edgegen.compress._material import read_material
from edgegen.compress._open import check_finite, open_work, sha256_of, traces
from edgegen.compress._run import Run, baseline, load, save, verdict_of
from edgegen.compress._vocabulary import likewise
from edgegen.compress._work import Setting, Target, Work
from edgegen.errors import EdgeGenError, GateError, UnsupportedError, UsageError
from edgegen.exporters._adapters import FORMATS as SWITCHED
from edgegen.quantized import count
from edgegen.recipe import MERGE, Recipe, Step, check, check_order, options_of, shipped
from edgegen.recipe import read as read_recipe
from edgegen.spec import Report, silent
from edgegen.steps import Entry, Verdict

ROOM = "edgegen.compress"
VOCABULARY = "vocabulary"  # the part whose pruning changes what a token is
PLAN = "plan.json"
UNJUDGED = Verdict("not measured", "the run was stopped before the gate")


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides what comes out of the steps. The gate may change between two runs."""

    source: str
    weights_sha256: str
    original_sha256: str
    steps: tuple[Step, ...]
    data: str
    data_sha256: str
    target: tuple[str, str, int]
    seed: int


def compress(
    source: str | Path,
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    original: str | None = None,
    target: Target = Target(),  # noqa: B008  # frozen
    keep_anyway: bool = False,
    measure: bool = True,
    resume: bool = False,
    inputs: Sequence[str] = (),
    pixels: tuple[float, float] | None = None,
    seed: int = 0,
    report: Report = silent,
    note: Callable[[str], None] = lambda line: None,
    show: Callable[[Entry], None] = lambda entry: None,
) -> tuple[Entry, ...]:
    """Apply `recipe` to `source` and write the checkpoint `output`; what each step did.

    `source` is a checkpoint or whatever else brings torch weights; `original` the model it was
    made from, where it was compressed before: what is learnt from and what quality is measured
    against. `recipe` is a file, the name of a shipped one, or a `Recipe`. Each step is measured
    on `target` against the one before, unless the recipe or `measure` says that it is not to be;
    its entry is given to `show` at once.
    Until the end everything is in `OUTPUT.compressing`.

    Raises:
        UsageError: steps in an impossible order, an unknown option, data that does not fit, or an
            unfinished run in the way.
        GateError: a step that did not help, or that broke a budget; `keep_anyway` lets it pass.
        MismatchError: weights or losses that are not finite.
        EdgeGenError: whatever a step or the export of its result met. The hint says where the
            last good checkpoint is.
    """
    output = Path(output)
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    checkpoint.check_replaceable(output)
    check(recipe)
    options = [options_of(step, rooms.load(ROOM, step.kind).Options) for step in recipe.steps]
    _check_target(recipe, options, target, measure)
    _check_budgets(recipe, options)
    report("read the model", 0, 1)
    work = open_work(str(source), inputs, pixels)
    _check_family(recipe, work.spec.family)
    teacher = open_work(original, inputs, pixels) if original else None
    check_order(recipe.steps, traces(work) | ({"original"} if teacher else set()))
    material = read_material(work, data, report) if data else None
    if measure and recipe.gate.quality and material is None:
        raise UsageError(
            f"the recipe has a budget for {', '.join(recipe.gate.quality)}, and no data to "
            "measure quality on",
            "give --data, or --no-measure to go without the gate",
        )
    folder = output.with_name(f"{output.name}.compressing")
    plan = Plan(
        source=str(source),
        weights_sha256=sha256_of(work.net),
        original_sha256=sha256_of(teacher.net) if teacher else "",
        steps=recipe.steps,
        data=data or "",
        data_sha256=material.sha256() if material else "",
        target=(target.runtime, target.device, target.threads),
        seed=seed,
    )
    _begin(folder, plan, resume, note)
    setting = Setting(teacher or work, material, folder, target, seed, report)
    run = Run(
        recipe,
        options,
        folder,
        str(source),
        teacher,
        setting,
        data,
        measure,
        keep_anyway,
        note,
        show,
    )
    return _all_steps(run, work, output)


def _check_family(recipe: Recipe, family: str) -> None:
    if recipe.families and family not in recipe.families:
        fit = [name for name in shipped() if family in read_recipe(name).families]
        raise UsageError(
            f"this recipe is for {', '.join(recipe.families)}, the model is of family {family}",
            f"for {family} there are: {', '.join(fit)}",
        )


def _begin(folder: Path, plan: Plan, resume: bool, note: Callable[[str], None]) -> None:
    """Take up an unfinished run when asked to; refuse to walk over one when not."""
    if not (folder / PLAN).is_file():
        if resume:
            note(f"{folder}: nothing to resume, starting from the beginning")
        folder.mkdir(parents=True, exist_ok=True)
        records.write(plan, folder / PLAN)
        return
    anew = f"start anew: rm -r {folder}"
    if not resume:
        raise UsageError(
            f"{folder}: an unfinished run is there", f"add --resume to go on with it, or {anew}"
        )
    had = records.read(Plan, folder / PLAN)
    for name in Plan.__struct_fields__:
        old, new = getattr(had, name), getattr(plan, name)
        if old != new:
            raise UsageError(
                f"{folder}: the unfinished run has {name} {old}, this one {new}",
                f"give the same as before, or {anew}",
            )


def _all_steps(run: Run, work: Work, output: Path) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    measured = 0  # the last step that has a bundle: what the next one is measured against
    for number, step in enumerate(run.recipe.steps, start=1):
        try:
            if run.measure and number == 1:
                baseline(run, work)
            work, entry = _one_step(run, work, number, measured)
        except GateError:
            raise
        except EdgeGenError as error:
            if isinstance(error, UsageError) and not (run.folder / "step-1").is_dir():
                shutil.rmtree(run.folder)  # asked for wrongly: there is nothing to go on with
            last = run.folder / f"step-{number - 1}" if number > 1 else run.source
            error.hint = "; ".join(
                filter(None, (error.hint, f"the last good checkpoint is {last}"))
            )
            raise
        measured = number if run.measure and step.gate else measured
        entries.append(entry)
    checkpoint.save(output, work.spec, work.net, work.history, work.tokenizer, work.chat_template)
    shutil.rmtree(run.folder, ignore_errors=True)
    return tuple(entries)


def _one_step(run: Run, before: Work, number: int, measured: int) -> tuple[Work, Entry]:
    """The model after step `number` and its entry, from disk where it was there already."""
    path = run.folder / f"step-{number}"
    records.recover(path)
    if not (path / checkpoint.HISTORY).is_file():
        _apply(run, before, number, path)
    work, entry = load(path)
    if _is_settled(entry.verdict):
        run.show(entry)
        return work, entry
    verdict = verdict_of(run, work, number, measured, entry.verdict)
    entry = msgspec.structs.replace(entry, verdict=verdict)
    work = save(path, work, entry)
    run.show(entry)
    if verdict.outcome == "refused":
        raise GateError(
            f"step {number}, {entry.kind}, is refused: {verdict.reason}",
            f"change the step, or keep it all the same with --resume --keep-anyway; "
            f"its result is {path}",
        )
    return work, entry


def _is_settled(verdict: Verdict) -> bool:
    return verdict.outcome != "refused" and verdict != UNJUDGED


def _apply(run: Run, before: Work, number: int, path: Path) -> None:
    """Run the method and write its result; the gate comes later."""
    step, options = run.recipe.steps[number - 1], run.options[number - 1]
    folder = run.folder / f"work-{number}"
    resumed = folder.is_dir() and any(folder.iterdir())
    folder.mkdir(exist_ok=True)
    if resumed:
        run.note(f"going on with step {number}, {step.kind}")
    run.setting.report(f"step {number}: {step.kind}", 0, 1)
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.setting.seed + number)
        setting = _in_tokens_of(before, run)._replace(folder=folder)
        after = rooms.load(ROOM, step.kind).apply(before._replace(notes={}), options, setting)
    check_finite(after.net, f"step {number}, {step.kind}")
    entry = Entry(
        kind=step.kind,
        options=step.options,
        verdict=UNJUDGED,
        seconds=round(time.perf_counter() - began, 3),
        parameters=_count(after),
        seed=run.setting.seed,
        data=run.data or "",
        resumed=resumed,
        notes=after.notes,
    )
    save(path, after._replace(history=(*before.history, {})), entry)
    shutil.rmtree(folder)


def _in_tokens_of(work: Work, run: Run) -> Setting:
    """Data and original as the model reads them now: an earlier step may have taken tokens."""
    setting, material = run.setting, run.setting.material
    if setting.original.tokenizer is None or setting.original.tokenizer == work.tokenizer:
        return setting
    if material is not None and run.data and material.tokenizer != work.tokenizer:
        material = read_material(work, run.data, setting.report)
    return setting._replace(original=likewise(setting.original, work), material=material)


def _check_target(recipe: Recipe, options: Sequence[Any], target: Target, measure: bool) -> None:
    """Refuse, before hours of training, what the target's engine could not be given to measure."""
    kind = format_of(target)
    for number, (step, one) in enumerate(zip(recipe.steps, options, strict=True), start=1):
        beside = getattr(one, MERGE, True) is False
        if measure and step.gate and beside and kind not in SWITCHED:
            raise UnsupportedError(
                f"recipe: step {number}, {step.kind}: its adapters stay beside the model, and "
                f"{target.runtime} has no place for them: nothing could be measured",
                "set merge = true, or measure with --runtime onnxruntime or openvino",
            )


def _check_budgets(recipe: Recipe, options: Sequence[Any]) -> None:
    """Raise `UsageError` for a budget of what is counted by the token where tokens go."""
    fewer = [
        number for number, one in enumerate(options, 1) if VOCABULARY in getattr(one, "parts", ())
    ]
    per_token = [name for name in recipe.gate.quality if name in OF_TOKENS]
    if fewer and per_token:
        raise UsageError(
            f"recipe: step {fewer[0]} takes tokens away, and {per_token[0]} is counted by the "
            "token: before and after are not to be compared",
            "give a budget for bits_per_byte instead",
        )


def _count(work: Work) -> int:
    """The parameters of what is exported."""
    return count(*(part for part, _ in checkpoint.graphs(work.spec, work.net).values()))
