"""Training between two rounds of pruning, to win back what was lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgegen import batches, checkpoint, rooms
from edgegen.compress._dependency import outputs
from edgegen.compress._fit import Fit, fit
from edgegen.compress._probe import TEXT
from edgegen.compress._work import Setting, Work
from edgegen.errors import UsageError
from edgegen.runtimes.loops.oneshot import draw
from edgegen.spec import GraphSpec

OWN_LOSS = ("gpt", "vae")  # families that one loss and a batch of data are enough for
Masks = Mapping[str, Tensor]  # True where a weight stays, by parameter
Loss = Callable[[int], dict[str, Tensor]]


def loss_of(work: Work, net: nn.Module, setting: Setting, batch: int) -> tuple[Loss, str]:
    """What `net`, of `work`'s shape, is trained on in each step, and what that is called.

    The family's own loss on data where there is some; else the squared error against the outputs
    of the original on inputs drawn at random.

    Raises:
        UsageError: text without data: random tokens teach nothing.
    """
    family = work.spec.family
    if family in OWN_LOSS and setting.material is not None:
        return _own(family, net, setting, batch), "the family's own loss on the data"
    if family == TEXT:
        raise UsageError(
            "prune: a model of text learns from text, and there is no data",
            "add --data text:FILES; or leave out steps and importance = 'taylor'",
        )
    return _matching(work, net, setting, batch), "the original's outputs on drawn inputs"


def _own(name: str, net: nn.Module, setting: Setting, batch: int) -> Loss:
    family, material = rooms.load("edgegen.models", name), setting.material
    assert material is not None

    def loss(step: int) -> dict[str, Tensor]:
        rows = torch.from_numpy(batches.take(material, batch, step, setting.seed))
        noise = torch.Generator().manual_seed(setting.seed * 1_000_003 + step)
        found: dict[str, Tensor] = family.loss(net, rows, "net", noise)
        return found

    return loss


def _matching(work: Work, net: nn.Module, setting: Setting, batch: int) -> Loss:
    teacher = checkpoint.graphs(setting.original.spec, setting.original.net)
    student = checkpoint.graphs(work.spec, net)

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([setting.seed, step])
        error = torch.zeros(())
        for name, (module, graph) in student.items():
            inputs = drawn(graph, batch, rng)
            with torch.no_grad():
                wanted = outputs(teacher[name][0], inputs)
            for found, want in zip(outputs(module, inputs), wanted, strict=True):
                error = error + (found - want).square().mean() / want.square().mean().clamp(1e-12)
        return {"output_error": error}

    return loss


def _batch_norms(net: nn.Module) -> None:
    """Fewer channels have other statistics."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()


def drawn(graph: GraphSpec, batch: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Inputs of a graph, `batch` of them."""
    free = {n for spec in graph.inputs for n in spec.shape if isinstance(n, str)}
    feed = draw(graph, {n: min(batch, graph.limits.get(n, batch)) for n in free}, rng, {})
    return tuple(torch.from_numpy(np.ascontiguousarray(feed[s.name])) for s in graph.inputs)


def recover(
    work: Work, setting: Setting, options: Fit, number: int, masks: Masks | None = None
) -> tuple[Work, dict[str, Any]]:
    """The model after `options.steps` steps, and what happened; `masks` keep zeros zero.

    `number` is that of the round: its state is kept in a folder of its own.
    """
    net = copy.deepcopy(work.net)
    loss, what = loss_of(work, net, setting, options.batch)
    trained = _trained(work, net)
    net.eval() if what.startswith("the original") else net.train()
    _batch_norms(net)
    with _held(net, masks or {}):
        curve = fit(
            net,
            trained,
            lambda step: loss(step + number * options.steps),
            options,
            folder=setting.folder / f"round-{number}",
            what=f"recovery {number + 1}",
            report=setting.report,
        )
    for parameter, old in zip(net.parameters(), work.net.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
        parameter.grad = None
    if work.spec.family == "gan":
        # Training goes on from what was recovered: the average is what is exported.
        net.get_submodule("generator").load_state_dict(net.get_submodule("average").state_dict())
    note = {"steps": options.steps, "loss": what, "curve": list(curve)}
    return work._replace(net=net.eval()), note


def _trained(work: Work, net: nn.Module) -> list[nn.Parameter]:
    """The parameters of what is exported, and those that only training needs."""
    if work.spec.family in OWN_LOSS:
        return [p for p in net.parameters() if p.requires_grad]
    parts = checkpoint.graphs(work.spec, net).values()
    found = {id(p): p for module, _ in parts for p in module.parameters()}
    return [p.requires_grad_() for p in found.values()]


@contextmanager
def _held(net: nn.Module, masks: Masks) -> Iterator[None]:
    """Masked weights get no gradient: with no moment either, they stay as they are."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    hooks = [
        parameters[name].register_hook(lambda grad, m=mask: grad * m)
        for name, mask in masks.items()
        if parameters[name].requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
