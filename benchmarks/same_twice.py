"""A/A: a bundle measured against itself must show no difference, but for one time in twenty.

    python benchmarks/same_twice.py BUNDLE [TIMES]

Prints how often `compare` found one all the same, and the widest and narrowest interval.
"""

from __future__ import annotations

import sys

from edgegen import measure
from edgegen.compare import compare
from edgegen.metrics import NEITHER


def main(bundle: str, times: int) -> None:
    alarms, widths = 0, []
    for n in range(times):
        jobs = [measure.job(bundle, repeats=50) for _ in range(2)]
        ratio = compare(measure.interleave(jobs)).rows[1].ratios["p50"]
        alarms += ratio.verdict != NEITHER
        widths.append((ratio.high or 0) / (ratio.low or 1) - 1)
        print(f"{n + 1}: x{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")  # noqa: T201
    print(  # noqa: T201
        f"{alarms} of {times} differ ({alarms / times:.1%}; 5% are due by chance); "
        f"intervals span {min(widths):.1%} to {max(widths):.1%}"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20)
