"""Fixed batches that a model is run on, to calibrate it or to see what a change did to it.

Text is real, or sampled from the model itself; images are real where data was given; latents and
the inputs of models without a family are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgegen import rooms
from edgegen.batches import Material, windows
from edgegen.checkpoint import MODULE, graphs
from edgegen.compress._work import Setting, Work
from edgegen.errors import UsageError
from edgegen.runtimes.loops.oneshot import draw
from edgegen.spec import Array, GraphSpec, ModelSpec, Report

TEXT = "gpt"  # the family of text
BATCH = 8

Feeds = dict[str, dict[str, Tensor]]  # graph -> input -> values


class Probe(NamedTuple):
    """Batches, and what a net of that spec answers to one of them; where they come from."""

    batches: tuple[Any, ...]
    run: Callable[[nn.Module, Any], tuple[Tensor, ...]]
    origin: str


def probe(work: Work, setting: Setting, *, samples: int, tokens: int, drawn: bool = False) -> Probe:
    """`samples` sequences of up to `tokens` tokens, or as many images or drawn inputs.

    `drawn` leaves the data aside: text is then sampled from the model itself.

    Raises:
        UsageError: text without data; data of another shape or vocabulary, or all the same.
    """
    material = None if drawn else setting.material
    if work.spec.family == TEXT:
        return _text(work, material, samples, tokens, setting)
    return _others(work, material, samples, setting)


def _text(
    work: Work, material: Material | None, samples: int, tokens: int, setting: Setting
) -> Probe:
    if material is None:
        ids = sampled(work.net, samples, tokens, setting.seed, setting.report)
        origin = f"{samples} x {ids.shape[1]} tokens sampled from the model itself"
    else:
        check_text(material, int(work.spec.config["vocab_size"]))
        rows = min(samples, material.items())
        starts = np.linspace(0, material.items() - 1, rows).astype(np.int64)
        ids = torch.from_numpy(windows(material, starts)[:, :tokens]).long()
        origin = f"{len(ids)} x {ids.shape[1]} tokens of --data"
    return Probe(ids.split(BATCH), run_text, origin)


def run_text(net: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    """Logits (batch, time, vocabulary) of each token's successor."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return (net(ids, torch.ones_like(ids), positions, *net.empty_cache(ids.shape[0]))[0],)


def check_text(material: Material, vocabulary: int) -> None:
    """Raise `UsageError` for tokens that the model does not have, or only one of them."""
    if not material.window:
        raise UsageError("--data: images, but the model takes text", "use --data text:FILES")
    if len(material.training) and int(material.training.max()) >= vocabulary:
        raise UsageError(
            f"--data: token {int(material.training.max())}, the model has {vocabulary}",
            "tokenize the data with the model's own tokenizer",
        )
    _check_varied(material.training, "tokens")


def _check_varied(values: Array, what: str) -> None:
    if not len(values):
        raise UsageError(f"--data: empty: no {what}", "give other data")
    if not np.isfinite(values).all():
        raise UsageError(f"--data: {what} that are not finite", "give other data")
    if values.min() == values.max():
        raise UsageError(
            f"--data: all {what} are {values.flat[0]}: nothing can be calibrated on that",
            "give data like what the model will see",
        )


def sampled(net: nn.Module, samples: int, tokens: int, seed: int, report: Report) -> Tensor:
    """Token ids (samples, tokens) that the model says itself, at temperature 1.

    Source: Liu et al. 2023, arXiv:2305.17888 (LLM-QAT, data-free).
    """
    config: Any = net.config
    generator = torch.Generator().manual_seed(seed)
    length = min(tokens, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (samples, 1), generator=generator)
    cache = net.empty_cache(samples)
    with torch.no_grad():
        for past in range(length - 1):
            mask = torch.ones((samples, past + 1), dtype=torch.long)
            position = torch.full((samples, 1), past)
            logits, *cache = net(ids[:, -1:], mask, position, *cache)
            odds = logits[:, -1].softmax(-1)
            ids = torch.cat((ids, torch.multinomial(odds, 1, generator=generator)), 1)
            report("sampling calibration text", past + 2, length)
    return ids


def _others(work: Work, material: Material | None, samples: int, setting: Setting) -> Probe:
    found = graphs(work.spec, work.net)
    images = None if material is None else _images(material, found)
    count = -(-samples // BATCH)
    rng = np.random.default_rng([setting.seed, 7])
    batches = tuple(_feeds(found, images, index, rng) for index in range(count))
    real = any(_takes(graph, images) for _, graph in found.values())
    origin = f"{count * BATCH} {'images of --data' if real else 'inputs drawn from their range'}"
    return Probe(batches, run_graphs(work.spec), origin)


def _images(material: Material, found: dict[str, tuple[nn.Module, GraphSpec]]) -> Array:
    """The data's images, if any graph takes or gives ones of that shape."""
    if material.window:
        raise UsageError("--data: text, but the model has none", "use --data images:DIR")
    shape = material.training.shape[1:]
    specs = [s for _, g in found.values() for s in (*g.inputs, *g.outputs)]
    if not any(_fits(spec.shape[1:], shape) for spec in specs):
        wanted = ", ".join(f"{s.name} {list(s.shape[1:])}" for s in specs)
        raise UsageError(
            f"--data: images of {list(shape)}, the model has {wanted}", "give images of that shape"
        )
    _check_varied(material.training, "pixels")
    return material.training


def _fits(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(wanted, shape, strict=True)
    )


def _takes(graph: GraphSpec, images: Array | None) -> bool:
    spec = graph.inputs[0]
    return images is not None and _fits(spec.shape[1:], images.shape[1:])


def _feeds(
    found: dict[str, tuple[nn.Module, GraphSpec]],
    images: Array | None,
    index: int,
    rng: np.random.Generator,
) -> Feeds:
    feeds: Feeds = {}
    for name, (_, graph) in found.items():
        given: dict[str, Array] = {}
        if images is not None and _takes(graph, images):
            spec = graph.inputs[0]
            low, high = spec.low or 0.0, 1.0 if spec.high is None else spec.high
            rows = images[(np.arange(BATCH) + index * BATCH) % len(images)]
            given[spec.name] = (low + rows * (high - low)).astype(spec.dtype)
        free = {n for s in graph.inputs for n in s.shape if isinstance(n, str)}
        sizes = {n: min(BATCH, graph.limits.get(n, BATCH)) for n in free}
        drawn = draw(graph, sizes, rng, given)
        feeds[name] = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in drawn.items()}
    return feeds


def run_graphs(spec: ModelSpec) -> Callable[[nn.Module, Any], tuple[Tensor, ...]]:
    """Runs every graph of a net on its own inputs; all outputs, one after the other."""

    def run(net: nn.Module, feeds: Feeds) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for name, (module, graph) in graphs(spec, net).items():
            found = module(*(feeds[name][each.name] for each in graph.inputs))
            outputs += [found] if isinstance(found, Tensor) else list(found)
        return tuple(outputs)

    return run


def measured(
    work: Work, setting: Setting, found: Probe
) -> tuple[str, Callable[[nn.Module], float], float]:
    """What is lost by a changed net against `work.net`: its name, the measure, and a reference.

    Text: KL divergence of the next token in nats, against the cross entropy of the data. A VAE
    with data: the fall of the ELBO in nats an image, against the ELBO. Else the squared error of
    all outputs over their square, against 1.
    """
    name = work.spec.family
    family = None if name == MODULE else rooms.load("edgegen.models", name)
    with torch.no_grad():
        if work.spec.family == TEXT:
            return _measured_text(work, found)
        if family is not None and hasattr(family, "elbo") and setting.material is not None:
            return _measured_elbo(work, setting, family)
        wanted = [found.run(work.net, batch) for batch in found.batches]
    return "noise", lambda net: _noise(net, found, wanted), 1.0


def _measured_text(work: Work, found: Probe) -> tuple[str, Callable[[nn.Module], float], float]:
    logs = [found.run(work.net, ids)[0].log_softmax(-1) for ids in found.batches]
    nats = [
        nn.functional.nll_loss(log[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        for log, ids in zip(logs, found.batches, strict=True)
    ]

    @torch.no_grad()
    def kl(net: nn.Module) -> float:
        total = count = 0.0
        for log, ids in zip(logs, found.batches, strict=True):
            change = found.run(net, ids)[0].log_softmax(-1) - log
            # Both sum to 1, so e^change - 1 adds nothing; with it, no term is below 0 and small
            # losses are not lost in the noise of large ones that cancel.
            total += float((log.exp() * (change.expm1() - change)).sum(dtype=torch.float64))
            count += ids.numel()
        return total / count

    return "kl_nats", kl, float(torch.stack(nats).mean())


def _measured_elbo(
    work: Work, setting: Setting, family: Any
) -> tuple[str, Callable[[nn.Module], float], float]:
    assert setting.material is not None
    images = torch.from_numpy(setting.material.training[: 8 * BATCH]).float()

    @torch.no_grad()
    def elbo(net: nn.Module) -> float:
        # The same noise each time: only the net differs.
        return float(family.elbo(net, images, torch.Generator().manual_seed(setting.seed)))

    whole = elbo(work.net)
    return "elbo_nats", lambda net: whole - elbo(net), abs(whole)


@torch.no_grad()
def _noise(net: nn.Module, found: Probe, wanted: list[tuple[Tensor, ...]]) -> float:
    noise = signal = 0.0
    for batch, outputs in zip(found.batches, wanted, strict=True):
        for mine, theirs in zip(found.run(net, batch), outputs, strict=True):
            noise += float((mine - theirs).square().sum(dtype=torch.float64))
            signal += float(theirs.square().sum(dtype=torch.float64))
    return noise / max(signal, 1e-30)
