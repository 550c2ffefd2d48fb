"""The weights of a decoder of the `gpt` family, for the formats that are written from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.models._numpy import Decoder


def weights_of(module: Any) -> dict[str, NDArray[np.float32]]:
    """Every weight in fp32, and "frequencies" where it rotates; empty for any other module."""
    if isinstance(module, Decoder):  # first, for then there may be no torch
        turns = {"frequencies": module.frequencies} if module.config.style == "llama" else {}
        return {**module.weights, **turns}
    from edgegen.models.gpt import Net

    if not isinstance(module, Net):
        return {}
    found = module.state_dict() | dict(module.named_buffers())
    return {name: tensor.detach().float().numpy() for name, tensor in found.items()}
