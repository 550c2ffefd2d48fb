"""Does the comparison find what is there, and nothing else?

    python benchmarks/detect.py                          some 25 minutes on a quiet machine
    python benchmarks/detect.py --trials 8 --rounds 5    a look at it: under a minute

Four bundles: a chain of 100 equal matrix products (1.1 ms on ONNX Runtime), the same once more, and
chains of 103 and of 105. The slower ones are slower for doing more work; no time is ever scaled.

A trial is what a user does: `edgegen profile A B --rounds N`, fresh processes in alternating order,
then the verdict of `edgegen compare`. Of every two blocks of N rounds one takes all four bundles in
turns, which is one trial each of the same again, of 103 and of 105 layers, and one takes the first
two alone, which is another A/A trial. Blocks follow each other and share no process: no sample is
used for two trials of an arm, and none is drawn again. Within a block the three trials do share
their base.

How much slower the longer chains really are is measured too, from all rounds of all trials. What a
trial cost is wall-clock time, the starting of its processes included. Every trial is appended to
benchmarks/results/detect.jsonl, also one that came out badly; started again with the same settings,
it goes on from there. The same rounds are then told as fewer and longer trials, of two and of four
blocks each: what measuring for longer finds.

The scheduling policy is printed, for it matters: on a machine with neighbours `chrt -f 1` keeps
them from interrupting, and the result is then that of a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
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
from edgegen.metrics import FASTER, SLOWER, steps_of
from edgegen.profile import Profile
from edgegen.spec import GraphSpec, TensorSpec
from edgegen.workload import Job

RESULTS = Path(__file__).parent / "results" / "detect.jsonl"
LAYERS = {"base": 100, "again": 100, "slow3": 103, "slow5": 105}
NAMES = {"again": "A/A", "slow3": "3 layers more than 100", "slow5": "5 layers more than 100"}
ASKED = {"again": "2 to 8 %", "slow3": ">= 90 %", "slow5": ">= 99 %"}
CALLED = {"again": (SLOWER, FASTER), "slow3": (SLOWER,), "slow5": (SLOWER,)}  # different
MOST_S = 60.0  # that a trial may take
POOLED = (1, 2, 4)  # trials that are taken as one


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
    """What is measured, by arm; `repeats` are those of all rounds of a block."""
    made = {}
    for arm, layers in LAYERS.items():
        path = chain(folder / arm, layers, options.width, options.rows)
        repeats = options.repeats * options.rounds
        one = measure.job(
            path, runtime="onnxruntime", threads=options.threads, warmup=1, repeats=repeats
        )
        made[arm] = msgspec.structs.replace(one, operators=False)
    return made


def block(made: dict[str, Job], arms: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """The trials of one block: each of `arms` against the first of them."""
    start = time.perf_counter()
    found = measure.interleave([made[arm] for arm in arms], rounds=rounds)
    pair_s = (time.perf_counter() - start) * 2 / len(arms)
    base, *others = found
    return [
        trial(arm, base, other, row.ratios["p50"]) | {"wall_s": round(pair_s, 2)}
        for arm, other, row in zip(arms[1:], others, compare(found).rows[1:], strict=True)
    ]


def trial(arm: str, base: Profile, other: Profile, said: Any) -> dict[str, Any]:
    """What `edgegen compare` says of the two, and the logarithm of the ratio of each round."""
    steps = [steps_of(profile, "main") for profile in (base, other)]
    logs = bootstrap.logs_by_round(steps[0], steps[1], base.rounds, 50)
    verdict = {"ratio": said.value, "low": said.low, "high": said.high, "verdict": said.verdict}
    return {"arm": arm, **verdict, "logs": [round(float(log), 6) for log in logs]}


def read(settings: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The blocks that were measured with the same settings."""
    if not RESULTS.is_file():
        return []
    lines = [json.loads(text) for text in RESULTS.read_text().splitlines()]
    return [line["trials"] for line in lines if line["settings"] == settings]


def run(made: dict[str, Job], settings: dict[str, Any], trials: int) -> list[dict[str, Any]]:
    """All trials: measured before, or now."""
    done = read(settings)
    RESULTS.parent.mkdir(exist_ok=True)
    while len(done) < trials:
        arms = list(LAYERS) if len(done) % 2 == 0 else list(LAYERS)[:2]
        done.append(block(made, arms, settings["rounds"]))
        with RESULTS.open("a") as file:
            file.write(json.dumps({"settings": settings, "trials": done[-1]}) + "\n")
        said = ", ".join(f"{one['arm']} x{one['ratio']:.4f} {one['verdict']}" for one in done[-1])
        print(f"{len(done)}/{trials}: {said}", flush=True)  # noqa: T201
    return [one for trials_of_block in done[:trials] for one in trials_of_block]


def pooled(trials: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Longer trials: `count` of an arm that followed each other as one, no round used twice."""
    out = []
    for arm in NAMES:
        mine = [one for one in trials if one["arm"] == arm]
        for start in range(0, len(mine) - count + 1, count):
            parts = mine[start : start + count]
            logs = [log for one in parts for log in one["logs"]]
            middle, reach = bootstrap.location(np.array(logs))
            seen = reach is not None and abs(middle) > reach
            verdict = (SLOWER if middle > 0 else FASTER) if seen else ""
            wall_s = sum(one["wall_s"] for one in parts)
            out.append({"arm": arm, "logs": logs, "verdict": verdict, "wall_s": wall_s})
    return out


def table(trials: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Markdown: how often each arm was called different, with what is asked of it."""
    lines = [
        f"{len(trials[0]['logs'])} pairs of fresh processes a trial, {settings['cpu']}, "
        f"{environment()['usable_cores']} cores, {settings['policy']}",
        "",
        "| arm | true ratio, all rounds | trials | called different | asked | seconds a trial |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, name in NAMES.items():
        mine = [one for one in trials if one["arm"] == arm]
        if not mine:
            continue
        hits = sum(one["verdict"] in CALLED[arm] for one in mine)
        low, high = wilson(hits, len(mine))
        middle, reach = bootstrap.location(np.concatenate([one["logs"] for one in mine]))
        took = [one["wall_s"] for one in mine]
        over = " TOO LONG" * (max(took) > MOST_S)
        lines.append(
            f"| {name} | {math.exp(middle):.4f} ±{reach or 0:.4f} | {len(mine)} "
            f"| {hits / len(mine):.1%} ({low:.1%} to {high:.1%}) | {ASKED[arm]} "
            f"| {median(took):.1f}, at most {max(took):.1f}{over} |"
        )
    return "\n".join(lines)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share. Source: Wilson 1927, JASA 22."""
    z = NormalDist().inv_cdf(0.975)
    middle = (hits + z * z / 2) / (count + z * z)
    reach = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def policy() -> str:
    """How the processes are scheduled: by default in turns with whatever else runs."""
    if not hasattr(os, "sched_getscheduler"):
        return "default scheduling"
    now = os.sched_getscheduler(0)
    if now == os.SCHED_OTHER:
        return f"default scheduling, nice {os.nice(0)}"
    return f"real-time scheduling, priority {os.sched_getparam(0).sched_priority}"


def main() -> None:
    """Build the chains, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=200, help="of A/A; half as many of the others"
    )
    parser.add_argument("--rounds", type=int, default=10, help="pairs of processes in a trial")
    parser.add_argument("--repeats", type=int, default=25, help="timed runs in one process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=320, help="of the matrices")
    parser.add_argument("--rows", type=int, default=6, help="that each product multiplies")
    options = parser.parse_args()
    settings = {name: value for name, value in vars(options).items() if name != "trials"}
    settings |= {"cpu": environment()["cpu"], "policy": policy()}
    with tempfile.TemporaryDirectory() as folder:
        # As where EdgeGen is installed: no process compiles Python's files anew.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        trials = run(jobs(Path(folder), options), settings, options.trials)
    tables = [table(found, settings) for n in POOLED if (found := pooled(trials, n))]
    print("\n" + "\n\n".join(tables))  # noqa: T201


if __name__ == "__main__":
    main()
