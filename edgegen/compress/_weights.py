"""What of a student is compared with its teacher, and whether that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from torch import nn

from edgegen import checkpoint
from edgegen.compress._probe import TEXT
from edgegen.errors import UnsupportedError, UsageError
from edgegen.spec import GraphSpec, TensorSpec

Parts = Mapping[str, tuple[nn.Module, GraphSpec]]


class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """What is compared, and how much each counts; 0 leaves it out.

    `output`: logits of text at `temperature`, else all outputs. `hidden`: what layers put out,
    those of `points` (patterns) or the family's own. `attention`: relations of queries, keys and
    values in the last layer of text. `perceptual`: a GAN's images as the teacher's discriminator
    sees them. `data`: the family's own loss on the data.
    """

    output: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    perceptual: float = 0.0
    data: float = 0.0
    temperature: float = 2.0
    top_k: int = 0
    points: tuple[str, ...] = ()


def check_weights(weights: Weights, family: str, net: nn.Module, has_data: bool) -> None:
    """Raise unless every comparison makes sense for the family.

    Raises:
        UsageError: a number out of range, or none above 0; `data` without data.
        UnsupportedError: a comparison that this family has not.
    """
    named = msgspec.structs.asdict(weights)
    counted = {n: named[n] for n in ("output", "hidden", "attention", "perceptual", "data")}
    for name, value in counted.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} is {value}", "give 0 or more")
    if not any(counted.values()):
        raise UsageError("nothing is compared: all weights are 0", "set output = 1")
    if not 0 < weights.temperature < math.inf:
        raise UsageError(f"temperature is {weights.temperature}", "give a number above 0, as 2")
    fits_family = {
        "attention": (family == TEXT, "attention is of text models"),
        "perceptual": (hasattr(net, "discriminator"), "only a GAN has a discriminator to judge by"),
        "data": (family != checkpoint.MODULE, "a module without a family has no loss of its own"),
        "hidden": (
            family != checkpoint.MODULE or bool(weights.points),
            "a module without a family does not say which layers: name some in `points`",
        ),
    }
    for name, (fit, why) in fits_family.items():
        if counted[name] and not fit:
            raise UnsupportedError(f"{name}: {why}", f"leave {name} out for family {family}")
    if weights.data and not has_data:
        raise UsageError(
            "data: a loss on data, but none was given",
            "pass --data, or set data = 0 and output = 1",
        )
    if weights.top_k < 0 or (weights.top_k and family != TEXT):
        raise UsageError(f"top_k is {weights.top_k}", "0, or for text a number of tokens as 64")


def check_same_ends(theirs: Parts, mine: Parts) -> None:
    """Raise `UsageError` unless both take and give the same; a cache is each one's own."""
    for name, (_, want) in theirs.items():
        have = mine[name][1]
        ends = [(*g.inputs, *g.outputs) for g in (want, have)]
        pairs = zip(*([s for s in e if not _is_cache(s.name)] for e in ends), strict=True)
        for a, b in pairs:
            if a != b:
                raise UsageError(
                    f"student: {name} {b.name} is {_described(b)}, the teacher's {_described(a)}",
                    "a student takes and gives what its teacher does: leave the vocabulary, the "
                    "positions, the image size and the latents as they are",
                )


def _described(spec: TensorSpec) -> str:
    bounds = "" if spec.high is None else f" of {spec.low:g} to {spec.high:g}"
    return f"[{', '.join(map(str, spec.shape))}]{bounds}"


def _is_cache(name: str) -> bool:
    return name.startswith(("past_key_values.", "present."))
