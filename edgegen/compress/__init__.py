"""Methods that make a model smaller or faster: one file each.

A method `NAME.py` defines

    Options                                 a frozen msgspec Struct; every choice has a default
    apply(work, options, setting) -> Work   the model after the step; `work` itself is not changed

and raises `UsageError` for options that contradict each other or the model, `UnsupportedError` for
a model on which the method makes no sense. What a step wants to be remembered, numbers and all
that was not simply what was asked for, it adds to `Work.notes`.
"""

from __future__ import annotations

from edgegen.compress._driver import compress
from edgegen.compress._work import Setting, Target, Work

__all__ = ["Setting", "Target", "Work", "compress"]
