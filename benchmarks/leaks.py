"""Does the native engine keep anything? Memory of the process over many generate calls.

    python benchmarks/leaks.py [CALLS]          10,000 calls unless told

Each call opens nothing: prompts, sampling and batch change, one in ten is cancelled, one in a
hundred opens the file again. Exits with 1 when the second half of the calls grew by over 1 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import psutil
from busy_core import model

from edgegen.runtimes import native
from edgegen.spec import Options, Sampling

SAMPLINGS = (Sampling(), Sampling(1.0, top_k=9, top_p=0.9), Sampling(repetition_penalty=1.2))


def call(session: native.NativeSession, number: int) -> None:
    """One text, or a part of one."""
    sampling = SAMPLINGS[number % 3]
    decoder = session.decoder(sampling, number)
    prompts = tuple((1 + number % 200, 2, 3 + row) for row in range(1 + number % 50 // 49))
    decoder.begin(prompts, sampling)
    decoder.write(8, ends=(5,), tell=lambda ids: number % 10 == 0)


def main() -> int:
    """Print memory at every tenth of the calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("calls", nargs="?", type=int, default=10_000)
    calls = parser.parse_args().calls
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 96, "vocabulary": 515}
    rss: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        path, graph = model(Namespace(**sizes, precision="int8"), Path(folder))
        session = native.open_graph(path, graph, "cpu", Options())
        for number in range(calls):
            if number % 100 == 99:
                session.close()
                session = native.open_graph(path, graph, "cpu", Options())
            call(session, number)
            if number % max(calls // 10, 1) == 0 or number == calls - 1:
                rss.append(psutil.Process().memory_info().rss)
                print(f"{number:6d} calls: {rss[-1] / 1e6:.2f} MB")  # noqa: T201
    grown = max(rss[len(rss) // 2 :]) - rss[len(rss) // 2 - 1]
    print(f"second half: {grown / 1e6:+.2f} MB")  # noqa: T201
    return int(grown > 1_000_000)


if __name__ == "__main__":
    sys.exit(main())
