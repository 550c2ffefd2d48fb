"""A method for tests: the last hidden channels of every MLP of a GPT are cut off."""

from typing import Annotated

import msgspec
import torch
from msgspec import Meta, Struct

from edgegen import checkpoint


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """`ratio` of the hidden channels goes; `broken` leaves weights that are no numbers."""

    ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    broken: bool = False


def apply(work, options, setting):
    width = work.spec.config["intermediate_size"]
    kept = round(width * (1 - options.ratio))
    config = work.spec.config | {"intermediate_size": kept}
    spec = msgspec.structs.replace(work.spec, config=config)
    net = checkpoint.build(spec).eval()
    state = net.state_dict()
    with torch.no_grad():
        for name, tensor in work.net.state_dict().items():
            rows = tuple(slice(0, size) for size in state[name].shape)
            state[name].copy_(tensor[rows] * (float("nan") if options.broken else 1))
    return work._replace(spec=spec, net=net, notes={"hidden": [width, kept]})
