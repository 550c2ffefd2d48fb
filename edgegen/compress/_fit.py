"""The training loop of every step that trains: recovery, distillation, adapters, quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from edgegen import records
from edgegen.checkpoint import pack, unpack
from edgegen.errors import FormatError, MismatchError
from edgegen.spec import Report, silent
from edgegen.trainer import check_finite, learning_rate

CHECK = 10  # steps between two looks at the loss
STATE = "fit.safetensors"


class Fit(Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast to train; every `every` steps the state is kept."""

    steps: int = 200
    batch: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 50


def fit(
    net: nn.Module,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], dict[str, Tensor]],
    options: Fit,
    *,
    paced: Sequence[tuple[nn.Parameter, float]] = (),
    folder: Path | None = None,
    what: str = "training",
    report: Report = silent,
) -> tuple[dict[str, float], ...]:
    """Train `parameters` of `net` in place; the losses along the way, each with its step.

    Those in `paced` have `lr` times a factor of their own, and do not decay.

    `loss(step)` gives named scalars, the first of which is minimised; all its randomness must
    follow from the step, so that a killed run, whose state is kept in `folder` every so many
    steps, goes on as if nothing had happened. `net` holds all that changes, and may hold more.

    Raises:
        MismatchError: a loss or a weight is no number any more; `net` has its last good weights
            again.
        FormatError: what `folder` holds is of another net.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters), "pace": 1.0}]
    groups += [{"params": [p], "pace": pace, "weight_decay": 0.0} for p, pace in paced]
    optimizer = torch.optim.AdamW(groups, options.lr, (0.9, 0.99), 1e-8, options.weight_decay)
    every = [p for group in groups for p in group["params"]]
    start, curve = _restore(net, optimizer, folder)
    good = _copied(net)
    for step in range(start, options.steps):
        rate = learning_rate(options.lr, step, step / options.steps)
        values = _step(every, optimizer, loss, step, rate, options.clip)
        report(what, step + 1, options.steps)
        keep = (step + 1) % options.every == 0 or step + 1 == options.steps
        if (step + 1) % CHECK and not keep:
            continue
        floats = {name: float(value) for name, value in values.items()}
        try:
            check_finite(floats, step + 1)
            _check_weights(net, step + 1)
        except MismatchError:
            net.load_state_dict(good)
            raise
        if keep:
            curve.append({"step": step + 1, **floats})
            good = _copied(net)
            _keep(good, optimizer, curve, folder)
    return tuple(curve)


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _check_weights(net: nn.Module, step: int) -> None:
    """The loss of the last step was that of the weights before it."""
    for name, weight in net.named_parameters():
        if not torch.isfinite(weight).all():
            raise MismatchError(f"{name} is not finite after step {step}", "use a smaller lr")


def _step(
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], dict[str, Tensor]],
    step: int,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["pace"]
    optimizer.zero_grad()
    values = loss(step)
    next(iter(values.values())).backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return {name: value.detach() for name, value in values.items()}


def _keep(
    weights: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    curve: list[dict[str, float]],
    folder: Path | None,
) -> None:
    """Weights, moments, and the losses so far, of which the last says the step."""
    if folder is None:
        return
    tensors = {f"net.{name}": value for name, value in weights.items()}
    for index, slot in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slot.items()}
    tensors["curve"] = torch.frombuffer(bytearray(records.encode(curve)), dtype=torch.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STATE}.partial"
    part.write_bytes(pack(tensors))
    part.replace(folder / STATE)


def _restore(
    net: nn.Module, optimizer: torch.optim.Optimizer, folder: Path | None
) -> tuple[int, list[dict[str, float]]]:
    """The step to go on from, and the losses up to there."""
    if folder is None or not (folder / STATE).is_file():
        return 0, []
    tensors = unpack(folder / STATE)
    data = bytes(tensors.pop("curve", torch.zeros(0, dtype=torch.uint8)).tolist())
    curve = records.decode(list[dict[str, float]], data, str(folder / STATE))
    try:
        net.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("net.")})
    except RuntimeError as error:
        raise FormatError(
            f"{folder / STATE}: is of another net", f"start the step anew: rm -r {folder}"
        ) from error
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            slots.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return int(curve[-1]["step"]), curve
