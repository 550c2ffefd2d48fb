import psutil
import pytest

from edgegen.errors import UsageError
from edgegen.runtimes import _memory
from edgegen.spec import TensorSpec


def test_bytes_are_elements_times_their_size():
    specs = [
        TensorSpec("a", "float32", ("batch", 3)),
        TensorSpec("b", "int64", ("batch", "seq")),
        TensorSpec("c", "float16", ()),
        TensorSpec("d", "bool", ("unknown", 7)),
    ]
    assert _memory.tensors_bytes(specs, {"batch": 2, "seq": 5}) == 2 * 3 * 4 + 2 * 5 * 8 + 2 + 7


def test_what_does_not_fit_is_refused_with_estimate_and_what_is_free():
    _memory.afford("this", 1000, "")
    with pytest.raises(UsageError, match=r"this would need about [\d,]+.\d GB .*GB are free") as e:
        _memory.afford("this", psutil.virtual_memory().total * 10, "take less")
    assert e.value.hint == "take less"
