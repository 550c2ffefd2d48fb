"""Pieces of a batch side by side, a thread each, where OpenVINO shares out every operator.

Threads that share an operator wait for each other behind it, several hundred times an image; ones
with images of their own meet once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgegen.spec import Array, Feed

ONE_THREAD_EACH = "NUM_STREAMS", "INFERENCE_NUM_THREADS"


class Streams:
    """As many requests as `compiled` has streams."""

    def __init__(self, compiled: Any, count: int) -> None:
        self._requests = [compiled.create_infer_request() for _ in range(count)]
        self._names = [next(iter(port.names)) for port in compiled.outputs]

    def run(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        """The outputs for each of `feeds`, of which there are no more than streams."""
        held = [{n: np.ascontiguousarray(a) for n, a in feed.items()} for feed in feeds]
        used = self._requests[: len(held)]
        for request, arrays in zip(used, held, strict=True):
            request.start_async(arrays, share_inputs=True)
        for request in used:
            request.wait()
        return [{n: r.get_tensor(n).data.copy() for n in self._names} for r in used]
