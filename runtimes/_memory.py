"""Refuse what cannot fit, before it is tried: a killed process tells its user nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from edgegen.errors import UsageError
from edgegen.spec import TensorSpec

SMALL = 64_000_000  # bytes; about what an engine takes to start


def tensors_bytes(specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> int:
    """The memory of tensors whose free dimensions have `sizes`; an unknown size counts as 1."""
    total = 0
    for spec in specs:
        shape = [sizes.get(n, 1) if isinstance(n, str) else n for n in spec.shape]
        total += math.prod(shape) * np.dtype(spec.dtype).itemsize
    return total


def afford(what: str, need_bytes: int, fix: str) -> None:
    """Raise `UsageError`, naming the estimate, unless `need_bytes` of memory are free.

    Less than `SMALL` is not asked about: importing what knows takes more than it could save.
    """
    if need_bytes < SMALL:
        return
    import psutil

    free_bytes = psutil.virtual_memory().available
    if need_bytes > free_bytes:
        raise UsageError(
            f"{what} would need about {need_bytes / 1e9:,.1f} GB of memory, "
            f"{free_bytes / 1e9:,.1f} GB are free",
            fix,
        )
