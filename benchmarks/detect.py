"""Does the comparison find what is there, and nothing else?

    python benchmarks/detect.py                    every trial measured on its own: hours
    python benchmarks/detect.py --pool 1500        one long pool of pairs, trials drawn from it

Four bundles: a chain of 100 equal matrix products (about 1.3 ms on ONNX Runtime), the same once
more, and chains of 103 and of 105: slower for doing more work. A trial is what
`edgegen profile BASE OTHER --rounds N` and `edgegen compare` do: pairs of fresh processes in
alternating order for `--seconds` of wall-clock time, starting the processes included, and then the
comparison's own verdict. How much slower the longer chains really are is measured too, from all
trials pooled.

With `--pool` the four are measured in turns for that many rounds, and each trial is that many pairs
as fit into `--seconds`, drawn from the pool without replacement in contiguous blocks of rounds. Of
the A/A trials each block is turned round at random, which of the two equal bundles is the base:
that is what another measurement could as well have been. Trials of one pool share pairs, so they
are worth fewer independent ones; how many is printed.

Results are appended to benchmarks/results/detect-*.jsonl; started again, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgegen import bootstrap, measure, records
from edgegen.bundle import MANIFEST, Artifact, Manifest, OneShot, sums
from edgegen.compare import compare
from edgegen.devices.cpu import environment
from edgegen.metrics import SLOWER, TOO_FEW, Ratio
from edgegen.profile import Profile
from edgegen.spec import GraphSpec, TensorSpec
from edgegen.workload import Job

RESULTS = Path(__file__).parent / "results"
LAYERS = {"base": 100, "again": 100, "slow3": 103, "slow5": 105}
ARMS = ("again", "slow3", "slow5")
BLOCK = 10  # rounds that stay together when trials are drawn from a pool
ORDERS = 2  # rounds of one call: A B and B A
NAMES = {"again": "A/A", "slow3": "+3 layers of 100", "slow5": "+5 layers of 100"}


def chain(folder: Path, layers: int, width: int, rows: int) -> Path:
    """A bundle of `layers` products with one orthogonal matrix: each does the same work again."""
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    names = ["x", *(f"h{n}" for n in range(1, layers)), "y"]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", rows, width])
        for name in ("x", "y")
    ]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    weight = numpy_helper.from_array(matrix.astype(np.float32), "w")
    graph = helper.make_graph(nodes, "model", ends[:1], ends[1:], [weight])
    folder.mkdir(parents=True)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    x, y = (TensorSpec(name, "float32", ("batch", rows, width)) for name in ("x", "y"))
    manifest = Manifest(
        format_version=1,
        name=folder.name,
        created="2026-01-01T00:00:00Z",
        family="chain",
        config={},
        loop=OneShot("model"),
        precision="fp32",
        parameters=width * width,
        graphs=(GraphSpec("model", (x,), (y,)),),
        artifacts=(Artifact("model", "onnx", "model.onnx", ()),),
        files=sums(folder),
    )
    records.write(manifest, folder / MANIFEST)
    return folder


def jobs(folder: Path, options: argparse.Namespace) -> dict[str, Job]:
    """What is measured, by arm; `repeats` are those of one round."""
    made = {}
    for arm, layers in LAYERS.items():
        path = chain(folder / arm, layers, options.width, options.rows)
        one = measure.job(
            path,
            runtime="onnxruntime",
            threads=options.threads,
            repeats=options.repeats,
        )
        made[arm] = msgspec.structs.replace(one, operators=False)
    return made


def take(chosen: list[Job], rounds: int) -> list[Profile]:
    """The real path: fresh processes in alternating order, `rounds` of each."""
    more = [msgspec.structs.replace(one, repeats=one.repeats * rounds) for one in chosen]
    return measure.interleave(more, rounds=rounds)


def ratio_of(base: Profile, other: Profile) -> Ratio:
    """What `edgegen compare` says."""
    return compare([base, other]).rows[1].ratios["p50"]


def medians(profile: Profile) -> list[float]:
    """The median of each round, in ms."""
    parts = np.array_split(np.asarray(profile.first_ms), profile.rounds)
    return [round(float(np.median(part)), 5) for part in parts]


def append(path: Path, line: dict[str, Any]) -> None:
    """One line more, whole or not at all, so that a killed run can go on."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that were measured with the same settings."""
    if not path.is_file():
        return []
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [line for line in lines if line["settings"] == settings]


def direct(made: dict[str, Job], options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Every trial on its own, arm after arm in turns until each has its number."""
    path = RESULTS / "detect-trials.jsonl"
    settings = settings | {"seconds": options.seconds}
    wanted = {"again": options.trials, "slow3": options.trials // 2, "slow5": options.trials // 2}
    done = read(path, settings)
    have = {arm: [line for line in done if line["arm"] == arm] for arm in ARMS}
    while open_arms := [arm for arm in ARMS if len(have[arm]) < wanted[arm]]:
        arm = min(open_arms, key=lambda arm: len(have[arm]) / wanted[arm])
        line = trial(made["base"], made[arm], options.seconds) | {"arm": arm, "settings": settings}
        append(path, line)
        have[arm].append(line)
        print(  # noqa: T201
            f"{NAMES[arm]} {len(have[arm])}/{wanted[arm]}: x{line['ratio']:.4f} {line['verdict']} "
            f"({line['rounds']} pairs, {line['wall_s']:.0f} s)",
            flush=True,
        )
    report(have, "every trial measured on its own", options.seconds)


def trial(base: Job, other: Job, seconds: float) -> dict[str, Any]:
    """As many pairs as `seconds` hold; how many is known from a pair that is thrown away."""
    start = time.perf_counter()
    take([base, other], 1)
    pair_s = time.perf_counter() - start
    rounds = max(bootstrap.FEWEST, int((seconds - pair_s) / pair_s))
    found = take([base, other], rounds)
    ratio = ratio_of(*found)
    logs = bootstrap.logs_by_round(*[[(ms,) for ms in medians(p)] for p in found], rounds, 50)
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": ratio.verdict,
        "rounds": rounds,
        "wall_s": round(time.perf_counter() - start, 1),
        "logs": [round(float(log), 6) for log in logs],
    }


def pooled(made: dict[str, Job], options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Measure the pool, or the rest of it, and draw the trials."""
    path = RESULTS / "detect-pool.jsonl"
    lines = read(path, settings)
    while len(lines) * ORDERS < options.pool:
        start = time.perf_counter()
        found = take(list(made.values()), ORDERS)
        arms = {arm: medians(profile) for arm, profile in zip(made, found, strict=True)}
        wall_s = round(time.perf_counter() - start, 2)
        lines.append({"settings": settings, "wall_s": wall_s, "medians": arms})
        append(path, lines[-1])
        print(f"{len(lines) * ORDERS}/{options.pool} rounds, {wall_s} s", flush=True)  # noqa: T201
    pair_s = median(line["wall_s"] for line in lines) / ORDERS / len(LAYERS) * 2
    rounds = int(options.seconds / pair_s)
    count = len(lines) * ORDERS
    if rounds < bootstrap.FEWEST or rounds > count:
        raise SystemExit(
            f"a pair takes {pair_s:.2f} s, so {options.seconds:g} s hold {rounds} pairs; the pool "
            f"has {count}: measure more with --pool, or change --seconds"
        )
    print(f"a pair takes {pair_s:.2f} s, process start included")  # noqa: T201
    numbers = {"again": options.trials, "slow3": options.trials // 2, "slow5": options.trials // 2}
    times = {arm: np.array([ms for line in lines for ms in line["medians"][arm]]) for arm in LAYERS}
    rng = np.random.default_rng(0)
    have = {
        arm: [drawn(rng, times["base"], times[arm], rounds, arm) for _ in range(number)]
        for arm, number in numbers.items()
    }
    print(  # noqa: T201
        f"RESAMPLED from a pool of {count} measured pairs in blocks of {BLOCK}: the trials of an "
        f"arm hold no more than {count // rounds} independent ones"
    )
    whole = {arm: (times["base"], times[arm]) for arm in ARMS}
    report(have, f"resampled from a pool of {count} measured pairs", options.seconds, whole)


def drawn(rng: np.random.Generator, base: Any, other: Any, rounds: int, arm: str) -> dict[str, Any]:
    """One trial of `rounds` pairs: whole blocks of the pool, none twice, in their order."""
    starts = np.arange(0, len(base) - BLOCK + 1, BLOCK)
    blocks = np.sort(rng.choice(starts, size=math.ceil(rounds / BLOCK), replace=False))
    pairs = []
    for start in blocks:
        block = [base[start : start + BLOCK], other[start : start + BLOCK]]
        pairs.append(block[::-1] if arm == "again" and rng.random() < 0.5 else block)
    a, b = (np.concatenate(side)[:rounds] for side in zip(*pairs, strict=True))
    ratio = ratio_of(*(as_profile(name, values) for name, values in (("base", a), (arm, b))))
    return {"ratio": ratio.value, "verdict": ratio.verdict, "rounds": rounds}


def as_profile(name: str, values: Any) -> Profile:
    """A profile of one sample a round, which is that round's median."""
    runs = tuple(float(ms) for ms in values)
    return Profile(
        **dict.fromkeys(("bundle", "bundle_sha256", "device", "device_name"), name),
        **dict.fromkeys(("format", "engine", "engine_version", "precision", "created"), "-"),
        **dict.fromkeys(("warmup", "threads"), 0),
        **dict.fromkeys(("load_ms", "cold_ms", "size_mb"), 1.0),
        schema_version=1,
        family="chain",
        request=msgspec.convert({}, measure.Request),
        repeats=len(runs),
        first_ms=runs,
        steps_ms=((),) * len(runs),
        block="pool",
        rounds=len(runs),
    )


def report(
    have: dict[str, list[dict[str, Any]]],
    how: str,
    seconds: float,
    pool: dict[str, Any] | None = None,
) -> None:
    """A Markdown table: how often each arm was called different, with what was asked of it."""
    machine = environment()
    print(  # noqa: T201
        f"\n{how}; {seconds:g} s of measuring each; {machine['cpu']}, "
        f"{machine['usable_cores']} cores\n\n"
        "| arm | true ratio, all pooled | trials | pairs each | called different | asked |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    asked = {"again": "2 to 8 %", "slow3": ">= 90 %", "slow5": ">= 99 %"}
    for arm, lines in have.items():
        if not lines:
            continue
        if arm == "again":
            hits = sum(
                line["verdict"] not in ("no difference detectable", TOO_FEW) for line in lines
            )
        else:
            hits = sum(line["verdict"] == SLOWER for line in lines)
        low, high = wilson(hits, len(lines))
        logs = (
            np.log(pool[arm][1] / pool[arm][0])
            if pool
            else np.array([log for line in lines for log in line["logs"]])
        )
        middle, reach = bootstrap.location(logs)
        pairs = median(line["rounds"] for line in lines)
        print(  # noqa: T201
            f"| {NAMES[arm]} | {math.exp(middle):.4f} ±{reach or 0:.4f} | {len(lines)} | {pairs:g} "
            f"| {hits / len(lines):.1%} ({low:.1%} to {high:.1%}) | {asked[arm]} |"
        )


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share. Source: Wilson 1927, JASA 22."""
    z = NormalDist().inv_cdf(0.975)
    middle = (hits + z * z / 2) / (count + z * z)
    reach = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def main() -> None:
    """Build the chains, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=200, help="of A/A; half as many of the others"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring for each trial")
    parser.add_argument("--pool", type=int, default=0, help="rounds of a pool to draw them from")
    parser.add_argument("--repeats", type=int, default=100, help="timed runs in one process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=320, help="of the matrices")
    parser.add_argument("--rows", type=int, default=6, help="that each product multiplies")
    options = parser.parse_args()
    kept = ("repeats", "threads", "width", "rows")
    settings = {name: getattr(options, name) for name in kept} | {"cpu": environment()["cpu"]}
    with tempfile.TemporaryDirectory() as folder:
        made = jobs(Path(folder), options)
        (pooled if options.pool else direct)(made, options, settings)


if __name__ == "__main__":
    main()
