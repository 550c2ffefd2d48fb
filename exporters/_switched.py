"""What of a bundle's adapters is switched at run time; without any, torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from edgegen.bundle import BASE
from edgegen.spec import Array

if TYPE_CHECKING:
    from edgegen.adapter_files import Factors
    from edgegen.sources import Part

Placed = dict[str, dict[str, "Factors"]]  # graph -> layer in its module -> the adapter
Parts = Mapping[str, "Part"]


class Switched(NamedTuple):
    """The adapters of a bundle by name, and the layers of each graph that any of them is on.

    `first` is the one in use when nobody says which: the model's own.
    """

    named: dict[str, Placed] = {}  # noqa: RUF012  # never written to
    layers: dict[str, list[str]] = {}  # noqa: RUF012
    first: str = ""

    def feeds(self, parts: Parts) -> dict[str, dict[str, dict[str, Array]]]:
        """What each adapter, and `BASE`, feeds each graph; nothing where there are none."""
        if not self.named:
            return {}
        from edgegen.exporters._adapters import arrays

        everyone: dict[str, Placed] = {BASE: {}, **self.named}
        return {
            name: {
                graph: arrays(parts[graph].module, layers, placed.get(graph, {}))
                for graph, layers in self.layers.items()
            }
            for name, placed in everyone.items()
        }

    def note(self) -> tuple[str, ...]:
        """What a user must be told, if anything."""
        if not self.named:
            return ()
        mark = {self.first: f"{self.first} (in use unless told)"}
        names = (mark.get(name, name) for name in self.named)
        return (f"adapters that are switched at run time: {', '.join(names)}",)
