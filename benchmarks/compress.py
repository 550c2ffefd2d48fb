"""Compressed models against their originals on this machine: how much faster, at what quality.

    python benchmarks/compress.py KIND SOURCE --data DATA [--folder F] [--quick]

    gan-prune   channels by half and distillation     2.5x as fast, KID at most 5 % worse
    gpt-prune   KV groups and MLPs, distillation      1.8x as fast, perplexity at most 5 % worse
    gpt-int4    4-bit weights, the native engine      2x, a sixth of the size, perplexity 3 % worse
    gpt-qat     the same, adapters inside the rounding    half of the gap that plain int4 leaves
    vae-int8    weights and activations, OpenVINO     2x as fast at 25 dB

SOURCE is a checkpoint or FILE.py:CALLABLE. The gate measures as it does for every recipe: exported,
proved, in fresh processes that take turns. Whatever comes out is kept, failures too: the whole
record goes to benchmarks/results/compress-KIND.json, with the command. With `--folder` a killed run
goes on where it was, and the checkpoint stays there. `--set qat.steps=200` changes a step's option;
`--quick` tries the script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from edgegen import records
from edgegen.compress import Target, compress
from edgegen.recipe import Gate, Recipe, Step
from edgegen.steps import Entry

RESULTS = Path(__file__).parent / "results"


class Kind(NamedTuple):
    """The steps, the engine, and what is wanted: times as fast, a size, a figure of quality.

    `closes` is the share wanted back of what the first step takes from that figure.
    """

    steps: tuple[tuple[str, dict[str, Any]], ...]
    runtime: str
    faster: float
    figure: str
    bound: str
    size: float = 1.0
    closes: float = 0.0


PRUNED = {"ratio": 0.5}
TEXT = {"parts": ["kv_groups", "mlp"]}
KINDS = {
    "gan-prune": Kind(
        (("prune", PRUNED), ("distil", {"steps": 4000, "batch": 32, "lr": 1e-3})),
        "onnxruntime",
        2.5,
        "kid",
        "+5%",
    ),
    "gpt-prune": Kind(
        (
            ("prune", PRUNED | TEXT),
            ("distil", {"steps": 3000, "batch": 16, "lr": 5e-4, "data": 0.5}),
        ),
        "onnxruntime",
        1.8,
        "perplexity",
        "+5%",
    ),
    "gpt-int4": Kind(
        (("quantize", {"bits": 4, "method": "gptq", "group_size": 32, "symmetric": True}),),
        "native",
        2,
        "perplexity",
        "+3%",
        1 / 6,
    ),
    "gpt-qat": Kind(
        (
            ("quantize", {"bits": 4, "group_size": 32, "symmetric": True}),
            ("qat", {"train": "adapters", "rank": 16, "steps": 1000, "batch": 16, "lr": 1e-3}),
        ),
        "native",
        2,
        "perplexity",
        "+3%",
        1 / 6,
        0.5,
    ),
    "vae-int8": Kind(
        (("quantize", {"bits": 8, "activations": "static", "bias_correction": True}),),
        "openvino",
        2,
        "sqnr_db",
        ">=25",
    ),
}


def recipe(kind: Kind, changes: dict[str, dict[str, Any]], quick: bool) -> Recipe:
    """The steps of `kind`, with options changed by step; only the last is measured, unless it is
    to be compared with the first."""
    few_steps = {"steps": 4, "batch": 4}
    small = {"prune": {"multiple": 1}, "distil": few_steps, "qat": few_steps} if quick else {}
    last = len(kind.steps) - 1
    steps = tuple(
        Step(
            name,
            options | changes.get(name, {}) | small.get(name, {}),
            gate=number == last or kind.closes > 0,
        )
        for number, (name, options) in enumerate(kind.steps)
    )
    few = {"repeats": 4, "rounds": 2, "num": 16} if quick else {"repeats": 40, "rounds": 8}
    return Recipe(steps, Gate(quality={kind.figure: kind.bound}, **few))


def line(name: str, kind: Kind, entry: Entry) -> str:
    """What came out, beside what was wanted."""
    verdict = entry.verdict
    assert verdict.before and verdict.after
    ratio, size = verdict.ratios["p50"], verdict.ratios["size"]
    speeds = [f"{1 / value:.2f}x" if value else "?" for value in (ratio.high, ratio.low)]
    figures = {
        key: (was.value, verdict.after.quality[key].value)
        for key, was in verdict.original.items()
        if key.startswith(kind.figure) and key in verdict.after.quality
    }
    quality = ", ".join(f"{key} {was:.4g} -> {now:.4g}" for key, (was, now) in figures.items())
    return (
        f"{name}: {1 / ratio.value:.2f}x ({speeds[0]} to {speeds[1]}) as fast, wanted "
        f"{kind.faster}x; size {size.value:.3f} of it, wanted {kind.size:.3f}; "
        f"{quality or kind.figure + ' not measured'}, wanted {kind.bound}; {verdict.target}; "
        f"the gate: {verdict.outcome}, {verdict.reason}"
    )


def gap(kind: Kind, plain: Entry, last: Entry) -> str:
    """How much of what the first step took the last one gave back, in perplexity over the
    original's, which is of the same windows."""
    first, after = plain.verdict.after, last.verdict.after
    assert first and after
    rounded, now = (had.quality[f"{kind.figure}_ratio"] for had in (first, after))
    lost = rounded.value - 1
    share = f"{(rounded.value - now.value) / lost:.0%}" if lost > 0 else "there is none"
    told = [f"{one.value - 1:+.3%} ± {one.error or 0:.3%}" for one in (rounded, now)]
    return (
        f"{kind.figure} over fp32: {told[0]} by {plain.kind} alone, {told[1]} with {last.kind} "
        f"({now.count} {now.of}); of the gap closed: {share}, wanted {kind.closes:.0%}; "
        f"size {last.verdict.ratios['size'].value:.3f} of the former"
    )


def progress(what: str, done: int, total: int) -> None:
    """A line a tenth."""
    if done * 10 % max(total, 1) < 10:
        print(f"{what} {done}/{total}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """One model; the recipe's gate judges, and nothing is thrown away."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("source")
    parser.add_argument("--data", required=True)
    parser.add_argument("--input", action="append", default=[], dest="inputs")
    parser.add_argument("--set", action="append", default=[], metavar="STEP.OPTION=VALUE")
    parser.add_argument("--runtime")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    kind = KINDS[asked.kind]
    changes: dict[str, dict[str, Any]] = {}
    for text in asked.set:
        name, _, value = text.partition("=")
        step, _, option = name.partition(".")
        changes.setdefault(step, {})[option] = value
    with tempfile.TemporaryDirectory() as scratch:
        entries = compress(
            asked.source,
            recipe(kind, changes, asked.quick),
            (asked.folder or Path(scratch)) / asked.kind,
            resume=asked.folder is not None,
            data=asked.data,
            target=Target(asked.runtime or kind.runtime),
            inputs=asked.inputs,
            keep_anyway=True,
            report=progress,
            note=lambda text: print(text, file=sys.stderr),  # noqa: T201
        )
    print(line(asked.kind, kind, entries[0 if kind.closes else -1]))  # noqa: T201
    if kind.closes:
        print(gap(kind, entries[0], entries[-1]))  # noqa: T201
    if not asked.quick:
        kept = {"command": sys.argv, "steps": entries}
        records.write(kept, RESULTS / f"compress-{asked.kind}.json")


if __name__ == "__main__":
    main()
