"""Quantization-aware training: the model learns with its weights, and where asked its inputs,
rounded, so that it makes good what rounding did.

It starts from a float model, which is quantized first (to nearest, inputs calibrated), or goes on
from one that `quantize` left. In the forward pass all is rounded; gradients pass the rounding as if
it were not there. What is exported is exactly what was trained.

    train      weights   all that is exported, beside what is rounded
               adapters  the base stays: those beside the model, or new ones of `rank` directions
                         inside the rounding, of which nothing is left to compute with
    learned    the steps of the grids are trained, too, at `step_lr` of their own size a step

Source: Jacob et al. 2017, arXiv:1712.05877; steps: Esser et al. 2020, arXiv:1902.08153 (LSQ);
adapters inside: Bondarenko et al. 2024, arXiv:2406.06385 (LR-QAT).
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from edgegen.adapters import LowRank, adaptable, adapted, largest_rank
from edgegen.compress import _inside as inside
from edgegen.compress import quantize
from edgegen.compress._fit import fit
from edgegen.compress._lesson import Lesson
from edgegen.compress._observers import Observer
from edgegen.compress._scheme import name_of
from edgegen.compress._weights import Weights
from edgegen.compress._work import Setting, Work
from edgegen.compress.distil import check_plan, part_average, plan, share_average, trainable
from edgegen.errors import UnsupportedError, UsageError
from edgegen.folding import settle_biases
from edgegen.quantized import input_quantizer_of, is_quantized, quantizer_of

LEAST = 1e-3  # a learned step stays above this share of what it was
Quantizers = dict[str, nn.Module]


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """How a float model is quantized (as `quantize` has it), what is trained, on what, how long.

    `bits` is left out for a model that is quantized already. `output`, `hidden`, `attention` and
    `perceptual` weigh the likeness to the original model, `data` the family's own loss on the data.
    """

    bits: Annotated[int, Meta(ge=2, le=8)] | None = None
    group_size: Annotated[int, Meta(ge=-1)] | None = None
    symmetric: bool | None = None
    embedding_bits: Annotated[int, Meta(ge=0, le=8)] = 8
    activations: Literal["float", "static"] = "float"
    observer: Observer = "mse"
    calibration: Literal["data", "self"] = "data"
    samples: Annotated[int, Meta(ge=1)] = 32
    keep: tuple[str, ...] = ()
    layers: dict[str, str] = {}
    train: Literal["weights", "adapters"] = "weights"
    rank: Annotated[int, Meta(ge=1)] = 8
    alpha: Annotated[float, Meta(gt=0)] = 16.0
    learned: bool = False
    step_lr: Annotated[float, Meta(gt=0)] = 1e-3
    output: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    perceptual: float = 0.0
    data: float = 0.0
    temperature: float = 1.0
    points: tuple[str, ...] = ()
    steps: int = 500
    batch: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 50


def apply(work: Work, options: Options, setting: Setting) -> Work:
    """The quantized model after its training, every weight on its grid.

    Raises:
        UsageError: no precision for a float model, or one for a model that has its own; nothing to
            learn from; an option out of range.
        UnsupportedError: a comparison that this family has not; no layer to adapt.
        MismatchError: a loss or a weight is no number any more.
    """
    _check(work, options, setting)
    started = _quantized(work, options, setting)
    net = copy.deepcopy(started.net)
    _remember(net, started, setting)
    student = started._replace(net=net)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    parameters = list(net.parameters())
    share_average(net)
    held, grown = _adapters(net, options) if options.train == "adapters" else ([], {})
    lesson = Lesson(setting.original, student, _weights(options), setting, batch=options.batch)
    curve, moved = _train(net, lesson, grown, options, setting)
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag).grad = None
    _settle(net, held)
    part_average(net, started.net)
    notes = {
        **({"quantized": started.notes} if started is not work else {"quantized": "before"}),
        "precisions": dict(Counter(map(name_of, started.spec.layers.values()))),
        "learns from": lesson.questions.origin(),
        "trained": _told(grown, held, options),
        **({"steps of the grids": moved} if moved else {}),
        "batch norms": "kept",
        "curve": curve,
    }
    return started._replace(net=net.eval(), notes=notes)


def _check(work: Work, options: Options, setting: Setting) -> None:
    check_plan(options)
    told = [name for name in _START if getattr(options, name) != _DEFAULT[name]]
    if not is_quantized(work.net):
        if options.bits is None:
            raise UsageError(
                "qat: the model is not quantized, and no precision is given", "say bits = 4, or 8"
            )
        return
    if told:
        raise UsageError(
            f"qat: the model is quantized already, its grids stay: {told[0]} has no place",
            f"leave {', '.join(told)} out, or start from the checkpoint before it was quantized",
        )
    taught = any((options.hidden, options.attention, options.perceptual, options.data))
    if setting.original.net is work.net and not taught:
        raise UsageError(
            "qat: the teacher is this quantized model itself: nothing to learn",
            "give the model it was made from: --original CHECKPOINT; or --data and data = 1",
        )


_START = ("bits", "group_size", "symmetric", "embedding_bits", "activations", "observer",
          "calibration", "samples", "keep", "layers")  # fmt: skip
_DEFAULT = {name: getattr(Options(), name) for name in _START}


def _quantized(work: Work, options: Options, setting: Setting) -> Work:
    """`work` where it is quantized already; else rounded to nearest with the range of the
    least squared error, its float weights kept beside."""
    if is_quantized(work.net):
        return work
    asked = {name: getattr(options, name) for name in _START}
    found = quantize.apply(work, quantize.Options(clip=True, **asked), setting)
    for name in found.spec.layers:
        layer = found.net.get_submodule(name)
        layer.weight = work.net.get_submodule(name).weight.detach().clone()
    return found


def _remember(net: nn.Module, started: Work, setting: Setting) -> None:
    """Weights that lie on their grid already know again where between its points they came from."""
    exact = adaptable(setting.original.net)
    for name in started.spec.layers:
        layer = net.get_submodule(name)
        lies = torch.equal(layer.parametrizations["weight"].original, layer.weight)
        if lies and name in exact:
            inside.remember(layer, exact[name].weight.detach())


def _adapters(net: nn.Module, options: Options) -> tuple[list[str], dict[str, LowRank]]:
    """The layers that get an adapter inside their rounding, and all adapters that are trained."""
    beside = adapted(net)
    if beside:
        return [], beside
    grown: dict[str, LowRank] = {}
    for name, layer in adaptable(net).items():
        if quantizer_of(layer) is not None and largest_rank(layer) >= options.rank:
            grown[name] = inside.insert(layer, options.rank, options.alpha / options.rank)
    if not grown:
        raise UnsupportedError(
            f"qat: no quantized Linear, Conv2d or ConvTranspose2d takes adapters of rank "
            f"{options.rank}",
            'give a smaller rank, or train = "weights"',
        )
    return list(grown), grown


def _weights(options: Options) -> Weights:
    shared = set(Weights.__struct_fields__) & set(Options.__struct_fields__)
    return Weights(**{name: getattr(options, name) for name in shared})


def _train(
    net: nn.Module,
    lesson: Lesson,
    grown: dict[str, LowRank],
    options: Options,
    setting: Setting,
) -> tuple[tuple[dict[str, float], ...], dict[str, str]]:
    """Train in place; the losses, and how far the steps of the grids went."""
    net.eval()
    steps = _steps(net) if options.learned else {}
    if options.train == "adapters":
        net.requires_grad_(False)
        changed: nn.Module = nn.ModuleList([*grown.values(), *steps.values(), lesson.extras])
        if options.data and hasattr(net, "discriminator"):
            changed.append(net.discriminator)
        trained = trainable(changed, {}, True)
    else:
        changed = nn.ModuleList([net, lesson.extras])
        trained = [*trainable(net, lesson.mine, options.data > 0), *lesson.extras.parameters()]
    scales: list[Any] = [step.scale for step in steps.values()]
    for parameter in (*trained, *scales):
        parameter.requires_grad_(True)
    began = [scale.detach().clone() for scale in scales]

    def loss(step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            for scale, start in zip(scales, began, strict=True):
                scale.clamp_(min=start * LEAST)
        return lesson.loss(step)

    pace = options.step_lr / options.lr
    curve = fit(
        changed,
        trained,
        loss,
        plan(options),
        paced=[(s, pace * float(start.mean())) for s, start in zip(scales, began, strict=True)],
        folder=setting.folder,
        what="qat",
        report=setting.report,
    )
    with torch.no_grad():
        for scale, start in zip(scales, began, strict=True):
            scale.clamp_(min=start * LEAST)  # the last step of the optimiser, too
    return curve, _moved(steps, began)


def _steps(net: nn.Module) -> Quantizers:
    """All quantizers, by what they round."""
    found: Quantizers = {}
    for name, module in net.named_modules():
        for what, step in ("weight", quantizer_of(module)), ("input", input_quantizer_of(module)):
            if step is not None:
                found.setdefault(f"{name}.{what}", step)
    return found


def _moved(steps: Quantizers, began: list[Tensor]) -> dict[str, str]:
    """How far the step of each grid went: "0.93x to 1.08x"."""
    told = {}
    for (name, step), start in zip(steps.items(), began, strict=True):
        ratio: Tensor = step.scale.detach() / start
        told[name] = f"{ratio.min():.3g}x to {ratio.max():.3g}x"
    return told


def _settle(net: nn.Module, held: list[str]) -> None:
    """Leave every weight and bias on its grid, and nothing of the adapters inside."""
    for name in held:
        inside.settle(net.get_submodule(name))
    for module in net.modules():
        if quantizer_of(module) is not None:
            with torch.no_grad():
                module.parametrizations["weight"].original.copy_(module.weight)
    settle_biases(net)


def _told(grown: dict[str, LowRank], held: list[str], options: Options) -> str:
    if options.train == "weights":
        return "all weights"
    where = f"inside the rounding of {len(held)} layers" if held else "beside the model"
    return f"{len(grown)} adapters {where}"
