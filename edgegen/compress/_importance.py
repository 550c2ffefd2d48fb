"""How much a unit matters: the higher its score, the later it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from edgegen.compress._groups import Group, Slice
from edgegen.errors import UnsupportedError

Scores = dict[str, Tensor]  # (units,) of each group, by its name


def magnitude(net: nn.Module, groups: Iterable[Group], power: int) -> Scores:
    """The L1 or L2 norm of all weights that would go with a unit.

    Source: Li et al. 2017, arXiv:1608.08710; over the whole group: Fang et al. 2023,
    arXiv:2301.12900.
    """
    weights = dict(net.named_parameters(remove_duplicate=False))
    return {
        group.name: sum(
            (_units(weights[s.tensor].detach().abs() ** power, s) for s in _held(group, weights)),
            torch.zeros(group.units),
        )
        ** (1 / power)
        for group in groups
    }


def batch_norm_scale(net: nn.Module, groups: Iterable[Group]) -> Scores:
    """|scale| of the batch norm behind each channel.

    Raises:
        UnsupportedError: a group without one.

    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming).
    """
    norms = {
        f"{name}.weight": module.weight.detach().abs()
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    found: Scores = {}
    for group in groups:
        held = [s for s in group.slices if s.tensor in norms]
        if not held:
            raise UnsupportedError(
                f"prune: importance 'bn': no batch norm follows {group.name}",
                "use importance = 'l2', or leave that layer out with layers = [...]",
            )
        found[group.name] = sum((_units(norms[s.tensor], s) for s in held), torch.zeros(()))
    return found


def taylor(
    net: nn.Module, groups: Iterable[Group], losses: Iterable[Callable[[nn.Module], Tensor]]
) -> Scores:
    """The square of how much the loss would change without a unit, to first order; summed.

    `net` gets gradients, which are cleared again.

    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 8.
    """
    groups = list(groups)
    frozen = [p for p in net.parameters() if not p.requires_grad]
    found = {group.name: torch.zeros(group.units) for group in groups}
    net.requires_grad_()
    for loss in losses:
        net.zero_grad()
        loss(net).backward()
        weights = dict(net.named_parameters(remove_duplicate=False))
        for group in groups:
            makes = [s for s in _held(group, weights) if s.makes]
            found[group.name] += sum(
                (_units(_change(weights[s.tensor]), s) for s in makes), torch.zeros(group.units)
            ).square()
    net.zero_grad()
    for parameter in frozen:
        parameter.requires_grad_(False)
    return found


def _change(weight: nn.Parameter) -> Tensor:
    """Of the loss, when a weight becomes zero."""
    if weight.grad is None:
        return torch.zeros_like(weight)
    return (weight.grad * weight).detach()


def similarity(net: nn.Module, groups: Iterable[Group]) -> Scores:
    """How far a unit is from the nearest of those that stay; of two alike, one goes.

    Distances are a share of the two units' own length.

    Source: Srinivas and Babu 2015, arXiv:1507.06149 (data-free pruning by merging neurons).
    """
    state = net.state_dict()
    return {group.name: _apart(vectors(state, group)) for group in groups}


def vectors(state: Mapping[str, Tensor], group: Group) -> Tensor:
    """All numbers that make each unit, (units, numbers)."""
    rows = [
        state[s.tensor].float().movedim(s.axis, 0)[s.index].flatten(1)
        for s in group.slices
        if s.makes
    ]
    return torch.cat(rows, 1)


def distances(rows: Tensor) -> Tensor:
    """Between all pairs, (units, units), relative to the pair's lengths; infinite to itself."""
    lengths = rows.norm(dim=1)
    exact = "donot_use_mm_for_euclid_dist"  # matrix products make equal rows differ
    far = torch.cdist(rows, rows, compute_mode=exact) / (lengths[:, None] + lengths[None] + 1e-30)
    return far.fill_diagonal_(torch.inf)


def _apart(rows: Tensor) -> Tensor:
    """The distance at which each unit would be merged when the nearest pair goes first."""
    far, lengths = distances(rows), rows.norm(dim=1)
    scores = torch.full((len(rows),), torch.inf)
    latest = 0.0
    for _ in range(len(rows) - 1):
        one, other = divmod(int(far.argmin()), len(rows))
        goes = one if lengths[one] < lengths[other] else other
        # Never lower than those before: the order is what counts.
        latest = max(latest, float(far[one, other]))
        scores[goes] = latest
        far[goes], far[:, goes] = torch.inf, torch.inf
    scores[scores == torch.inf] = latest + 1
    return scores


def merge(net: nn.Module, groups: Iterable[Group], gone: Mapping[str, list[int]]) -> None:
    """Hand what is read from each unit that goes to the nearest that stays; in place.

    Where the two are the same, nothing is lost.
    """
    state = net.state_dict()
    for group in groups:
        if not (units := gone.get(group.name)):
            continue
        far = distances(vectors(state, group))
        far[:, units] = torch.inf
        heirs = far[units].argmin(dim=1)
        for place in group.slices:
            if not place.makes:
                rows = state[place.tensor].movedim(place.axis, 0)
                for entry in range(place.index.shape[1]):
                    column = place.index[:, entry]
                    rows.index_add_(0, column[heirs], rows[column[units]].clone())


def _held(group: Group, weights: Mapping[str, Tensor]) -> list[Slice]:
    """The statistics of a batch norm are no weights."""
    return [s for s in group.slices if s.tensor in weights]


def _units(values: Tensor, place: Slice) -> Tensor:
    """The sum over all entries of each unit, (units,)."""
    return values.movedim(place.axis, 0)[place.index].flatten(1).sum(1)
