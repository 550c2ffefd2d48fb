"""The gate: did a step help, on the device the model is meant for?

Both models are exported and run as a user would run them, in fresh processes that take turns.
Source: the wish of nearly every thread on quantized models that turned out slower.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgegen import rooms
from edgegen.bundle import MANIFEST, Bundle, OneShot, Text, open_bundle, read_golden
from edgegen.compare import Row, compare, describe
from edgegen.compress._work import Target, Work
from edgegen.errors import UnsupportedError, UsageError
from edgegen.measure import interleave, job
from edgegen.metrics import SLOWER
from edgegen.quality import Figure
from edgegen.recipe import Gate
from edgegen.runtimes import deploy
from edgegen.spec import Report, silent
from edgegen.steps import Measured, Verdict, shown, times
from edgegen.text import FILE as TOKENIZER
from edgegen.verify import sqnr_db

METRICS = ("p50", "ttft", "size", "peak_rss")  # those that a history keeps
# Figures that cost little; others are computed where the recipe has a budget for them.
OF_TEXT = ("perplexity", "bits_per_byte", "kl_nats", "top1_agreement")
OF_BYTES = ("bits_per_byte",)
OF_TOKENS = ("perplexity", "kl_nats", "top1_agreement", "perplexity_ratio")
OF_IMAGES = ("swd_pixels", "psnr_db", "ssim")
OF_VAE = ("elbo_nats", "reconstruction_mse")
# What a step that learns is judged by, where there is no budget: the first that there is.
LEADING = ("perplexity", "bits_per_byte", "reconstruction_mse", "swd_pixels", "sqnr_db")
Figures = dict[str, Figure]


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
    bundle: Bundle,
    original: Bundle,
    data: str | None,
    target: Target,
    gate: Gate,
    report: Report = silent,
) -> Figures:
    """The quality figures of a bundle by name, likeness to the original among them.

    Without data only the SQNR of the outputs for the same inputs, which text has not. With other
    tokens than the original's, only what is counted by the byte.

    Raises:
        NotFoundError: the recipe has a budget for a figure there is none of.
        EdgeGenError: otherwise as `evaluate`.
    """
    from edgegen.evaluate import evaluate

    found = _same_inputs(bundle, original, target)
    alike = _tokens_of(bundle) == _tokens_of(original)
    metrics = (_metrics(bundle) if alike else OF_BYTES) if data else ()
    if not metrics or data is None:
        return found
    quality = evaluate(
        bundle.path,
        data,
        runtime=target.runtime,
        device=target.device,
        against=original.path if alike else None,
        num=gate.num,
        metrics=[*metrics, *(name for name in gate.quality if name not in found)],
        report=report,
    )
    return found | quality.figures


def _tokens_of(bundle: Bundle) -> str:
    """The hash of its tokenizer, if it has one."""
    files = bundle.manifest.files
    return files[TOKENIZER].sha256 if TOKENIZER in files else ""


def _metrics(bundle: Bundle) -> tuple[str, ...]:
    """None for a module that makes neither text nor images."""
    loop = bundle.manifest.loop
    if isinstance(loop, Text):
        return OF_TEXT
    if not loop.image:
        return ()
    return (*OF_IMAGES, *OF_VAE) if loop.encoder else OF_IMAGES


def _same_inputs(bundle: Bundle, original: Bundle, target: Target) -> Figures:
    """How far the outputs are from the original's in torch, over its golden inputs."""
    loop, first = original.manifest.loop, original.manifest.adapter
    if not isinstance(loop, OneShot):
        return {}
    golden = [case for case in read_golden(original) if case.graph == loop.graph]
    cases = [case for case in golden if case.adapter == (first or None)] or golden
    with deploy(bundle.path, target.runtime, target.device) as deployment:
        session = deployment.session(loop.graph)
        found = [session.run(case.inputs) for case in cases]
    far = [
        sqnr_db(want, outputs[name])
        for case, outputs in zip(cases, found, strict=True)
        for name, want in case.outputs.items()
    ]
    return {"sqnr_db": Figure(min(far), None, len(far), "outputs, the worst", "higher", "dB")}


def judge(
    before: Bundle,
    after: Bundle,
    gate: Gate,
    target: Target,
    *,
    original: Figures,
    was: Figures,
    now: Figures,
    learns: bool = False,
    report: Report = silent,
) -> Verdict:
    """Measure two bundles in turns and say whether the second is worth having.

    `original`, `was` and `now` are the quality figures of the original model, of `before` and of
    `after`. A step that `learns` may be better instead of faster or smaller.

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
    better = _better(gate, was, now) if learns else ""
    problems = [] if better else _gain_missed(second, gate)
    problems += [f"{r.gate} is missed: {describe(r)}" for r in found.gates if not r.met]
    problems += over_budget(gate, original, now)
    return Verdict(
        "refused" if problems else "passed",
        "; ".join(problems or filter(None, (better, *_gains(second)))),
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
    faster, smaller, _ = gate.margins()
    p50, size = row.ratios["p50"], row.ratios["size"]
    fast = p50.high is not None and p50.high <= 1 - faster and p50.high < 1
    small = size.value <= 1 - smaller and size.value < 1
    if fast or small:
        return []
    return [
        f"neither faster ({times(p50)}; asked for {gate.faster} less time) "
        f"nor smaller ({_size(size.value)}; asked for {gate.smaller} less)"
    ]


def _better(gate: Gate, was: Figures, now: Figures) -> str:
    """The figure that counts, where it is better than before by the margin; else nothing."""
    name = next((n for n in (*gate.quality, *LEADING) if n in was and n in now), "")
    if not name or not was[name].value > 0:
        return ""
    share = now[name].value / was[name].value - 1
    gain = share if now[name].better == "higher" else -share
    if gain <= 0 or gain < gate.margins()[2]:
        return ""
    return f"better: {name} {was[name].value:.4g} -> {shown(now[name])}"


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
        UsageError: no such figure, or a share of one that is 0 in the original.
    """
    broken = []
    for name, budget in gate.budgets().items():
        figure, was = _figure(now, name), _figure(original, name)
        if budget.relative and not was.value > 0:
            raise UsageError(
                f"gate: quality: {name} = {gate.quality[name]!r} is a share of the original "
                f"model's {name}, which is {was.value:.4g}",
                f'give a number instead: {name} = "<=0.1"',
            )
        share = figure.value / was.value - 1 if budget.relative else figure.value
        if not budget.met(share):
            by = f", {share:+.1%}," if budget.relative else ""
            broken.append(
                f"{name} {was.value:.4g} -> {shown(figure)}{by} misses the budget "
                f"{gate.quality[name]}"
            )
    return broken


def _figure(figures: Figures, name: str) -> Figure:
    """By its name, or by its beginning: "kid" for the KID on whichever features."""
    if name in figures:
        return figures[name]
    for known, figure in figures.items():
        if known.startswith(f"{name}_"):
            return figure
    raise UsageError(
        f"gate: quality: no figure {name!r} of this model",
        rooms.nearest(name, figures) if figures else "give --data: quality is measured on it",
    )


def kept(verdict: Verdict) -> Verdict:
    """A refused step that its owner wants all the same."""
    return msgspec.structs.replace(verdict, outcome="kept anyway")
