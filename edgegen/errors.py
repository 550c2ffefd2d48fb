"""Every error EdgeGen raises on purpose, and the exit code the command line gives it.

EdgeGenError             1
├── UsageError           2  an option or argument is out of range or contradicts another
├── NotFoundError        1  no plug-in, file or device of that name
├── MissingExtraError    1  an optional package is not installed
├── FormatError          1  a file on disk is broken, or of another version
├── UnsupportedError     1  this model, engine or device cannot do that
├── MismatchError        1  shapes, types or numbers are not what was promised
├── NotComparableError   1  two profiles were taken on different workloads
├── ParityError          3  the exported graph does not compute the model
├── GateError            4  a gate or budget was missed
└── FallbackError        5  the device asked for was not (fully) used

A message names the place, what was found and what was wanted; `hint` is the fix.
"""

from __future__ import annotations


class EdgeGenError(Exception):
    """Base of all; the command line prints `error: …` and `hint: …` and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(EdgeGenError):
    """An option or argument is out of range or contradicts another."""

    exit_code = 2


class NotFoundError(EdgeGenError):
    """No plug-in, file or device of that name."""


class MissingExtraError(EdgeGenError):
    """An optional package is not installed."""


class FormatError(EdgeGenError):
    """A file on disk is broken, or of another version."""


class UnsupportedError(EdgeGenError):
    """This model, engine or device cannot do that."""


class MismatchError(EdgeGenError):
    """Shapes, types or numbers are not what was promised."""


class NotComparableError(EdgeGenError):
    """Two profiles were taken on different workloads."""


class ParityError(EdgeGenError):
    """The exported graph does not compute the model."""

    exit_code = 3


class GateError(EdgeGenError):
    """A gate or budget was missed."""

    exit_code = 4


class FallbackError(EdgeGenError):
    """The device asked for was not (fully) used."""

    exit_code = 5
