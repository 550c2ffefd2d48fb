"""Layers by name or pattern, for every method alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from edgegen.errors import UsageError

NEAREST = 3  # names that are shown where a pattern matches nothing


def select(names: Iterable[str], patterns: Sequence[str], option: str = "layers") -> list[str]:
    """Those of `names` that match any of `patterns`, in the order of `names`.

    A pattern is a name or a glob: `layers.3.mlp.up_proj`, `layers.*.mlp.*`, `*_proj`. A star goes
    over dots, too. `option` is what the patterns were given as.

    Raises:
        UsageError: a pattern that matches nothing; the hint shows the nearest names.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise UsageError(f"{option}: {pattern!r} matches no layer", _nearest(pattern, names))
        chosen |= found
    return [name for name in names if name in chosen]


def _nearest(pattern: str, names: list[str]) -> str:
    if not names:
        return "this model has no layer that could be meant"
    near = difflib.get_close_matches(pattern, names, NEAREST, cutoff=0.3) or names[:NEAREST]
    rest = f" (of {len(names)})" if len(names) > len(near) else ""
    return f"nearest: {', '.join(near)}{rest}; patterns such as '*.{names[0].split('.')[-1]}' work"
