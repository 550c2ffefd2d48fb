"""What adapters cost: the model without any, with adapters that are switched, and with them merged.

    python benchmarks/adapters.py CHECKPOINT [--runtime onnxruntime,openvino] [--rank 8]

A checkpoint without adapters is given some of that rank on every layer of what is exported, with
random numbers: time does not depend on them. Measured in fresh processes that take turns; for text
a token after the first (TPOT), else a whole run. Ratios are against the base, with their 95 %
interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec
import torch

from edgegen import adapters, checkpoint
from edgegen.bundle import NONE
from edgegen.compare import Row, compare
from edgegen.compress import Work
from edgegen.compress.lora import exported_layers
from edgegen.export import export
from edgegen.exporters._adapters import taken_off
from edgegen.measure import interleave, job
from edgegen.metrics import Ratio
from edgegen.rooms import load
from edgegen.sources import Model
from edgegen.sources.checkpoint import model_of


def adapted(path: Path, rank: int) -> Model:
    """The model of a checkpoint, with adapters."""
    found = checkpoint.load(path)
    spec, net = found.spec, found.net
    if not spec.adapters:
        torch.manual_seed(0)
        layers = exported_layers(Work(spec, net)).items()
        ranks = {name: min(rank, adapters.largest_rank(layer)) for name, layer in layers}
        adapters.attach(net, ranks)
        for adapter in adapters.adapted(net).values():
            torch.nn.init.normal_(adapter.B, std=1e-3)
        spec = msgspec.structs.replace(spec, adapters=ranks)
    return model_of(path, spec, net.eval(), tokenizer=found.tokenizer)


def measure(model: Model, runtime: str, repeats: int, rounds: int, threads: int) -> list[Row]:
    """A row for the base, for the switched bundle without and with its adapter, and merged."""
    kind = load("edgegen.runtimes", runtime).READS
    with tempfile.TemporaryDirectory(prefix="edgegen-adapters-") as folder:
        plain = model._replace(parts=taken_off(model.parts)[0])
        base, switched, merged = (Path(folder) / name for name in ("base", "switched", "merged"))
        export(plain, base, formats=[kind])
        export(model, switched, formats=[kind])
        export(model, merged, formats=[kind], merge=True)
        places = ((base, ""), (switched, NONE), (switched, ""), (merged, ""))
        jobs = [
            job(path, runtime=runtime, threads=threads, repeats=repeats, adapter=name)
            for path, name in places
        ]
        return list(compare(interleave(jobs, rounds=rounds)).rows)


def _shown(times: Ratio) -> str:
    """A ratio and its interval, where there were rounds enough for one."""
    if times.low is None or times.high is None:
        return f"{times.value:.3f} (no interval: more --rounds)"
    return f"{times.value:.3f} ({times.low:.3f} to {times.high:.3f})"


def main() -> None:
    """Print one Markdown table for all engines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("source", type=Path)
    parser.add_argument("--runtime", default="onnxruntime,openvino")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    model = adapted(asked.source, asked.rank)
    print(f"{asked.rounds} rounds of fresh processes, {asked.repeats} repeats\n")  # noqa: T201
    print("| engine | adapters | p50, ms | time against the base | size, MB |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    names = "none", "switched, off", "switched, on", "merged"
    for runtime in asked.runtime.split(","):
        rows = measure(model, runtime, asked.repeats, asked.rounds, asked.threads)
        for name, row in zip(names, rows, strict=True):
            ratio = _shown(row.ratios["p50"]) if row.ratios else "1"
            p50, size = row.values["p50"].value, row.values["size"].value
            print(f"| {runtime} | {name} | {p50:.3f} | {ratio} | {size:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
