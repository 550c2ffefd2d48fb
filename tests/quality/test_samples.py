"""Images that travel from a board to the machine that scores them."""

import msgspec
import numpy as np
import pytest

from edgegen import records
from edgegen.bundle import MANIFEST, open_bundle
from edgegen.errors import FormatError, MismatchError, NotFoundError
from edgegen.quality import samples


@pytest.fixture
def stored(image_bundle, tmp_path):
    bundle = open_bundle(image_bundle)
    about = samples.About("toy-vae", samples.identity(bundle), "callable", "cpu", 7)
    made = samples.Samples(np.random.default_rng(0).random((3, 1, 8, 8), np.float32), about)
    samples.save(made, tmp_path / "s.npz")
    return tmp_path / "s.npz", bundle, made


def test_samples_come_back_as_they_were(stored):
    path, bundle, made = stored
    found = samples.load(path, bundle)
    np.testing.assert_array_equal(found.images, made.images)
    assert found.about == made.about


def test_figures_in_the_manifest_leave_the_bundle_the_same(stored):
    path, bundle, _ = stored
    manifest = msgspec.structs.replace(bundle.manifest, quality={"ssim": 1.0})
    records.write(manifest, bundle.path / MANIFEST)
    assert samples.load(path, open_bundle(bundle.path)).about.seed == 7


def test_samples_of_another_bundle_are_refused(stored, onnx_bundle):
    with pytest.raises(MismatchError, match=r"made by another bundle, toy-vae; wanted .*toy-onnx"):
        samples.load(stored[0], open_bundle(onnx_bundle))


def test_no_file_and_a_broken_file_are_named(stored, tmp_path):
    path, bundle, _ = stored
    with pytest.raises(NotFoundError, match="no such file") as error:
        samples.load(tmp_path / "none.npz", bundle)
    assert "--write-samples" in error.value.hint
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"s\.npz: no samples"):
        samples.load(path, bundle)
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(FormatError, match=r"s\.npz: no samples"):
        samples.load(path, bundle)
