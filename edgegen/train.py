"""Train a model of any family: one loop, the family's phases and losses.

What is random in step n follows from the seed and n alone, and the state is written every so many
steps, so a run that was killed and resumed ends, on a CPU, in the very bytes of one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from edgegen import batches, checkpoint, images, records, resume, rooms
from edgegen.batches import Material
from edgegen.errors import UnsupportedError, UsageError
from edgegen.resume import Plan, Progress
from edgegen.spec import ModelSpec, Report, silent
from edgegen.trainer import Recipe, Trainer, check_finite
from edgegen.workers import Workers

Note = Callable[[str], None]
LARGEST = 10**9  # steps and batch; more is a slip of the finger
CHECK = 10  # steps between two looks at the loss: on a GPU each look waits for the device


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """How to train. None is the family's own default; with `minutes` alone there is no step limit.

    `every` is the number of steps between two saved states, printed losses and sample grids.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    every: int = 100
    config: dict[str, Any] = {}


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """What a run did: its entry in history.json. `validation` is over held-out data."""

    kind: str
    family: str
    data: str
    items: int
    held_out: int
    parameters: int
    steps: int
    seconds: float
    batch: int
    lr: float
    seed: int
    device: str
    precision: str
    processes: int
    threads: int
    torch: str
    losses: dict[str, float]
    validation: dict[str, float]
    curve: tuple[dict[str, float], ...]


def train(
    family: str,
    data: str,
    output: Path | str,
    options: Options = Options(),  # noqa: B008  # frozen
    *,
    report: Report = silent,
    note: Note = lambda line: None,
) -> Run:
    """Train a model on `data` and write it to `output`, a checkpoint; the numbers of the run.

    Until the run is finished it lives in `OUTPUT.training`: state and sample images. Nothing
    under `output` is touched before. `note` gets a line of losses now and then.

    Raises:
        UsageError: a value out of range, an unknown field of the configuration, data of the
            wrong kind, or an unfinished run in the way.
        NotFoundError, FormatError, MissingExtraError: as `data.images` and `data.text`.
        MismatchError: the loss is no longer a number.
    """
    _check(options)
    output, module = Path(output), rooms.load("edgegen.models", family)
    if not hasattr(module, "loss"):
        raise UnsupportedError(f"{family} cannot be trained", f"{module.__name__} has no `loss`")
    checkpoint.check_replaceable(output)
    workers = Workers(options.device)
    material = batches.prepare(family, data, options.config, report)
    recipe = msgspec.convert(getattr(module, "TRAINING", {}), Recipe)
    plan = _plan(family, data, material, options, recipe, workers.num)
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(module, material, plan, recipe, workers)
        _begin(trainer, output, options.resume, note)
        try:
            with trainer.threads():
                _go_on(trainer, output, options.every, report, note)
                return _finish(trainer, output)
        except BaseException:
            if workers.rank == 0 and not resume.begun(output):
                resume.forget(output)  # pictures alone: nothing to go on from
            raise


def _check(options: Options) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    for name, low, high in (("steps", 1, LARGEST), ("batch", 1, LARGEST), ("every", 1, LARGEST)):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"--{name} {value}, wanted {low} to {high}", f"use --{name} 100")
    if options.minutes is not None and not 0 < options.minutes <= 1e6:
        raise UsageError(f"--minutes {options.minutes}, wanted above 0", "use --minutes 5")
    if options.lr is not None and not 0 < options.lr <= 10:
        raise UsageError(f"--lr {options.lr}, wanted above 0 and up to 10", "use --lr 1e-3")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed {options.seed}, wanted 0 to 2^63 - 1", "use --seed 0")


def _plan(
    family: str,
    data: str,
    material: Material,
    options: Options,
    recipe: Recipe,
    processes: int,
) -> Plan:
    """Options with the family's defaults filled in; raises `UsageError` for too large a batch."""
    batch, steps = options.batch or recipe.batch, options.steps
    if batch * processes > material.items():
        raise UsageError(
            f"--batch {batch} in {processes} process(es), but {data} has {material.items()} items "
            "to train on",
            f"use --batch {material.items() // processes} or less",
        )
    return Plan(
        family=family,
        config=msgspec.json.decode(msgspec.json.encode(material.config)),
        data=data,
        data_sha256=material.sha256(),
        steps=recipe.steps if steps is None and options.minutes is None else steps,
        minutes=options.minutes,
        batch=batch,
        lr=options.lr or recipe.lr,
        seed=options.seed,
        processes=processes,
    )


def _begin(trainer: Trainer, output: Path, wanted: bool, note: Note) -> None:
    """Take up an unfinished run when asked to; refuse to walk over one when not."""
    found = resume.begun(output)
    if found and not wanted:
        raise UsageError(
            f"{resume.folder(output)}: an unfinished run is there",
            f"add --resume to go on with it, or start anew: rm -r {resume.folder(output)}",
        )
    if not found:
        if wanted:
            note(f"{resume.folder(output)}: nothing to resume, starting from the beginning")
        return
    progress = resume.load(output, trainer.plan, trainer.net, trainer.optimizers)
    trainer.step, trainer.seconds = progress.step, progress.seconds
    trainer.curve = list(progress.curve)
    trainer.scaler.load_state_dict(progress.scaler)
    note(f"resuming after step {progress.step}")


def _go_on(trainer: Trainer, output: Path, every: int, report: Report, note: Note) -> None:
    """Train to the end, looking at the losses and saving the state every so many steps."""
    while (done := trainer.done()) < 1:
        losses = trainer.advance(done)
        _report(trainer, report)
        if trainer.step % CHECK == 0:
            check_finite(_floats(losses), trainer.step)
        if trainer.step % every == 0:
            _keep(trainer, output, _floats(losses), note)


def _floats(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in losses.items()}


def _report(trainer: Trainer, report: Report) -> None:
    plan = trainer.plan
    if plan.steps:
        report("training", trainer.step, plan.steps)
    elif plan.minutes:
        report("training, seconds", int(trainer.seconds), round(plan.minutes * 60))


def _keep(trainer: Trainer, output: Path, values: dict[str, float], note: Note) -> None:
    """A line of losses, a grid of samples, and the state to go on from."""
    check_finite(values, trainer.step)
    trainer.curve.append({"step": trainer.step} | values)
    if trainer.workers.rank:
        return
    figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    note(f"step {trainer.step}  {figures}  ({trainer.seconds:.1f} s)")
    _write_samples(trainer, resume.folder(output) / "samples")
    progress = Progress(
        trainer.plan,
        trainer.step,
        trainer.seconds,
        tuple(trainer.curve),
        trainer.scaler.state_dict(),
    )
    resume.save(output, progress, trainer.net, trainer.optimizers, trainer.material.tokenizer)


def _write_samples(trainer: Trainer, folder: Path) -> None:
    """`000100.png`: the samples after step 100, in a square; only of 1, 3 or 4 channels."""
    sheet = trainer.samples()
    if sheet is not None and sheet.shape[1] in images.MODES:
        images.write_grid(folder / f"{trainer.step:06d}.png", sheet.float().cpu().numpy())


def _finish(trainer: Trainer, output: Path) -> Run:
    """Write the checkpoint, with its history and sample images, and drop the state."""
    run = _run(trainer)
    if trainer.workers.rank == 0:
        plan = trainer.plan
        _write_samples(trainer, resume.folder(output) / "samples")
        with records.whole(output) as part:
            spec, history = ModelSpec(plan.family, plan.config), (msgspec.to_builtins(run),)
            checkpoint.write_into(part, spec, trainer.net, history, trainer.material.tokenizer)
            resume.copy_samples(output, part)
        resume.forget(output)
    trainer.workers.wait()
    return run


def _run(trainer: Trainer) -> Run:
    plan, workers = trainer.plan, trainer.workers
    gpu = workers.device.type == "cuda"
    return Run(
        kind="train",
        family=plan.family,
        data=plan.data,
        items=trainer.material.items(),
        held_out=len(batches.validation(trainer.material)),
        parameters=sum(p.numel() for p in trainer.net.parameters()),
        steps=trainer.step,
        seconds=round(trainer.seconds, 3),
        batch=plan.batch,
        lr=plan.lr,
        seed=plan.seed,
        device=torch.cuda.get_device_name(workers.device) if gpu else "cpu",
        precision=workers.precision,
        processes=plan.processes,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        losses=trainer.curve[-1] if trainer.curve else {},
        validation=trainer.validate(),
        curve=tuple(trainer.curve),
    )
