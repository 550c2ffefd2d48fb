"""A method for tests that changes nothing."""

from msgspec import Struct


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """None."""


def apply(work, options, setting):
    return work
