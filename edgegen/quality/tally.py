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
    """Figures as they come in, and the errors in place of those that do not."""

    def __init__(self, metrics: Sequence[str], have: Sequence[str]) -> None:
        """`metrics` are names of figures, or the beginning of one up to an underscore.

        Raises:
            NotFoundError: one that is none of `have`.
        """
        self.figures: dict[str, Figure] = {}
        self.notes: list[str] = []
        self._errors: dict[str, EdgeGenError] = {}
        self._metrics = metrics
        for metric in metrics:
            if not any(_fits(metric, name) for name in have):
                raise NotFoundError(
                    f"no metric {metric!r} for this kind of model; have: {', '.join(have)}",
                    nearest(metric, have),
                )

    def wants(self, *names: str) -> bool:
        """Is any of `names` wanted? Without `metrics` everything is."""
        return not self._metrics or any(_fits(m, name) for m in self._metrics for name in names)

    def add(self, names: Sequence[str], compute: Callable[[], Mapping[str, Figure]]) -> None:
        """Those of the computed figures that are wanted, or what keeps them from being had."""
        if not self.wants(*names):
            return
        try:
            found = compute()
        except (MissingExtraError, UnsupportedError, UsageError) as error:
            self._errors |= {name: error for name in names if self.wants(name)}
        else:
            self.figures |= {name: figure for name, figure in found.items() if self.wants(name)}

    def skipped(self) -> dict[str, str]:
        """Why a figure is not there. Raises that where a metric was asked for and gave none."""
        for metric in self._metrics:
            errors = [error for name, error in self._errors.items() if _fits(metric, name)]
            if errors and not any(_fits(metric, name) for name in self.figures):
                raise errors[0]
        return {
            name: f"{error}; {error.hint}" if error.hint else str(error)
            for name, error in self._errors.items()
        }


def _fits(metric: str, name: str) -> bool:
    """Equal, or one the beginning of the other: kid, kid_efficientnet_lite0."""
    return metric == name or metric.startswith(f"{name}_") or name.startswith(f"{metric}_")
