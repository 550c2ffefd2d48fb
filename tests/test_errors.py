"""The tree of errors, and the exit code of each."""

import inspect
import re

import pytest

from edgegen import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
CODES = dict(re.findall(r"(\w+Error)\s+(\d)  ", errors.__doc__)) | {"EdgeGenError": "1"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_the_exit_code_its_drawing_says(kind):
    assert kind.exit_code == int(CODES[kind.__name__])


def test_every_error_is_drawn_and_stands_directly_under_the_base():
    assert {kind.__name__ for kind in KINDS} == set(CODES)
    assert {kind.__base__ for kind in KINDS} == {Exception, errors.EdgeGenError}


def test_an_error_says_what_and_keeps_the_fix_apart():
    error = errors.UsageError("batch is 0", "use at least 1")
    assert str(error) == "batch is 0"
    assert error.hint == "use at least 1"
    assert errors.UsageError("batch is 0").hint == ""
