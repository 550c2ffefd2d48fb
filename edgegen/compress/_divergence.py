"""How far a student's answer is from its teacher's; every one is 0 where both are equal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Top(NamedTuple):
    """A teacher's logits cut to the largest: `values` and `indices` (..., k), and `norm` (...),
    the logarithm of the sum of all exponentials at the temperature they were cut for."""

    values: Tensor
    indices: Tensor
    norm: Tensor


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of softened logits (..., classes), the mean over the rest, in
    nats. The T^2 keeps the gradient's size.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    wanted = (teacher / temperature).log_softmax(-1)
    found = (student / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1).mean()


def top_of(logits: Tensor, k: int, temperature: float) -> Top:
    """The `k` largest logits, and what is needed for their exact probabilities."""
    values, indices = logits.topk(k, dim=-1)
    return Top(values, indices.to(torch.int32), (logits / temperature).logsumexp(-1))


def kl_of_top(teacher: Top, student: Tensor, temperature: float = 1.0) -> Tensor:
    """`kl` over the teacher's k largest classes and all others as one; never more than `kl`."""
    wanted = teacher.values / temperature - teacher.norm[..., None]
    found = (student / temperature).log_softmax(-1).gather(-1, teacher.indices.long())
    each = (wanted.exp() * (wanted - found)).sum(-1)
    rest, mine = _rest(wanted), _rest(found)
    return temperature**2 * (each + rest.exp() * (rest - mine)).mean()


def _rest(logs: Tensor) -> Tensor:
    """The logarithm of the probability that is left."""
    left = (1 - logs.exp().sum(-1)).clamp_min(1e-7)
    return left.log()


def relative_error(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared error over the teacher's square: without a unit, so that outputs can be added."""
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-8)


def relations(x: Tensor, heads: int) -> Tensor:
    """How each position of `x` (batch, time, width) relates to those before it, as logits.

    Of shape (batch, heads, time, time); what comes later is -inf.

    Source: Wang et al. 2021, arXiv:2012.15828 (MiniLMv2), equation 3, with a causal mask.
    """
    parts = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, time, width / heads)
    scores = parts @ parts.mT / math.sqrt(parts.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(later, -math.inf)


def relation_error(teacher: Tensor, student: Tensor, heads: int) -> Tensor:
    """KL of the relations of two (batch, time, width); widths may differ, `heads` divides both."""
    wanted = relations(teacher, heads).log_softmax(-1)
    found = relations(student, heads).log_softmax(-1)
    seen = wanted.isfinite()
    each = wanted.exp() * (wanted.where(seen, 0) - found.where(seen, 0))
    return each.sum(-1).mean()
