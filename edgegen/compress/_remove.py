"""Units taken out of a model of any family."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgegen.compress import _decoder, _importance
from edgegen.compress._groups import Gone, Group, shrink
from edgegen.compress._probe import TEXT
from edgegen.compress._work import Work
from edgegen.structure import shapes_of


def removed(work: Work, groups: Iterable[Group], gone: Gone, *, merge: bool = False) -> Work:
    """The model without those units; with `merge` their readers turn to the nearest that stay.

    With none gone it is the same, bit for bit.
    """
    groups = _mirrored(work, groups)
    whole = shrink(work.net, [], {})
    if merge:
        _importance.merge(whole, groups, {name: list(units) for name, units in gone.items()})
    if work.spec.family == TEXT:
        return _decoder.without(work._replace(net=whole), groups, gone)
    small = shrink(whole, groups, gone)
    shapes = {**work.spec.shapes, **shapes_of(small, work.net)}
    return work._replace(spec=msgspec.structs.replace(work.spec, shapes=shapes), net=small)


def _mirrored(work: Work, groups: Iterable[Group]) -> tuple[Group, ...]:
    """A GAN's `average` is what is exported; the generator it averages has the same shape."""
    if work.spec.family != "gan":
        return tuple(groups)
    return tuple(
        group._replace(
            slices=group.slices
            + tuple(
                s._replace(tensor=s.tensor.replace("average.", "generator.", 1))
                for s in group.slices
            )
        )
        for group in groups
    )
