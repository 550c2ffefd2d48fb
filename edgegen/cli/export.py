"""`edgegen export`."""

from __future__ import annotations


def export() -> None:
    """Not there yet."""
    raise NotImplementedError
