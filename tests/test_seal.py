"""What every engine found, and what is said of it."""

import msgspec
import numpy as np
import pytest

from edgegen.bundle import Drift
from edgegen.errors import ParityError
from edgegen.seal import raise_unless_ok, tools


def test_every_output_that_is_off_is_named():
    good = Drift("e", "model", "one", "y", 0.0, 200.0, "rule", True)
    bad = msgspec.structs.replace(good, case="two", ok=False, max_abs_error=0.5, sqnr_db=3.0)
    raise_unless_ok([good])
    with pytest.raises(ParityError) as error:
        raise_unless_ok([good, bad])
    assert str(error.value) == (
        "1 of 2 outputs are not what the model computes:\n"
        "  e model two y: max abs error 0.5, SQNR 3.0 dB, wanted rule"
    )
    assert "--data" in error.value.hint


def test_versions_are_of_what_is_installed():
    assert tools()["numpy"] == np.__version__
