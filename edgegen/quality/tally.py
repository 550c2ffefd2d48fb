"""Which figures are wanted, which were got, and why the others were not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgegen.errors import (
    EdgeGenError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.quality import Figure
from edgegen.rooms import nearest


class Tally:
    """Figures as they come in. Asked for by name, one that cannot be had is an error; where all
    were asked for, the reason is kept in `skipped`."""

    def __init__(self, metrics: Sequence[str], have: Sequence[str]) -> None:
        """`metrics` are names of figures, or the beginning of one up to an underscore.

        Raises:
            NotFoundError: one that is none of `have`.
        """
        self.figures: dict[str, Figure] = {}
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self._metrics = metrics
        for metric in metrics:
            if not any(_is(metric, name) or _is(name, metric) for name in have):
                raise NotFoundError(
                    f"no metric {metric!r} for this kind of model; have: {', '.join(have)}",
                    nearest(metric, have),
                )

    def wants(self, *names: str) -> bool:
        """Is any of `names` wanted?"""
        return not self._metrics or any(
            _is(metric, name) or _is(name, metric) for metric in self._metrics for name in names
        )

    def add(self, names: Sequence[str], compute: Callable[[], Mapping[str, Figure]]) -> None:
        """Those of the computed figures that are wanted, or why there are none."""
        if not self.wants(*names):
            return
        try:
            found = compute()
        except (MissingExtraError, UnsupportedError, UsageError) as error:
            self.skip(names, error)
        else:
            self.figures |= {name: f for name, f in found.items() if self.wants(name)}

    def skip(self, names: Sequence[str], error: EdgeGenError) -> None:
        """Raise `error` where any of `names` was asked for, or else note it as the reason."""
        if self._metrics and self.wants(*names):
            raise error
        reason = f"{error}; {error.hint}" if error.hint else str(error)
        self.skipped |= {name: reason for name in names if self.wants(name)}


def _is(metric: str, name: str) -> bool:
    return name == metric or name.startswith(f"{metric}_")
