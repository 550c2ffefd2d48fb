"""The gate: did a step help, on the device the model is meant for?

Both models are exported and run as a user would run them, in fresh processes that take turns.
Source: the wish of nearly every thread on quantized models that turned out slower.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgegen import rooms
from edgegen.bundle import MANIFEST, Bundle, open_bundle
from edgegen.compare import Row, compare, describe
from edgegen.compress._work import Target, Work
from edgegen.errors import UnsupportedError, UsageError
from edgegen.history import Measured, Verdict, times
from edgegen.measure import interleave, job
from edgegen.metrics import SLOWER
from edgegen.recipe import Gate
from edgegen.spec import Report, silent

METRICS = ("p50", "ttft", "size", "peak_rss")  # those that a history keeps
Figures = dict[str, float]


def format_of(target: Target) -> str:
    """The format that the target's engine reads.

    Raises:
        NotFoundError: no such engine.
        UnsupportedError: one that nothing can be exported for.
    """
    kind: str = rooms.load("edgegen.runtimes", target.runtime).READS
    if kind not in rooms.names("edgegen.exporters"):
        raise UnsupportedError(
            f"{target.runtime} reads {kind}, which is nothing that can be exported",
            "measure with --runtime onnxruntime or openvino",
        )
    return kind


def bundle_of(work: Work, path: Path, target: Target, report: Report = silent) -> Bundle:
    """The model as a bundle for the target, proved as every export is; the one at `path` if it is
    there already."""
    from edgegen.export import export
    from edgegen.sources.checkpoint import model_of

    if (path / MANIFEST).is_file():
        return open_bundle(path)
    model = model_of(
        path,
        work.spec,
        work.net,
        tokenizer=work.tokenizer,
        chat_template=work.chat_template,
        history=work.history,
    )
    (bundle,) = export(model, path, formats=[format_of(target)], report=report)
    return bundle


def quality_of(
    bundle: Bundle, data: str | None, target: Target, gate: Gate, original: Bundle | None = None
) -> Figures:
    """Every quality figure of a bundle, by name; none without data."""
    if data is None:
        return {}
    from edgegen.evaluate import evaluate

    found = evaluate(
        bundle.path,
        data,
        runtime=target.runtime,
        device=target.device,
        against=original.path if original else None,
        num=gate.num,
    )
    return found.numbers()


def judge(
    before: Bundle,
    after: Bundle,
    gate: Gate,
    target: Target,
    *,
    original: Figures,
    was: Figures,
    now: Figures,
    report: Report = silent,
) -> Verdict:
    """Measure two bundles in turns and say whether the second is worth having.

    `original`, `was` and `now` are the quality figures of the model before the first step, of
    `before` and of `after`.

    Raises:
        UsageError: a budget for a figure that there is none of.
    """
    jobs = [
        job(
            bundle.path,
            runtime=target.runtime,
            device=target.device,
            threads=target.threads,
            repeats=gate.repeats,
        )
        for bundle in (before, after)
    ]
    found = compare(interleave(jobs, rounds=gate.rounds, report=report), gate.require)
    first, second = found.rows
    problems = [*_gain_missed(second, gate)]
    problems += [f"{r.gate} is missed: {describe(r)}" for r in found.gates if not r.met]
    problems += over_budget(gate, original, now)
    return Verdict(
        "refused" if problems else "passed",
        "; ".join(problems or _gains(second)),
        target=f"{second.engine} {second.engine_version} {second.device}, threads {second.threads}",
        before=_measured(first, was),
        after=_measured(second, now),
        original=original,
        ratios={m: second.ratios[m] for m in METRICS if m in second.ratios},
    )


def _measured(row: Row, quality: Figures) -> Measured:
    peak = row.values.get("peak_rss")
    return Measured(
        p50_ms=row.values["p50"].value,
        size_mb=row.values["size"].value,
        peak_rss_mb=peak.value if peak else None,
        quality=quality,
    )


def _gain_missed(row: Row, gate: Gate) -> list[str]:
    """Surely faster or smaller by the margin? The whole interval must lie beyond it."""
    faster, smaller = gate.margins()
    p50, size = row.ratios["p50"], row.ratios["size"]
    fast = p50.high is not None and p50.high <= 1 - faster and p50.high < 1
    small = size.value <= 1 - smaller and size.value < 1
    if fast or small:
        return []
    return [
        f"neither faster ({times(p50)}; asked for {gate.faster} less time) "
        f"nor smaller ({_size(size.value)}; asked for {gate.smaller} less)"
    ]


def _gains(row: Row) -> list[str]:
    """What was gained; and lost, where it was: a smaller model that is slower must not pass for
    a faster one."""
    p50, size = row.ratios["p50"], row.ratios["size"]
    parts = {times(p50): p50.value, _size(size.value): size.value}
    told = sorted(parts, key=lambda text: parts[text])
    return [f"{told[0]} but {told[1]}" if p50.verdict == SLOWER else ", ".join(told)]


def _size(ratio: float) -> str:
    if ratio == 1:
        return "the same size"
    return f"{1 / ratio:.2f}x smaller" if ratio < 1 else f"{ratio:.2f}x larger"


def over_budget(gate: Gate, original: Figures, now: Figures) -> list[str]:
    """The quality budgets that are broken, each with its numbers.

    Raises:
        UsageError: no such figure, or a share of one that the original has not or that is 0.
    """
    broken = []
    for name, budget in gate.budgets().items():
        if name not in now:
            raise UsageError(
                f"gate: quality: no figure {name!r} of this model",
                rooms.nearest(name, now) if now else "give --data: quality is measured on it",
            )
        value = now[name]
        if budget.relative and not original.get(name):
            raise UsageError(
                f"gate: quality: {name} = {gate.quality[name]!r} is a share of the original "
                f"model's {name}, which is {original.get(name, 'not defined')}",
                f'give a number instead: {name} = "<=0.1" (it is {value:.4g} now)',
            )
        share = value / original[name] - 1 if budget.relative else value
        if not budget.met(share):
            was = f"{original[name]:.4g} -> " if name in original else ""
            by = f" ({share:+.1%})" if budget.relative else ""
            broken.append(f"{name} {was}{value:.4g}{by} is over the budget of {gate.quality[name]}")
    return broken


def kept(verdict: Verdict) -> Verdict:
    """A refused step that its owner wants all the same."""
    return msgspec.structs.replace(verdict, outcome="kept anyway")
