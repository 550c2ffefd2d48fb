"""Multiply-accumulates of a torch module, as torch's own counter sees them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgegen.macs import size_of
from edgegen.spec import GraphSpec


def count(module: nn.Module, graph: GraphSpec, sizes: Mapping[str, int]) -> int:
    """MACs of one run of `module` at `sizes`; matrix products, convolutions and attention."""
    inputs = [
        torch.zeros([size_of(dim, sizes) for dim in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in graph.inputs
    ]
    # The counter does not know the CPU's fused attention; spelled out, it counts the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    flops: int = counter.get_total_flops()
    return flops // 2
