"""Runs of modules in which each alone reads what the one before it gives, as a convolution, its
batch norm and a ReLU: what one of them is scaled or shifted by, the next can take up.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from edgegen.quantized import KINDS

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LEAVES = (*KINDS, *NORMS)
RELUS = (torch.relu, nn.functional.relu, "relu")
Chain = list[tuple[str, nn.Module]]  # a function has no name


def chains(net: nn.Module) -> list[Chain]:
    """The children of every `Sequential`; where batch norms stand elsewhere, too, what following
    the data shows, through functions as far as they are ReLU.

    A net whose forward asks for values or shapes cannot be followed: of that the `Sequential`s are
    all there is. Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
    """
    found = _followed(net) if _has_loose_norms(net) else []
    seen = {name for chain in found for name, _ in chain}
    for at, body in net.named_modules():
        if isinstance(body, nn.Sequential):
            chain = [(f"{at}.{n}" if at else n, child) for n, child in body.named_children()]
            if seen.isdisjoint(name for name, _ in chain):
                found.append(chain)
    return found


def behind(net: nn.Module) -> dict[str, nn.Module]:
    """By the name of a module what alone reads its output."""
    return {name: reader for run in chains(net) for (name, _), (_, reader) in pairwise(run)}


def _has_loose_norms(net: nn.Module) -> bool:
    return any(
        isinstance(child, NORMS)
        for body in net.modules()
        if not isinstance(body, nn.Sequential)
        for child in body.children()
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or bool(super().is_leaf_module(m, module_qualified_name))


def _followed(net: nn.Module) -> list[Chain]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(net)
    except Exception:  # whatever a module does with numbers that are not there
        return []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    links = {node: link for node in graph.nodes if (link := _link(net, node, calls)) is not None}
    return [list(_run(node, links)) for node in links if _before(node) not in links]


def _link(net: nn.Module, node: Any, calls: Counter[str]) -> tuple[str, nn.Module] | None:
    """None for what is no module, or one that is used more than once."""
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module" and calls[node.target] == 1:
        return node.target, net.get_submodule(node.target)
    return ("", nn.ReLU()) if node.target in RELUS else None


def _before(node: Any) -> Any:
    """The node that it alone reads; None where others read that as well."""
    (source,) = node.all_input_nodes
    return source if len(source.users) == 1 else None


def _run(node: Any, links: dict[Any, tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    yield links[node]
    while len(node.users) == 1 and (node := next(iter(node.users))) in links:
        yield links[node]
