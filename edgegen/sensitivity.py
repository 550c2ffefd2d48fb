"""The ledger of importance: what the model loses when one layer alone is changed, measured.

Each layer in turn is rounded, or has the weakest of its rows set to 0, while all the others stay
as they are, and the loss against the unchanged model is taken on a small, fixed batch of data. It
is computed once and kept under the user's cache folder.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from msgspec import Struct
from torch import Tensor, nn

from edgegen import records, rooms
from edgegen.checkpoint import graphs, pack
from edgegen.compress._probe import measured, probe
from edgegen.compress._replay import Replay
from edgegen.compress._rounding import nearest
from edgegen.compress._scheme import assign, fitted, matrix, scheme_of
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.quantized import is_quantized, quantizable
from edgegen.spec import Report, silent

if TYPE_CHECKING:
    from edgegen.compress._work import Setting, Work

CHANGES = ("int8", "int4", "int3")
GROUP = 32  # columns that share a scale where a change names no group size
SAMPLES, TOKENS = 4, 128
PRUNED = "prune-"
VERSION = 1  # of how losses are measured: a cached ledger of another one is not read
EVERY = 20  # layers between two times that an unfinished ledger is kept


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """One layer under one change, and what the model lost by it."""

    layer: str
    kind: str
    parameters: int
    change: str
    loss: float


class Sensitivity(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows by layer, in the order of the model, and by change.

    `measure` is what a loss is: "kl_nats" a token against the unchanged model, "elbo_nats" an
    image less than it had, or "noise", the squared error of all outputs over their square.
    `reference` is the scale of the figure: cross entropy, ELBO, or 1.
    """

    measure: str
    reference: float
    data: str
    key: str
    rows: tuple[Row, ...]

    def loss(self, layer: str, change: str) -> float:
        """What the model lost by that change of that layer."""
        found = [r.loss for r in self.rows if r.layer == layer and r.change == change]
        if not found:
            raise MismatchError(f"sensitivity: {layer} was not measured at {change}")
        return found[0]


def ledger(
    work: Work,
    setting: Setting,
    changes: Sequence[str] = CHANGES,
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    drawn: bool = False,
) -> Sensitivity:
    """How much each layer matters, measured or from the cache.

    `changes` are precisions ("int8", "int4-g64", ...) or "prune-0.5" (half of the rows to 0).
    Text without data needs `drawn`: it is sampled from the model itself then.

    Raises:
        UsageError: an unknown change; text without data; data that does not fit the model.
        UnsupportedError: a model that is quantized already.
        MismatchError: the model's own answers are not finite.
    """
    for change in changes:
        check_change(change)
    if is_quantized(work.net):
        raise UnsupportedError(
            "sensitivity: the model is quantized already", "use the checkpoint before that step"
        )
    if work.spec.family == "gpt" and setting.material is None and not drawn:
        raise UsageError("sensitivity: text needs data", "give --data text:FILES")
    key = _key(work, setting, (*changes, str(samples), str(tokens), str(drawn)))
    path = cached(key)
    if path.is_file():
        return records.read(Sensitivity, path)
    found = _measure(work, setting, changes, key, samples, tokens, drawn)
    records.write(found, path)
    _unfinished(path).unlink(missing_ok=True)
    return found


def cached(key: str) -> Path:
    """Where the ledger of that key is kept."""
    return Path(platformdirs.user_cache_path("edgegen")) / "sensitivity" / f"{key}.json"


def _unfinished(path: Path) -> Path:
    return path.with_suffix(".part.json")


def check_change(change: str) -> float:
    """The ratio of a "prune-RATIO", 0 for a precision.

    Raises:
        UsageError: neither.
    """
    if not change.startswith(PRUNED):
        scheme_of(change)
        return 0.0
    try:
        ratio = float(change.removeprefix(PRUNED))
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise UsageError(f"{change!r}: the ratio must be between 0 and 1", "such as prune-0.5")
    return ratio


def _key(work: Work, setting: Setting, options: Sequence[str]) -> str:
    """The hash of weights, data and options."""
    digest = hashlib.sha256(pack(work.net.state_dict()))
    data = setting.material.sha256() if setting.material is not None else "none"
    text = "\n".join((str(VERSION), str(work.spec), data, str(setting.seed), *options))
    digest.update(text.encode())
    return digest.hexdigest()


def layers_of(work: Work) -> dict[str, nn.Module]:
    """The layers that are exported and can be quantized, by name, in the order of the model."""
    parts = graphs(work.spec, work.net).values()
    exported = {id(m) for module, _ in parts for m in module.modules()}
    return {n: m for n, m in quantizable(work.net).items() if id(m) in exported}


def _measure(
    work: Work,
    setting: Setting,
    changes: Sequence[str],
    key: str,
    samples: int,
    tokens: int,
    drawn: bool,
) -> Sensitivity:
    found = probe(work, setting, samples=samples, tokens=tokens, drawn=drawn)
    measure, loss, reference = measured(work, setting, found)
    if not reference > -float("inf") or reference != reference:
        raise MismatchError("sensitivity: the model's outputs are not finite", "train it again")
    rows = _resumed(key)
    done = {(row.layer, row.change) for row in rows}
    net = copy.deepcopy(work.net)
    layers = layers_of(work._replace(net=net))
    replay = Replay(net, found)
    blocks = ["", *replay.blocks]  # what is in no block runs in full, before answers are kept
    order = sorted(layers, key=lambda name: blocks.index(replay.block_of(name)))
    current = ""
    for index, name in enumerate(order):
        block = replay.block_of(name)
        if block and block != current:
            for earlier in _before(replay, current, block):
                replay.finish(earlier)
            current = block
        for change in changes:
            if (name, change) in done:
                continue
            value = _changed_loss(layers[name], change, replay, loss)
            kind = type(layers[name]).__name__
            rows.append(Row(name, kind, layers[name].weight.numel(), change, value))
        setting.report("measuring layers", index + 1, len(order))
        if (index + 1) % EVERY == 0:
            part = Sensitivity(measure, reference, found.origin, key, tuple(rows))
            records.write(part, _unfinished(cached(key)))
    place = {name: index for index, name in enumerate(layers)}
    rows.sort(key=lambda row: (place[row.layer], changes.index(row.change)))
    return Sensitivity(measure, reference, found.origin, key, tuple(rows))


def _before(replay: Replay, current: str, block: str) -> list[str]:
    """The blocks from `current` on, up to and without `block`."""
    start = replay.blocks.index(current) if current else 0
    return replay.blocks[start : replay.blocks.index(block)]


def _resumed(key: str) -> list[Row]:
    """The rows that a run that was killed has left."""
    path = _unfinished(cached(key))
    return list(records.read(Sensitivity, path).rows) if path.is_file() else []


def _changed_loss(layer: nn.Module, change: str, replay: Replay, loss: Any) -> float:
    before = layer.weight.detach().clone()
    assign(layer, changed(matrix(layer), change))
    try:
        return replay.measure(loss)
    finally:
        layer.weight.data.copy_(before)


def changed(weight: Tensor, change: str) -> Tensor:
    """A matrix (rows, columns) after the change."""
    ratio = check_change(change)
    if ratio:
        weak = weight.norm(dim=1).argsort()[: round(ratio * len(weight))]
        return weight.index_fill(0, weak, 0.0)
    scheme, _ = fitted(scheme_of(change, GROUP), weight.shape[1])
    return nearest(weight, scheme, clip=scheme.bits < 8).weight


def of_source(
    source: str,
    data: str = "",
    changes: Sequence[str] = CHANGES,
    *,
    seed: int = 0,
    report: Report = silent,
) -> Sensitivity:
    """The ledger of a checkpoint, or of whatever else has torch weights, on the data set `data`.

    Raises:
        EdgeGenError: as `ledger`, and for a source or data that cannot be read.
    """
    from edgegen.compress._material import read_material
    from edgegen.compress._open import open_work
    from edgegen.compress._work import Setting

    work = open_work(source)
    material = read_material(work, data, report) if data else None
    setting = Setting(work, material, Path(), seed=seed, report=report)
    return ledger(work, setting, changes)


def draw(found: Sensitivity, path: Path | str) -> None:
    """A heat map of the ledger, as PNG: a row a kind of layer, a column a block, a panel a change.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    try:
        from edgegen.charts import heat
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "the heat map") from error
    heat.draw(found, path)


def inspect_rows(found: Sensitivity) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The ledger as a table, the most sensitive layer first: titles, and a row a layer."""
    changes = list(dict.fromkeys(row.change for row in found.rows))
    table: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        table.setdefault(row.layer, {})[row.change] = row
    ranked = sorted(table.items(), key=lambda item: -max(r.loss for r in item[1].values()))
    lines = []
    for layer, mine in ranked:
        first = next(iter(mine.values()))
        losses = (f"{mine[c].loss:.3g}" if c in mine else "" for c in changes)
        lines.append((layer, first.kind, f"{first.parameters:,}", *losses))
    titles = ("layer", "kind", "parameters", *(f"{c}: {found.measure}" for c in changes))
    return titles, lines
