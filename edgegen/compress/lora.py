"""Low-rank adaptation: a few directions of each layer are trained, the rest stays as it is.

On a quantized model merged adapters are trained inside the rounding, so that the result is as
small and fast as before; adapters that are not merged lie beside it in float.

Source: Hu et al. 2021, arXiv:2106.09685 (LoRA); Dettmers et al. 2023, arXiv:2305.14314 (QLoRA).
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from msgspec import Struct
from torch import nn

from edgegen import adapters, checkpoint, nf4
from edgegen.adapter_files import fitted, read_peft, save_peft
from edgegen.adapters import LowRank, adaptable, adapted, largest_rank, shapes
from edgegen.compress import _inside as inside
from edgegen.compress._fit import fit
from edgegen.compress._lesson import Lesson
from edgegen.compress._names import select
from edgegen.compress._weights import Weights
from edgegen.compress._work import Setting, Work
from edgegen.compress.distil import check_plan, part_average, plan, share_average
from edgegen.errors import UnsupportedError, UsageError
from edgegen.quantized import quantizer_of

MOST = 4  # with rank "auto" no layer gets more than this times the mean


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Which layers, how many directions, and what is learnt.

    `rank` "auto" gives the layers that matter most, as measured, more of the directions that
    `mean_rank` would give each. `data` and `output` weigh the family's own loss on the data and
    the likeness to the original model. With `base` "nf4" the adapted weights are held in 4 bits
    meanwhile. `adapter` is a PEFT folder to go on from (with steps = 0 it is taken as it is; so
    are the adapters that a model has already), `save` one to write. Without `merge` the adapters
    stay beside the model.
    """

    rank: int | Literal["auto"] = 8
    mean_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    layers: tuple[str, ...] = ("*",)
    base: Literal["as it is", "nf4"] = "as it is"
    merge: bool = True
    adapter: str = ""
    save: str = ""
    data: float = 1.0
    output: float = 0.0
    temperature: float = 1.0
    steps: int = 200
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    every: int = 50


def apply(work: Work, options: Options, setting: Setting) -> Work:
    """The model with adapters, trained; merged into its weights or beside them.

    Raises:
        UsageError: a rank out of range, a pattern that matches nothing, a layer that has an
            adapter, options that contradict each other.
        MismatchError: `adapter` is of another model; a loss is no number any more.
        UnsupportedError: NF4 on a quantized weight; a loss that the family has not.
    """
    if work.spec.adapters and options.merge and not (options.steps or options.adapter):
        return _merged(work)
    _check(options)
    net = copy.deepcopy(work.net)
    given = fitted(net, read_peft(options.adapter), options.adapter) if options.adapter else {}
    ranks = {n: len(f.a) for n, f in given.items()} or _ranks(work, options, setting)
    _check_inputs(work, ranks, options)
    held = _held(net, ranks, options)
    trained = _attach(net, ranks, held, options, setting)
    for name, factors in given.items():
        scale = trained[name].scale.new_tensor(factors.scale)
        trained[name].load_state_dict({"A": factors.a, "B": factors.b, "scale": scale})
    if options.base == "nf4":
        nf4.freeze(net, ranks)
    learnt = _train(work._replace(net=net), options, setting, trained) if options.steps else {}
    part_average(net, work.net)
    if options.base == "nf4":
        nf4.thaw(net)
    if options.save:
        save_peft(net, options.save)
    left = work.spec.adapters | ranks
    if options.merge:
        for name in held:
            inside.settle(net.get_submodule(name))
        adapters.merge(net)
        part_average(net, work.net)
        left = {}
    spec = msgspec.structs.replace(work.spec, adapters=left)
    notes = {"ranks": ranks, **_notes(work, options, held, trained, ranks), **learnt}
    return work._replace(spec=spec, net=net.eval(), notes=notes)


def _merged(work: Work) -> Work:
    """The model with the adapters that it has in its weights, and nothing learnt."""
    net = copy.deepcopy(work.net)
    names = adapters.merge(net)
    part_average(net, None)
    spec = msgspec.structs.replace(work.spec, adapters={})
    notes = {"ranks": work.spec.adapters, "adapters": f"merged, {len(names)} of them"}
    return work._replace(spec=spec, net=net.eval(), notes=notes)


def _held(net: nn.Module, ranks: dict[str, int], options: Options) -> list[str]:
    """The layers whose adapters are trained inside the rounding of their weight."""
    held = [n for n in ranks if options.merge and quantizer_of(net.get_submodule(n)) is not None]
    for name in ("save", "dropout"):
        if held and getattr(options, name):
            raise UsageError(
                f"{name}: merged into quantized weights, adapters are trained inside the rounding: "
                f"there is no {name}",
                f"set merge = false, or leave {name} out",
            )
    return held


def _attach(
    net: nn.Module,
    ranks: dict[str, int],
    held: list[str],
    options: Options,
    setting: Setting,
) -> dict[str, LowRank]:
    """New adapters on `net`, in place, by the name of their layer."""
    scale = options.alpha / (options.mean_rank if options.rank == "auto" else options.rank)
    torch.manual_seed(setting.seed)
    exact = adaptable(setting.original.net)
    beside = {name: rank for name, rank in ranks.items() if name not in held}
    adapters.attach(net, beside, scale=scale, dropout=options.dropout)
    trained = {name: each for name, each in adapted(net).items() if name in beside}
    for name in held:
        layer = net.get_submodule(name)
        most = largest_rank(layer)
        if ranks[name] > most:
            raise UsageError(f"{name}: rank {ranks[name]}, wanted 1 to {most}", "lower the rank")
        if name in exact:
            inside.remember(layer, exact[name].weight.detach())
        trained[name] = inside.insert(layer, ranks[name], scale)
    return trained


def _check(options: Options) -> None:
    if options.adapter and not options.steps:
        options = msgspec.structs.replace(options, steps=1)
    check_plan(options)
    for name in ("rank", "mean_rank"):
        value = getattr(options, name)
        if value != "auto" and value < 1:
            raise UsageError(f"{name} is {value}", 'give 1 or more, or rank = "auto"')
    if not 0 < options.alpha < float("inf"):
        raise UsageError(f"alpha is {options.alpha}", "give a number above 0, such as 16")
    if not 0 <= options.dropout < 1:
        raise UsageError(f"dropout is {options.dropout}", "give a share from 0 to below 1")


def _check_inputs(work: Work, ranks: dict[str, int], options: Options) -> None:
    """Refuse adapters that stay beside a layer whose input is rounded: none could be exported."""
    rounded = [n for n in ranks if n in work.spec.layers and work.spec.layers[n].input_bits]
    if rounded and not options.merge:
        raise UnsupportedError(
            f"lora: {rounded[0]}: its input is rounded to 8 bits, and an adapter beside it is not",
            "set merge = true: adapters are then trained inside the rounding",
        )


def exported_layers(work: Work) -> dict[str, nn.Module]:
    """The layers that can be adapted and are exported, by name."""
    parts = checkpoint.graphs(work.spec, work.net).values()
    exported = {id(each) for module, _ in parts for each in module.modules()}
    return {n: layer for n, layer in adaptable(work.net).items() if id(layer) in exported}


def _ranks(work: Work, options: Options, setting: Setting) -> dict[str, int]:
    """The rank of each layer that is adapted."""
    layers = exported_layers(work)
    if not layers:
        raise UnsupportedError(
            "lora: no Linear, Conv2d or ConvTranspose2d in what is exported", "nothing to adapt"
        )
    chosen = {name: layers[name] for name in select(layers, options.layers)}
    if options.rank == "auto":
        ranks = spread(_relevance(work, setting, list(chosen)), chosen, options.mean_rank)
    else:
        ranks = dict.fromkeys(chosen, options.rank)  # asked for by name: refused if too high
        if options.layers == ("*",):
            ranks = {n: r for n, r in ranks.items() if largest_rank(chosen[n]) >= r}
    if not ranks:
        most = max(map(largest_rank, chosen.values()))
        raise UsageError(
            f"lora: rank {options.rank}: no layer is left to adapt",
            "no layer matters enough for one direction: raise mean_rank, or give a rank"
            if options.rank == "auto"
            else f"ask for a rank of at most {most}, the smaller side of the largest layer",
        )
    return ranks


def _relevance(work: Work, setting: Setting, names: list[str]) -> dict[str, float]:
    """What the model loses when one layer alone is rounded as it is now, or loses half its rows."""
    from edgegen.compress._scheme import name_of
    from edgegen.sensitivity import ledger

    kinds = Counter(name_of(scheme) for n, scheme in work.spec.layers.items() if n in names)
    change = kinds.most_common(1)[0][0] if kinds else "prune-0.5"
    whole = setting.original if kinds else work
    drawn = setting.material is None
    found = ledger(whole, setting, (change,), drawn=drawn)
    losses = {row.layer: row.loss for row in found.rows if row.change == change}
    return {name: max(losses.get(name, 0.0), 0.0) for name in names}


def spread(losses: dict[str, float], layers: dict[str, nn.Module], mean: int) -> dict[str, int]:
    """Ranks in proportion to the losses, of as many numbers as rank `mean` for all would take.

    No layer gets more than `MOST` times the mean, nor one whose share is below one direction any.
    """
    cost = {n: sum(_size(shape) for shape in shapes(layer, 1)) for n, layer in layers.items()}
    budget, whole = mean * sum(cost.values()), sum(losses.values())
    shares = {n: losses[n] / whole if whole else cost[n] / sum(cost.values()) for n in layers}
    ranks = {
        n: min(round(shares[n] * budget / cost[n]), MOST * mean, largest_rank(layers[n]))
        for n in layers
    }
    return {name: rank for name, rank in ranks.items() if rank >= 1}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for number in shape:
        size *= number
    return size


def _train(
    work: Work, options: Options, setting: Setting, trained: dict[str, LowRank]
) -> dict[str, Any]:
    """Train the adapters of `work.net` in place, of a GAN with data its discriminator too."""
    net: Any = work.net
    wanted = {name: p.requires_grad for name, p in net.named_parameters()}
    share_average(net)
    weights = Weights(output=options.output, data=options.data, temperature=options.temperature)
    lesson = Lesson(setting.original, work, weights, setting, batch=options.batch)
    net.eval().requires_grad_(False)
    changed = nn.ModuleList(trained.values())
    changed.train().requires_grad_(True)
    if options.data and hasattr(net, "discriminator"):
        changed.append(net.discriminator.train().requires_grad_(True))
    curve = fit(
        changed,
        list(changed.parameters()),
        lesson.loss,
        plan(options),
        folder=setting.folder,
        what="lora",
        report=setting.report,
    )
    net.eval()
    for name, parameter in net.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(wanted.get(name, parameter.requires_grad)).grad = None
    return {"learns from": lesson.questions.origin(), "curve": curve}


def _notes(
    work: Work,
    options: Options,
    held: list[str],
    trained: dict[str, LowRank],
    ranks: dict[str, int],
) -> dict[str, Any]:
    """What was trained, what became of it, and which layers were left out."""
    where = "merged" if options.merge else "beside the model"
    if held:
        where = f"merged inside the rounding of {len(held)} quantized layers"
    count = sum(p.numel() for each in trained.values() for p in each.parameters())
    notes: dict[str, Any] = {"trained parameters": count, "adapters": where}
    if not options.adapter:
        asked = select(exported_layers(work), options.layers)
        left = [name for name in asked if name not in ranks]
        why = "matter too little" if options.rank == "auto" else "are smaller than the rank"
        notes |= {f"left out: they {why}": left} if left else {}
    if options.base == "nf4":
        notes["base"] = "the adapted weights are now those that NF4 holds, in fp32"
    if options.save:
        notes["saved"] = str(Path(options.save))
    return notes
