"""The training loop of every step that trains: recovery, distillation, adapters, quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from msgspec import Struct
from torch import Tensor, nn

from edgegen.checkpoint import pack, unpack
from edgegen.errors import MismatchError
from edgegen.spec import Report, silent
from edgegen.trainer import check_finite, learning_rate

CHECK = 10  # steps between two looks at the loss
STATE = "fit.safetensors"


class Fit(Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast to train."""

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
    folder: Path | None = None,
    what: str = "training",
    report: Report = silent,
) -> tuple[dict[str, float], ...]:
    """Train `parameters` of `net` in place; the losses along the way, each with its step.

    `loss(step)` gives named scalars, the first of which is minimised; all its randomness must
    follow from the step, so that a killed run, whose state is kept in `folder` every so many
    steps, goes on as if nothing had happened.

    Raises:
        MismatchError: a loss is no number any more; `net` has its last good weights again.
    """
    optimizer = torch.optim.AdamW(parameters, options.lr, (0.9, 0.99), 1e-8, options.weight_decay)
    start = _restore(net, optimizer, folder)
    curve: list[dict[str, float]] = []
    good = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(start, options.steps):
        rate = learning_rate(options.lr, step, step / options.steps)
        values = _step(parameters, optimizer, loss, step, rate, options.clip)
        report(what, step + 1, options.steps)
        last = step + 1 == options.steps
        if (step + 1) % CHECK and (step + 1) % options.every and not last:
            continue
        floats = {name: float(value) for name, value in values.items()}
        try:
            check_finite(floats, step + 1)
        except MismatchError:
            net.load_state_dict(good)
            raise
        if (step + 1) % options.every == 0 or last:
            curve.append({"step": step + 1, **floats})
            good = {name: value.clone() for name, value in net.state_dict().items()}
            _keep(net, optimizer, step + 1, folder)
    return tuple(curve)


def _step(
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], dict[str, Tensor]],
    step: int,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    values = loss(step)
    next(iter(values.values())).backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return {name: value.detach() for name, value in values.items()}


def _keep(net: nn.Module, optimizer: torch.optim.Optimizer, step: int, folder: Path | None) -> None:
    """Weights, moments and the step, written aside and renamed."""
    if folder is None:
        return
    tensors = {f"net.{name}": value.clone() for name, value in net.state_dict().items()}
    for index, slot in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slot.items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STATE}.partial"
    part.write_bytes(pack(tensors | {"step": torch.tensor(step)}))
    part.replace(folder / STATE)


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, folder: Path | None) -> int:
    """The step to go on from."""
    if folder is None or not (folder / STATE).is_file():
        return 0
    tensors = unpack(folder / STATE)
    net.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("net.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            slots.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return int(tensors["step"])
