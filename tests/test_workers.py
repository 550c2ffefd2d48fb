import pytest
import torch

from edgegen.errors import NotFoundError
from edgegen.workers import Workers, pick_device


def test_auto_is_a_gpu_where_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["npu", "cuda", "gpu:x", "gpu:-1"])
def test_a_device_that_cannot_train_gets_a_hint(name):
    with pytest.raises(NotFoundError, match=f"no device '{name}' to train on") as error:
        pick_device(name)
    assert "gpu" in error.value.hint


def test_a_gpu_that_is_not_there_is_an_error_not_the_cpu():
    with pytest.raises(NotFoundError, match=r"sees [0-9]+ GPUs") as error:
        pick_device("gpu:99")
    assert error.value.hint == "use --device cpu, or run: edgegen devices --doctor"


def test_one_process_agrees_with_itself_and_keeps_full_precision():
    alone, tensor = Workers("cpu"), torch.ones(2)
    alone.average([tensor])
    with alone.autocast():
        assert (tensor @ tensor).dtype == torch.float32
    assert (alone.agreed(0.25), alone.precision) == (0.25, "fp32")
    alone.wait()
