"""NNCF: static int8 from calibration data, weight-only int8 and int4."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from edgegen.exporters import group_size
from edgegen.exporters._openvino_ledger import constant
from edgegen.spec import Feed


def compress(
    nncf: Any, model: Any, precision: str, calibration: Sequence[Feed], group: int
) -> tuple[Any, tuple[str, ...]]:
    """The compressed model, and what to say of it."""
    if precision == "int8" and calibration:
        return _static(nncf, model, calibration)
    mode = nncf.CompressWeightsMode
    if precision == "int8":
        model = nncf.compress_weights(model, mode=mode.INT8_ASYM)
        return model, ("weight-only int8 per channel, arithmetic in fp32",)
    size, short = group_size(channels(model), group)
    # Embeddings and the output layer become int8: NNCF's default, and what the ledger will say.
    model = nncf.compress_weights(model, mode=mode.INT4_ASYM, group_size=size, ratio=1.0)
    return model, (f"weight-only int4, group size {size}, arithmetic in fp32", *short)


def _static(nncf: Any, model: Any, calibration: Sequence[Feed]) -> tuple[Any, tuple[str, ...]]:
    """Weights and activations in int8; what is summed is left alone where there are group norms.

    Sums that such norms read are computed in floats: rounding what goes into them is a detour,
    slower and less exact. Without these norms sums are part of int8 convolutions, and floats are
    the detour.
    """
    data, count = nncf.Dataset([dict(feed) for feed in calibration]), len(calibration)
    notes: tuple[str, ...] = (f"static int8 calibrated on {count} batches",)
    ignored = None
    if any(node.get_type_name() == "GroupNormalization" for node in model.get_ops()):
        ignored = nncf.IgnoredScope(types=["Add"], validate=False)
        notes += ("sums are of fp32, for group norms read them",)
    return nncf.quantize(model, data, subset_size=count, ignored_scope=ignored), notes


@contextmanager
def nncf_quietly() -> Iterator[Any]:
    """NNCF, without its progress bars and news."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level(logging.ERROR)
        yield nncf


def channels(model: Any) -> dict[str, int]:
    """Input channels of every MatMul with a weight, by name."""
    found = {}
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            weight = constant(node.input_value(1))
            if weight is not None and len(weight.shape) == 2:
                transposed = node.get_attributes()["transpose_b"]
                found[node.get_friendly_name()] = weight.shape[1 if transposed else 0]
    return found
