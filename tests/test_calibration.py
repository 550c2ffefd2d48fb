"""What static int8 is calibrated on."""

import numpy as np
import pytest

from edgegen.calibration import BATCH, BATCHES, calibration
from edgegen.data import images
from edgegen.errors import NotFoundError, UsageError
from edgegen.images import write_grid
from edgegen.sources import open_source


@pytest.fixture
def vae(tiny_checkpoint):
    return open_source(str(tiny_checkpoint("vae")))


def test_only_int8_of_convolutions_is_calibrated(vae, tiny_checkpoint):
    assert calibration(vae, "fp32", None) == calibration(vae, "int4", None) == {}
    assert calibration(open_source(str(tiny_checkpoint("gpt"))), "int8", None) == {}
    assert set(calibration(vae, "int8", None)) == {"encoder", "decoder"}


def test_without_data_inputs_are_drawn_from_their_range_and_that_is_said(vae):
    found = calibration(vae._replace(history=()), "int8", None)["encoder"]
    assert found.origin == "calibrated on inputs drawn from their range"
    assert len(found.feeds) == BATCHES
    drawn = np.concatenate([feed["image"] for feed in found.feeds])
    assert drawn.min() >= 0 and drawn.max() <= 1


def test_real_images_are_taken_in_order_where_an_input_has_their_shape(vae):
    found = calibration(vae, "int8", "digits")
    assert found["encoder"].origin == "calibrated on digits"
    np.testing.assert_array_equal(found["encoder"].feeds[1]["image"], images("digits")[BATCH:16])
    assert found["decoder"].origin == "calibrated on inputs drawn from their range"


def test_a_checkpoint_is_calibrated_on_what_it_was_trained_on(vae):
    trained = vae._replace(history=({"kind": "train", "data": "digits"},))
    assert calibration(trained, "int8", None)["encoder"].origin == "calibrated on digits"


def test_data_that_no_input_can_take_is_refused_with_its_shape(tiny_checkpoint):
    gan = open_source(str(tiny_checkpoint("gan")))
    with pytest.raises(UsageError, match=r"--data digits: no graph of .* \[1, 8, 8\]") as error:
        calibration(gan, "int8", "digits")
    assert "leave --data out" in error.value.hint


def test_images_that_are_all_the_same_are_refused(vae, tmp_path):
    for name in ("one", "two"):
        write_grid(tmp_path / f"{name}.png", np.full((1, 1, 8, 8), 0.5, np.float32))
    with pytest.raises(UsageError, match="every image is the same") as error:
        calibration(vae, "int8", f"images:{tmp_path}")
    assert "the kind the model is used on" in error.value.hint


def test_a_folder_without_images_is_named(vae, tmp_path):
    with pytest.raises(NotFoundError, match=str(tmp_path)):
        calibration(vae, "int8", f"images:{tmp_path}")
