"""What `--input` says: NAME:DTYPE[DIM,...], a DIM being 3, batch or seq<=512; then @LOW..HIGH."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgegen.errors import UsageError
from edgegen.rooms import nearest
from edgegen.spec import TensorSpec

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
EXAMPLES = "--input 'image:float32[batch,3,64,64]'  or  --input 'ids:int64[batch,seq<=512]@0..999'"

_INPUT = re.compile(r"([A-Za-z_][\w.]*):(\w+)\[([^\[\]]*)\](?:@(.+?)\.\.(.+))?")
_FREE = re.compile(r"([A-Za-z_]\w*)(?:<=(\d+))?")


def parse_inputs(texts: Sequence[str]) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    """The input specs, and the largest size of each free dimension that has one.

    An integer without a range is 0 or 1.

    Raises:
        UsageError: not written as it should be; the hint shows how.
    """
    limits: dict[str, int] = {}
    specs: list[TensorSpec] = []
    for text in texts:
        spec = _parse(text, limits)
        if spec.name in {other.name for other in specs}:
            raise UsageError(f"--input {text!r}: {spec.name} is given twice", "leave one out")
        specs.append(spec)
    return tuple(specs), limits


def _parse(text: str, limits: dict[str, int]) -> TensorSpec:
    found = _INPUT.fullmatch(text.replace(" ", ""))
    if not found:
        raise UsageError(
            f"--input {text!r}: wanted NAME:DTYPE[DIM,...] or NAME:DTYPE[DIM,...]@LOW..HIGH",
            f"write it like {EXAMPLES}",
        )
    name, dtype, dims, low, high = found.groups()
    if dtype not in DTYPES:
        raise UsageError(f"--input {text!r}: no dtype {dtype!r}", nearest(dtype, DTYPES))
    shape = tuple(_dim(dim, text, limits) for dim in dims.split(",")) if dims else ()
    return TensorSpec(name, dtype, shape, *_range(text, dtype, low, high))


def _dim(dim: str, text: str, limits: dict[str, int]) -> int | str:
    if dim.isdecimal() and int(dim) > 0:
        return int(dim)
    found = _FREE.fullmatch(dim)
    if not found:
        raise UsageError(
            f"--input {text!r}: {dim!r} is no number from 1, no name and no NAME<=N",
            f"write it like {EXAMPLES}",
        )
    name, limit = found[1], int(found[2] or 0)
    if found[2] and (limit < 2 or limits.setdefault(name, limit) != limit):
        raise UsageError(
            f"--input {text!r}: {name}<={limit} is below 2, or not the limit given before",
            "give each free dimension one limit, from 2; a size that never changes is a number",
        )
    return name


def _range(
    text: str, dtype: str, low: str | None, high: str | None
) -> tuple[float | None, float | None]:
    if low is None or high is None:
        return (None, None) if dtype.startswith("float") else (0, 1)
    try:
        bounds = float(low), float(high)
    except ValueError as error:
        raise UsageError(
            f"--input {text!r}: {low}..{high} is no range of numbers", f"write it like {EXAMPLES}"
        ) from error
    if not bounds[0] <= bounds[1]:
        raise UsageError(f"--input {text!r}: the range {low}..{high} is empty", "swap its ends")
    return bounds
