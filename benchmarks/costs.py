"""What a user waits for and pays beside the model itself: start-up, export, loading, disk.

    .venv/bin/python benchmarks/costs.py [--only start,export,load,size] [--rounds 7]

start    `edgegen --help` and the `--help` of an empty typer program, fresh processes in turns
export   a 15M decoder to a bundle that is proved, against optimum-cli, which checks less; seconds
         and peak memory of the whole process, in turns
load     opening the bundle and its first token, on each of EdgeGen's engines, fresh processes
size     `pip install edgegen[onnxruntime,text]` into a fresh environment, package by package

The table goes to results/costs.md, raw figures and the environment to results/costs.jsonl.
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peers
import text_models

from edgegen import bootstrap, measure
from edgegen.devices.cpu import environment
from edgegen.export import export

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
EDGEGEN = (sys.executable, "-m", "edgegen")
EMPTY = (
    "import typer\n\napp = typer.Typer()\n\n\n@app.command()\ndef main() -> None: ...\n\n\napp()\n"
)
FORMATS = ("native", "fused", "onnx", "openvino")
ENGINE_OF = {"onnx": "onnxruntime"}
MODEL = "15m"


def compiled() -> None:
    """Give EdgeGen's source the bytecode that pip has given every installed peer."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for folder in ("edgegen", "exporters", "runtimes", "devices"):
        compileall.compile_dir(ROOT / folder, quiet=1)


def run(command: tuple[str, ...]) -> tuple[float, float]:
    """Seconds and peak RSS in MB of one process; raises with its last line when it fails."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise peers.PeerError(f"exit code {process.returncode}: {lines[-1][:200]}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def turns(commands: dict[str, tuple[str, ...]], rounds: int, output: Path) -> dict[str, Any]:
    """Each command's (seconds, MB) by round, in turns; or why it failed. `output` is removed."""
    found: dict[str, Any] = {name: [] for name in commands}
    for turn in range(rounds):
        order = list(commands) if turn % 2 == 0 else list(commands)[::-1]
        for name in order:
            if isinstance(found[name], str):
                continue
            shutil.rmtree(output, ignore_errors=True)
            try:
                found[name].append(run(commands[name]))
            except peers.PeerError as error:
                found[name] = str(error)
            say(f"round {turn + 1} of {rounds}: {name}")
    return found


def start(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """How long `--help` takes."""
    empty = folder / "empty.py"
    empty.write_text(EMPTY)
    commands = {
        "an empty typer program": (sys.executable, str(empty), "--help"),
        "edgegen": (*EDGEGEN, "--help"),
    }
    turns(commands, 1, folder / "none")  # warms the file cache
    found = turns(commands, max(20, asked.rounds), folder / "none")
    base, mine = ([seconds for seconds, _ in found[name]] for name in commands)
    more_ms = (median(mine) - median(base)) * 1e3
    lines = ["| `--help` of | median ms | fastest | slowest |", "| --- | ---: | ---: | ---: |"]
    for name, runs in found.items():
        ms = [seconds * 1e3 for seconds, _ in runs]
        lines.append(f"| {name} | {median(ms):.0f} | {min(ms):.0f} | {max(ms):.0f} |")
    told = (
        f"{len(mine)} fresh processes each, in turns: EdgeGen takes {more_ms:+.0f} ms (asked: 40)"
    )
    return found, [*lines, "", told]


def exports(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Exporting the model, proof included, against optimum-cli."""
    source, output = str(text_models.folder_of(MODEL, asked.cache)), folder / "exported"
    commands = {
        f"edgegen --to {kind} --precision {precision}": (
            *(*EDGEGEN, "export", source, "-o", str(output)),
            *("--to", kind, "--precision", precision, "-q"),
        )
        for kind in FORMATS
        for precision in ("fp32", "int8")
    }
    refused = []
    known = {peer.name: peer for peer in peers.PEERS}
    for name, kind in (("optimum-onnx", "onnx"), ("optimum-intel", "openvino")):
        try:
            python = peers.install(known[name], asked.cache)
        except peers.PeerError as error:
            refused.append(f"- optimum-cli export {kind}: not installed: {error}")
            continue
        program = str(python.with_name("optimum-cli"))
        task = ("--task", "text-generation-with-past")
        commands[f"optimum-cli export {kind}"] = (
            *(program, "export", kind, "--model", source, *task, str(output)),
        )
    found = turns(commands, asked.rounds, output)
    base = found.get("optimum-cli export onnx")
    lines = [
        "| export of 15M | s | of optimum-cli onnx | peak RSS MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, runs in found.items():
        if isinstance(runs, str):
            refused.append(f"- {name}: {runs}")
            continue
        seconds, megabytes = (median(column) for column in zip(*runs, strict=True))
        share = "-" if isinstance(base, str) or not base else ratio(base, runs)
        lines.append(f"| {name} | {seconds:.1f} | {share} | {megabytes:.0f} |")
    return found, [*lines, "", *refused]


def ratio(base: list[Any], other: list[Any]) -> str:
    """The ratio of the seconds, round by round, with its 95 % interval."""
    logs = np.log([b[0] / a[0] for a, b in zip(base, other, strict=True)])
    middle, reach = bootstrap.location(logs)
    if reach is None:
        return f"{math.exp(middle):.2f} (too few rounds)"
    return (
        f"{math.exp(middle):.2f} ({math.exp(middle - reach):.2f} to {math.exp(middle + reach):.2f})"
    )


def load(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Opening an int8 bundle, its sha256 checked, and the first token."""
    source, jobs = text_models.folder_of(MODEL, asked.cache), []
    for kind in FORMATS:
        path = folder / f"bundle-{kind}"
        export(str(source), path, formats=[kind], precisions=["int8"])
        runtime = ENGINE_OF.get(kind, kind)
        jobs.append(measure.job(path, runtime=runtime, threads=1, warmup=0, repeats=asked.rounds))
    profiles = measure.interleave(jobs, rounds=asked.rounds)
    lines = [
        "| int8 bundle of 15M on | load ms | first token ms | peak RSS MB | size MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    found = {}
    for one in profiles:
        peak = one.peak_rss_mb or math.nan
        found[one.engine] = [one.load_ms, one.cold_ms, peak, one.size_mb]
        lines.append(
            f"| {one.engine} | {one.load_ms:.0f} | {one.cold_ms:.1f} | {peak:.0f} | "
            f"{one.size_mb:.1f} |"
        )
    return found, [*lines, "", f"medians of {asked.rounds} fresh processes in turns, 1 thread"]


def size(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a board must store to run bundles."""
    place = folder / "environment"
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    before = sizes_mb(place)
    copy = folder / "source"  # a build leaves files beside what it builds
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build"), symlinks=True
    )
    wanted = f"{copy}[onnxruntime,text]"
    command = (python, "-m", "pip", "install", "--quiet", "--no-compile", wanted)
    subprocess.run(command, check=True)
    after = sizes_mb(place)
    found = {n: mb - before.get(n, 0.0) for n, mb in after.items()}
    found = {n: round(mb, 2) for n, mb in sorted(found.items(), key=lambda x: -x[1]) if mb > 0.005}
    lines = ["| in site-packages | MB |", "| --- | ---: |"]
    lines += [f"| {name} | {mb:.1f} |" for name, mb in found.items() if mb >= 1]
    total = sum(found.values())
    lines.append(f"| all {len(found)} of `edgegen[onnxruntime,text]` | {total:.0f} (asked: 150) |")
    return found, lines


def sizes_mb(place: Path) -> dict[str, float]:
    """MB of each folder and file of site-packages."""
    [packages] = place.glob("lib/python*/site-packages")
    return {entry.name: sum(bytes_of(entry)) / 1e6 for entry in packages.iterdir()}


def bytes_of(entry: Path) -> Iterator[int]:
    """The size of every file."""
    files = [entry] if entry.is_file() else entry.rglob("*")
    yield from (file.stat().st_size for file in files if file.is_file())


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)  # noqa: T201


PARTS = {"start": start, "export": exports, "load": load, "size": size}


def main() -> None:
    """Measure the parts that were asked for, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="of start,export,load,size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", type=Path, default=peers.default_cache())
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    asked.results.mkdir(exist_ok=True)
    compiled()
    machine = environment()
    lines = [
        f"`benchmarks/costs.py --rounds {asked.rounds}` on {machine['cpu']}, "
        f"{machine['usable_cores']:g} cores.",
    ]
    for name in asked.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found, table = PARTS[name](asked, Path(folder))
        with (asked.results / "costs.jsonl").open("a") as file:
            file.write(json.dumps({"part": name, "found": found, "environment": machine}) + "\n")
        lines += ["", f"## {name}", "", *table]
        (asked.results / "costs.md").write_text("\n".join(lines) + "\n")
    say("\n".join(lines))


if __name__ == "__main__":
    main()
