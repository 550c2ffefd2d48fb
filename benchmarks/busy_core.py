"""What a busy core costs the native engine: decode alone, then beside processes that never rest.

    python benchmarks/busy_core.py [--hidden 288 --layers 6 --vocabulary 32000] [--busy 1]

Rounds alternate between alone and busy; the median of the ratios of neighbours is what counts.
Tokens must be the same in every round, whatever the number of threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from edgegen.exporters import native as packer
from edgegen.models import gpt
from edgegen.runtimes import native
from edgegen.spec import Options, Sampling

RECOVERY_S = 10.0
PROMPT = ((1, 2, 3, 4, 5, 6, 7, 8),)


def arguments() -> argparse.Namespace:
    """Sizes of the model (by default the 15M Llama), and how long to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"hidden": 288, "layers": 6, "heads": 6, "intermediate": 768, "vocabulary": 32000}
    run = {"threads": len(os.sched_getaffinity(0)), "busy": 1, "tokens": 400, "rounds": 5}
    for name, default in (sizes | run).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8", "int4"])
    return parser.parse_args()


def model(given: argparse.Namespace, folder: Path) -> tuple[Path, Any]:
    """A file of random weights, and its graph."""
    torch.manual_seed(0)
    config = gpt.Config(
        vocab_size=given.vocabulary,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.heads,
        intermediate_size=given.intermediate,
        max_position_embeddings=512,
    )
    module, graph = gpt.graphs(gpt.Net(config))["model"]
    path = folder / packer.FILE
    packer.write(module, graph, path)
    if given.precision != "fp32":
        packer.quantize(path, graph, given.precision)
    return path, graph


@contextmanager
def busy(count: int) -> Iterator[None]:
    """`count` processes that take a core each."""
    code = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def decode(session: native.NativeSession, tokens: int) -> tuple[float, list[list[int]]]:
    """(milliseconds a token, tokens)."""
    decoder = session.decoder(Sampling(), 0)
    decoder.start(PROMPT, Sampling())
    start = time.perf_counter()
    found = decoder.write(tokens)
    return (time.perf_counter() - start) * 1e3 / tokens, found.tolist()


def recover(session: native.NativeSession, threads: int, tokens: int) -> None:
    """Decode until all threads are back, or would be if they could."""
    end = time.perf_counter() + RECOVERY_S
    while session.pace[0] < threads and time.perf_counter() < end:
        decode(session, tokens)


def main() -> None:
    """Print a line a round, then the ratios."""
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        path, graph = model(given, Path(folder))
        for threads in range(1, given.threads + 1):
            session = native.open_graph(path, graph, "cpu", Options(threads=threads))
            _, wanted = decode(session, given.tokens)
            ratios, alone = [], []
            for _ in range(given.rounds):
                quiet_ms, tokens = decode(session, given.tokens)
                assert tokens == wanted
                with busy(given.busy):
                    decode(session, given.tokens // 4)  # the others have started by then
                    busy_ms, tokens = decode(session, given.tokens)
                assert tokens == wanted
                now, late = session.pace
                recover(session, threads, given.tokens)
                ratios.append(busy_ms / quiet_ms)
                alone.append(quiet_ms)
                print(  # noqa: T201
                    f"{threads} threads: {quiet_ms:.3f} ms a token alone, {busy_ms:.3f} beside "
                    f"{given.busy} busy; {now} threads now, late {late} times so far"
                )
            print(  # noqa: T201
                f"{threads} threads: {median(alone):.3f} ms a token, x {median(ratios):.2f} with "
                f"{given.busy} busy (rounds {min(ratios):.2f} to {max(ratios):.2f})"
            )
            session.close()


if __name__ == "__main__":
    main()
