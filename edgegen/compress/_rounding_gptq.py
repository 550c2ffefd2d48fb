"""GPTQ: round column after column, and let the columns still to come make good the error.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgegen.compress._rounding import Fit, Grid, snap, split
from edgegen.errors import MismatchError
from edgegen.spec import Scheme

BLOCK = 128  # columns whose errors are passed on at once
RETRIES = 5  # a Hessian that is not positive definite gets ten times the damping, so often


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    fit: Fit,
    *,
    damping: float = 0.01,
    act_order: bool = False,
) -> Grid:
    """Of weights on the grid those whose outputs, X W^T, are near the original's.

    `hessian` is X^T X (columns, columns) over the inputs X of the layer; with the identity this is
    round to nearest. `fit` finds the grid of a group when its turn comes; with `act_order`, where
    columns of strong inputs go first, of the original weight before anything is rounded.

    Raises:
        MismatchError: inputs that are not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise MismatchError("gptq: the layer's inputs are not finite", "check the weights and data")
    dead = hessian.diagonal() == 0  # never any input: its rounding matters to nobody
    hessian = hessian + torch.diag(dead.to(hessian.dtype))
    columns = weight.shape[1]
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    order = order if act_order else torch.arange(columns)
    upper = _upper(hessian[order][:, order], damping)
    scale, zero = fit(split(weight, scheme))
    work = weight[:, order].clone()
    size = scheme.group_size if scheme.group_size > 0 else columns
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.zeros(weight.shape[0], stop - start)
        for column in range(start, stop):
            if not act_order and column % size == 0 and column and scheme.group_size > 0:
                _refit(work, column, size, stop, errors, upper, fit, scale, zero, start)
            group = int(order[column]) // size if scheme.group_size > 0 else 0
            value = work[:, column]
            grid = scale[:, group : group + 1], zero[:, group : group + 1]
            rounded = snap(value[:, None, None], *grid, scheme)[:, 0, 0]
            error = (value - rounded) / upper[column, column]
            work[:, column:stop] -= error[:, None] * upper[column, column:stop]
            work[:, column] = rounded
            errors[:, column - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    rounded = torch.empty_like(work)
    rounded[:, order] = work
    return Grid(rounded, scale, None if scheme.symmetric else zero)


def _refit(
    work: Tensor,
    column: int,
    size: int,
    stop: int,
    errors: Tensor,
    upper: Tensor,
    fit: Fit,
    scale: Tensor,
    zero: Tensor,
    start: int,
) -> None:
    """The grid of the group that begins at `column`, of what its weights have become.

    Columns behind the block have not got the errors of this block yet.
    """
    end = column + size
    ahead = work[:, column:end].clone()
    if end > stop:
        ahead[:, stop - column :] -= errors @ upper[start:stop, stop:end]
    found = fit(ahead[:, None, :])
    group = column // size
    scale[:, group : group + 1], zero[:, group : group + 1] = found


def _upper(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse, damped by a share of the mean diagonal."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    for retry in range(RETRIES):
        damped = hessian + damping * 10**retry * mean * eye
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed) == 0:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if int(failed) == 0:
                return upper
    raise MismatchError(
        f"gptq: the inputs' correlations cannot be inverted, damped by {damping * 10**retry:g}",
        "give more calibration data, or a larger damping",
    )
