"""Structured pruning and distillation, measured: how much faster, and at what loss of quality.

    python benchmarks/prune.py gan SOURCE --data images:DIR [--input 'input:float32[batch,100,1,1]']
    python benchmarks/prune.py gpt SOURCE --data text:DIR

SOURCE is a checkpoint or FILE.py:CALLABLE. Wanted: the GAN 2.5x as fast at a KID at most 5 % worse,
the GPT 1.8x at a perplexity at most 5 % worse. Whatever comes out is kept, failures too: the whole
record goes to benchmarks/results/prune-KIND.json, with the command. `--quick` tries the script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from edgegen import records
from edgegen.compress import Target, compress
from edgegen.recipe import Gate, Recipe, Step
from edgegen.steps import Entry

RESULTS = Path(__file__).parent / "results"
# The figure of quality, and how many times as fast is wanted.
WANTED = {"gan": ("kid", 2.5), "gpt": ("perplexity", 1.8)}
LEARN = {
    "gan": {"steps": 4000, "batch": 32, "lr": 1e-3},
    "gpt": {"steps": 3000, "batch": 16, "lr": 5e-4, "data": 0.5},
}


def recipe(kind: str, ratio: float, quick: bool) -> Recipe:
    """Widths by ratio, which is the same on every machine; then what was lost is learnt again."""
    pruned = {"ratio": ratio} | ({"multiple": 1} if quick else {})
    if kind == "gpt":
        pruned |= {"parts": ["kv_groups", "mlp"]}
    learnt = LEARN[kind] | ({"steps": 4, "batch": 4} if quick else {})
    gate = Gate(repeats=4, rounds=2, num=16) if quick else Gate(repeats=40, rounds=8)
    return Recipe((Step("prune", pruned, gate=False), Step("distil", learnt)), gate)


def line(kind: str, entry: Entry) -> str:
    """What came out, beside what was wanted."""
    figure, times = WANTED[kind]
    verdict = entry.verdict
    assert verdict.before and verdict.after
    ratio = verdict.ratios["p50"]
    speeds = [f"{1 / value:.2f}x" if value else "?" for value in (ratio.high, ratio.low)]
    was, now = verdict.original.get(figure), verdict.after.quality.get(figure)
    change = f"{now.value / was.value - 1:+.1%}" if was and now and was.value else "not measured"
    return (
        f"{kind}: {1 / ratio.value:.2f}x ({speeds[0]} to {speeds[1]}) as fast, wanted {times}x; "
        f"{figure} {was.value if was else '?'} -> {now.value if now else '?'} ({change}), "
        f"wanted at most +5 %; {verdict.target}"
    )


def main() -> None:
    """One model; the recipe's gate judges, and nothing is thrown away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=WANTED)
    parser.add_argument("source")
    parser.add_argument("--data", required=True)
    parser.add_argument("--input", action="append", default=[], dest="inputs")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        entries = compress(
            asked.source,
            recipe(asked.kind, asked.ratio, asked.quick),
            Path(folder) / asked.kind,
            data=asked.data,
            target=Target(asked.runtime),
            inputs=asked.inputs,
            keep_anyway=True,
        )
    print(line(asked.kind, entries[-1]))  # noqa: T201
    if not asked.quick:
        kept = {"command": sys.argv, "steps": entries}
        records.write(kept, RESULTS / f"prune-{asked.kind}.json")


if __name__ == "__main__":
    main()
