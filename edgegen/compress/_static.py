"""What is measured on a net of rounded weights: ranges of inputs, and shifts of the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgegen.chains import behind
from edgegen.compress._observers import KEPT, OBSERVERS, Observer, Range, thinned
from edgegen.compress._probe import Probe
from edgegen.compress._replay import Replay
from edgegen.errors import MismatchError
from edgegen.spec import Report


def ranges(
    net: nn.Module, names: Sequence[str], probe: Probe, observer: Observer, report: Report
) -> dict[str, Range]:
    """The (low, high) of the input of each layer that runs.

    Raises:
        MismatchError: an input that is not finite.
    """
    kept: dict[str, list[Tensor]] = {}
    share = max(KEPT // len(probe.batches), 1)

    def see(name: str, given: Tensor, _: Any) -> None:
        if not bool(torch.isfinite(given).all()):
            raise MismatchError(
                f"{name}: its input is not finite on the calibration data", "check data and weights"
            )
        kept.setdefault(name, []).append(thinned(given, share))

    Replay(net, probe).watch(names, see)
    found: dict[str, Range] = {}
    for index, (name, values) in enumerate(kept.items()):
        found[name] = OBSERVERS[observer](torch.cat(values))
        report("ranges of inputs", index + 1, len(kept))
    return found


def correct_bias(
    net: nn.Module, original: nn.Module, names: Sequence[str], probe: Probe, report: Report
) -> list[str]:
    """Shift biases, in place and in the order layers run, so that every output has the mean that
    it has in the original; the layers that were shifted.

    A layer without a bias of its own, and no batch norm right behind it, cannot be.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (empirical).
    """
    replay = Replay(net, probe)
    readers = behind(net)
    places = {name: bias_of(net, name, readers) for name in replay.order if name in names}
    able = [name for name, place in places.items() if place is not None]
    wanted = _means(Replay(original, probe), able)
    for index, name in enumerate(able):
        now = _means(replay, [name])[name]
        place = places[name]
        assert place is not None
        sign, values = place
        values.data.add_(sign * (wanted[name] - now))
        report("bias correction", index + 1, len(able))
    return able


def _means(replay: Replay, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of each channel of a layer's output."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, _: Tensor, output: Tensor) -> None:
        axis = -1 if isinstance(replay.net.get_submodule(name), nn.Linear) else 1
        rows = output.movedim(axis, -1).flatten(0, -2)
        sums[name] = sums.get(name, torch.zeros(())) + rows.sum(0)
        counts[name] = counts.get(name, 0) + len(rows)

    replay.watch(names, see)
    return {name: total / counts[name] for name, total in sums.items()}


def bias_of(
    net: nn.Module, name: str, readers: Mapping[str, nn.Module]
) -> tuple[float, Tensor] | None:
    """What shifts a layer's output, and by which sign: its bias, or the mean of the batch norm
    right behind it. `readers` are `chains.behind` of the net."""
    layer = net.get_submodule(name)
    if getattr(layer, "bias", None) is not None:
        return 1.0, layer.bias
    norm = readers.get(name)
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
        return None
    return -1.0, norm.running_mean  # it is subtracted: a smaller one raises what comes out
