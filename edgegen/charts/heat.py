"""Which layers a change hurts, as a heat map: a row a kind of layer, a column a block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import altair
import vl_convert  # noqa: F401  # what Altair writes PNG with

from edgegen import records
from edgegen.charts import look

if TYPE_CHECKING:
    from edgegen.sensitivity import Sensitivity

SPAN = 1e-6  # of the largest loss: what is less has the palest colour


def draw(found: Sensitivity, path: Path | str) -> None:
    """The ledger as PNG, a panel for each change; all panels by one scale, which is logarithmic."""
    blocks, parts = axes_of([row.layer for row in found.rows])
    losses = [max(row.loss, 0.0) for row in found.rows]
    top = max(losses, default=0.0) or 1.0
    least = max(min((loss for loss in losses if loss), default=top), top * SPAN)
    scale = altair.Scale(
        type="log", scheme="magma", reverse=True, domain=[min(least, top / 2), top]
    )
    title = f"loss, {found.measure}"
    panels = [
        altair.Chart(look.data(_cells(found, change, least)), title=change)
        .mark_rect()
        .encode(
            altair.X("block:O", sort=blocks, scale=altair.Scale(domain=blocks)),
            altair.Y("part:O", sort=parts, scale=altair.Scale(domain=parts), title=None),
            altair.Color("loss:Q", scale=scale, title=title, legend=altair.Legend(format=".1e")),
        )
        .properties(width=altair.Step(22), height=altair.Step(22))
        for change in dict.fromkeys(row.change for row in found.rows)
    ]
    chart = altair.vconcat(*panels).configure_title(anchor="start")
    with records.whole(path) as part_path:
        chart.save(str(part_path), format="png", scale_factor=2)


def _cells(found: Sensitivity, change: str, least: float) -> list[dict[str, str | float]]:
    places = [(place_of(row.layer), row.loss) for row in found.rows if row.change == change]
    return [
        {"block": block, "part": part, "loss": max(loss, least)} for (block, part), loss in places
    ]


def place_of(layer: str) -> tuple[str, str]:
    """The block of a layer and its name in it: "layers.3.mlp.up_proj" -> ("3", "mlp.up_proj").

    What is in no numbered block is in block "-".
    """
    words = layer.split(".")
    index = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if index is None:
        return "-", layer
    inner = words[index + 1 :]
    return words[index], ".".join(inner or words[:index])


def axes_of(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """The blocks and the names in a block, each once, in order; what is in no block comes first."""
    places = [place_of(layer) for layer in layers]
    blocks = sorted({block for block, _ in places}, key=lambda b: -1 if b == "-" else int(b))
    return blocks, list(dict.fromkeys(part for _, part in places))
