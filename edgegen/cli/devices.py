"""`edgegen devices`."""

from __future__ import annotations


def devices() -> None:
    """Not there yet."""
    raise NotImplementedError
