"""How long `edgegen --help` takes, each time in a fresh process: median, fastest and slowest.

    python benchmarks/startup.py [RUNS]

Every run pays for starting Python itself; that alone is timed beside it, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

HELP = (sys.executable, "-m", "edgegen", "--help")
BARE = (sys.executable, "-c", "pass")


def run_ms(command: tuple[str, ...]) -> float:
    """One run from start to exit."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1e3


def main(runs: int) -> None:
    """Warm the file cache once, then alternate."""
    run_ms(HELP)
    pairs = [(run_ms(HELP), run_ms(BARE)) for _ in range(runs)]
    for name, times in zip(
        ("edgegen --help", "python -c pass"), zip(*pairs, strict=True), strict=True
    ):
        print(  # noqa: T201
            f"{name}: median {median(times):.0f} ms, min {min(times):.0f}, max {max(times):.0f} "
            f"({runs} fresh processes)"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="?", type=int, default=20, help="20 at least")
    main(max(20, parser.parse_args().runs))
