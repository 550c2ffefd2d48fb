"""`edgegen profile`."""

from __future__ import annotations


def profile() -> None:
    """Not there yet."""
    raise NotImplementedError
