"""Distillation: a student learns to answer as its teacher, the model before the first step.

The student is the current model, pruned, quantized or adapted as it is, or a new and smaller one.

Source: Hinton et al. 2015, arXiv:1503.02531; layers: Romero et al. 2015, arXiv:1412.6550; text
layers: Jiao et al. 2020, arXiv:1909.10351; a GAN's generator: Li et al. 2020, arXiv:2003.08936.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import nn

from edgegen import checkpoint, records, rooms
from edgegen.compress._fit import Fit, fit
from edgegen.compress._lesson import Lesson
from edgegen.compress._weights import Weights
from edgegen.compress._work import Setting, Work
from edgegen.errors import FormatError, UnsupportedError, UsageError
from edgegen.quantizers import InputQuantizer, WeightQuantizer
from edgegen.spec import ModelSpec


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """What is compared (see `Weights`), and how long.

    `student` replaces fields of the configuration: a new net of that size learns from scratch. Of
    text, `top_k` keeps that many of the teacher's logits, all others as one. With `batches` as
    many batches come again and again, and `cache` keeps the teacher's answers to them on disk.
    """

    steps: int = 500
    batch: int = 16
    lr: float = 5e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 50
    output: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    perceptual: float = 0.0
    data: float = 0.0
    temperature: float = 2.0
    top_k: int = 0
    points: tuple[str, ...] = ()
    student: dict[str, Any] = {}
    batches: int = 0
    cache: bool = False


def apply(work: Work, options: Options, setting: Setting) -> Work:
    """The student after its training; with `student` it is a new net, else `work` goes on.

    Raises:
        UsageError: no teacher but the student itself; a student of another vocabulary, image size
            or latents; a number out of range; `cache` without `batches`.
        UnsupportedError: a comparison that this family has not.
        MismatchError: a loss is no number any more.
    """
    check(work, options, setting)
    spec, net = _student(work, options, setting)
    same_shapes = (spec.config, spec.shapes) == (setting.original.spec.config, {})
    share_average(net)
    student = work._replace(spec=spec, net=net)
    lesson = Lesson(
        setting.original,
        student,
        weights_of(options),
        setting,
        batch=options.batch,
        rounds=options.batches,
        cache=setting.folder / "teacher" if options.cache else None,
    )
    # Pruned or new, the statistics of its batch norms are to be found; else they stay as they are.
    net.train(not same_shapes)
    trained = trainable(net, lesson.mine, options.data > 0)
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    curve = fit(
        nn.ModuleList([net, lesson.extras]),
        [*trained, *lesson.extras.parameters()],
        lesson.loss,
        plan(options),
        folder=setting.folder,
        what="distil",
        report=setting.report,
    )
    for parameter, flag in zip(net.parameters(), wanted, strict=True):
        parameter.requires_grad_(flag).grad = None
    part_average(net, None if options.student else work.net)
    notes = {
        "learns from": lesson.questions.origin(),
        "parameters": sum(parameter.numel() for parameter in trained),
        "batch norms": "kept" if same_shapes else "follow the student",
        "curve": curve,
    }
    return work._replace(spec=spec, net=net.eval(), notes=notes)


def check(work: Work, options: Options, setting: Setting) -> None:
    """Raise `UsageError` for options out of range, or nothing to learn from."""
    check_plan(options)
    teacher: Work | None = setting.original
    if teacher is None or teacher.net is None:
        raise UsageError("distil: there is no teacher", "run it on a checkpoint that has weights")
    if options.batches < 0:
        raise UsageError(f"batches is {options.batches}", "0 for always new ones, or a number")
    if teacher.net is work.net and not options.student:
        raise UsageError(
            "distil: the student is the teacher: nothing to learn",
            "put it behind another step, or say how small the student is: student = {...}",
        )


def check_plan(options: Any) -> None:
    """Raise `UsageError` unless steps, batch, rate and the like are in range."""
    for name, least in (("steps", 1), ("batch", 1), ("every", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"{name} is {getattr(options, name)}", f"give {least} or more")
    for name, zero in (("lr", False), ("clip", False), ("weight_decay", True)):
        value = getattr(options, name)
        if not 0 <= value < float("inf") or (value == 0 and not zero):
            raise UsageError(f"{name} is {value}", "give a number above 0")


def plan(options: Any) -> Fit:
    """How long and how fast, as `fit` takes it."""
    return Fit(**{name: getattr(options, name) for name in Fit.__struct_fields__})


def weights_of(options: Options) -> Weights:
    """What is compared, as `Lesson` takes it."""
    return Weights(**{name: getattr(options, name) for name in Weights.__struct_fields__})


def _student(work: Work, options: Options, setting: Setting) -> tuple[ModelSpec, nn.Module]:
    """A copy of the current net, or a new one of its own size."""
    if not options.student:
        return work.spec, copy.deepcopy(work.net)
    if work.spec.family == checkpoint.MODULE:
        raise UnsupportedError(
            "student: a module without a family has no configuration",
            "prune it instead, and distil behind that",
        )
    if work.spec.shapes or work.spec.layers or work.spec.adapters:
        raise UsageError(
            "student: a new net would throw away what was pruned, quantized or adapted",
            "put this step first",
        )
    kind = rooms.load("edgegen.models", work.spec.family).Config
    try:
        config = records.convert(kind, work.spec.config | options.student, "student")
    except FormatError as error:
        raise UsageError(str(error), error.hint or "see the fields of Config") from error
    spec = ModelSpec(work.spec.family, msgspec.to_builtins(config))
    torch.manual_seed(setting.seed)
    return spec, checkpoint.build(spec)


def share_average(net: Any) -> None:
    """Of a GAN, let the generator that is exported be the one that is trained."""
    if hasattr(net, "average"):
        net.generator = net.average


def part_average(net: Any, before: Any) -> None:
    """Two generators again: that of `before`, or without it a copy of the one learnt; with the
    weights learnt where their names and shapes are the same.

    One with adapters or quantizers stays apart from a plain one.
    """
    if not hasattr(net, "average"):
        return
    net.generator = copy.deepcopy(before.generator if before is not None else net.average)
    mine, live = net.average.state_dict(), net.generator.state_dict()
    if {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in live.items()}:
        net.generator.load_state_dict(mine)
    for parameter in trainable(net.generator, {}, True):
        parameter.requires_grad_(True)


def trainable(net: nn.Module, parts: Any, with_losses: bool) -> list[nn.Parameter]:
    """The parameters of what is exported, with the family's own losses of all; but of no
    quantizer: those have a step of their own."""
    roots = [net] if with_losses else [module for module, _ in parts.values()]
    found: dict[int, nn.Parameter] = {}
    for root in roots:
        for module in root.modules():
            if not isinstance(module, WeightQuantizer | InputQuantizer):
                found |= {id(p): p for p in module.parameters(recurse=False)}
    return list(found.values())
