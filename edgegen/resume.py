"""An unfinished training run on disk, so that a killed one can go on: `OUTPUT.training/state`.

    state/  the four files of a checkpoint, and
      optimizers.safetensors   moments and step counts, `PHASE.INDEX.NAME`
      progress.json            this file's `Progress`

All randomness of step n follows from the seed and n, so no generator is stored.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from msgspec import Struct
from torch import nn
from torch.optim import Optimizer

from edgegen import checkpoint, records
from edgegen.errors import UsageError
from edgegen.spec import ModelSpec

PROGRESS, OPTIMIZERS = "progress.json", "optimizers.safetensors"


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides what comes out; a run goes on only with the plan it began with."""

    family: str
    config: dict[str, Any]
    data: str
    data_sha256: str
    steps: int | None
    minutes: float | None
    batch: int
    lr: float
    seed: int
    processes: int = 1


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    """How far a run has come. `curve` holds the losses along the way."""

    plan: Plan
    step: int
    seconds: float
    curve: tuple[dict[str, float], ...]
    scaler: dict[str, Any]


def folder(output: Path) -> Path:
    """Where the run that will become `output` keeps what it has: state and samples."""
    return output.with_name(f"{output.name}.training")


def begun(output: Path) -> bool:
    """Is there an unfinished run of `output` to go on with?"""
    state = folder(output) / "state"
    records.recover(state)
    return (state / PROGRESS).is_file()


def save(
    output: Path,
    progress: Progress,
    net: nn.Module,
    optimizers: dict[str, Optimizer],
    tokenizer: bytes | None,
) -> None:
    """Write the state of a run, beside its name first."""
    with records.whole(folder(output) / "state") as part:
        spec = ModelSpec(progress.plan.family, progress.plan.config)
        checkpoint.write_into(part, spec, net, (), tokenizer)
        (part / OPTIMIZERS).write_bytes(checkpoint.pack(_tensors(optimizers)))
        records.write(progress, part / PROGRESS)


def load(output: Path, plan: Plan, net: nn.Module, optimizers: dict[str, Optimizer]) -> Progress:
    """Put the state of a run into `net` and `optimizers`.

    Raises:
        UsageError: the run began with another plan; the field is named.
        FormatError: a broken file.
    """
    state = folder(output) / "state"
    progress = records.read(Progress, state / PROGRESS)
    _same_plan(progress.plan, plan, state.parent)
    weights = state / checkpoint.WEIGHTS
    checkpoint.fill(net, checkpoint.unpack(weights), weights)
    _restore(optimizers, checkpoint.unpack(state / OPTIMIZERS))
    return progress


def copy_samples(output: Path, into: Path) -> None:
    """Put the sample images, where there are any, into the finished checkpoint."""
    if (folder(output) / "samples").is_dir():
        shutil.copytree(folder(output) / "samples", into / "samples")


def forget(output: Path) -> None:
    """Remove what the run of `output` kept."""
    shutil.rmtree(folder(output), ignore_errors=True)


def _same_plan(had: Plan, want: Plan, place: Path) -> None:
    for name in Plan.__struct_fields__:
        old, new = getattr(had, name), getattr(want, name)
        if old != new:
            raise UsageError(
                f"{place}: the unfinished run has {name} {old}, this one {new}",
                f"give the same options as before, or start anew: rm -r {place}",
            )


def _tensors(optimizers: dict[str, Optimizer]) -> dict[str, Any]:
    return {
        f"{phase}.{index}.{name}": value
        for phase, optimizer in optimizers.items()
        for index, slot in optimizer.state_dict()["state"].items()
        for name, value in slot.items()
    }


def _restore(optimizers: dict[str, Optimizer], tensors: dict[str, Any]) -> None:
    slots: dict[str, dict[int, dict[str, Any]]] = {phase: {} for phase in optimizers}
    for key, value in tensors.items():
        phase, index, name = key.split(".")
        slots[phase].setdefault(int(index), {})[name] = value
    for phase, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots[phase], "param_groups": groups})
