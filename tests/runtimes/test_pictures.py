import msgspec
import numpy as np
import pytest

from edgegen.bundle import OneShot
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.runtimes import _pictures, deploy
from edgegen.runtimes.callable import CallableSession
from edgegen.spec import GraphSpec, TensorSpec


def test_a_reconstruction_of_what_the_decoder_makes_is_exact(image_bundle):
    deployment = deploy(image_bundle)
    images = deployment.generate(num=70, seed=1)
    np.testing.assert_array_equal(deployment.reconstruct(images), images)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 1, 8, 9), np.float32), r"float32\[2, 1, 8, 9\]"),
        (np.zeros((2, 1, 8, 8)), r"float64\[2, 1, 8, 8\]"),
        (np.zeros((1, 8, 8), np.float32), r"float32\[1, 8, 8\]"),
        (np.zeros((1, 3, 8, 8), np.float32), r"float32\[1, 3, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_named(image_bundle, images, found):
    message = rf"image: wanted float32\[batch, 1, 8, 8\], found {found}"
    with pytest.raises(MismatchError, match=message):
        deploy(image_bundle).reconstruct(images)


def test_no_images_and_no_encoder_are_said(image_bundle, toys):
    with pytest.raises(UsageError, match="no images to reconstruct"):
        deploy(image_bundle).reconstruct(np.zeros((0, 1, 8, 8), np.float32))
    gan = toys.write_bundle(
        image_bundle.parent / "gan",
        "gan",
        OneShot("decoder", image="image"),
        {"decoder": (toys.DECODER, "toy-decoder")},
        [],
    )
    with pytest.raises(UsageError, match="has no encoder"):
        deploy(gan).reconstruct(np.zeros((1, 1, 8, 8), np.float32))


def test_a_graph_that_makes_no_image_is_pointed_elsewhere(image_bundle, toys):
    other = toys.write_bundle(
        image_bundle.parent / "encoder",
        "module",
        OneShot("encoder"),
        {"encoder": (toys.ENCODER, "toy-encoder")},
        [],
    )
    with pytest.raises(UsageError, match="makes no images") as error:
        deploy(other).generate(num=2)
    assert "out.npz" in error.value.hint


def test_an_interpolation_starts_and_ends_at_the_seeds_first_images(image_bundle):
    deployment = deploy(image_bundle)
    between = deployment.interpolate(num=5, seed=3)
    np.testing.assert_array_equal(between[[0, -1]], deployment.generate(num=2, seed=3))
    assert between.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("num", [1, 0, -3])
def test_an_interpolation_needs_two_ends(image_bundle, num):
    with pytest.raises(UsageError, match=f"num is {num}, an interpolation needs 2 or more"):
        deploy(image_bundle).interpolate(num)


def test_a_huge_interpolation_is_refused_with_the_estimate(image_bundle):
    with pytest.raises(UsageError, match=r"would need about .* GB"):
        deploy(image_bundle).interpolate(10**12)


def test_the_arc_between_orthogonal_latents_keeps_their_length():
    a, b = np.array([2.0, 0]), np.array([0, 2.0])
    points = _pictures.arc(a, b, 3)
    np.testing.assert_array_equal(points[[0, 2]], [a, b])
    np.testing.assert_allclose(points[1], [np.sqrt(2), np.sqrt(2)], rtol=1e-15)


def test_the_arc_between_parallel_latents_is_a_line():
    points = _pictures.arc(np.array([1.0, 1.0]), np.array([3.0, 3.0]), 3)
    np.testing.assert_array_equal(points, [[1, 1], [2, 2], [3, 3]])


def test_there_is_nothing_between_two_classes():
    np.testing.assert_array_equal(_pictures.arc(np.array([4]), np.array([9]), 3), [[4], [4], [4]])


def fixed(spec, batch):
    sides = (
        tuple(msgspec.structs.replace(s, shape=(batch, *s.shape[1:])) for s in side)
        for side in (spec.inputs, spec.outputs)
    )
    return GraphSpec(spec.name, *sides)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bundle_of_fixed_batch_makes_the_same_images(image_bundle, toys, batch):
    graphs = {
        "decoder": (fixed(toys.DECODER, batch), "toy-decoder"),
        "encoder": (fixed(toys.ENCODER, batch), "toy-encoder"),
    }
    static = toys.write_bundle(image_bundle.parent / "static", "vae", toys.IMAGES, graphs, [])
    want = deploy(image_bundle).generate(num=6, seed=2)
    np.testing.assert_array_equal(deploy(static).generate(num=6, seed=2), want)
    np.testing.assert_array_equal(deploy(static).reconstruct(want), want)


def test_a_graph_without_a_batch_is_refused():
    graph = GraphSpec(
        "one", (TensorSpec("z", "float32", (5,)),), (TensorSpec("image", "float32", (1, 8, 8)),)
    )
    with pytest.raises(UnsupportedError, match="share their first dimension"):
        _pictures.latents(graph, 2, 0)


class Beside(CallableSession):
    """Runs in threes, one after the other, and counts."""

    streams = 3

    def __init__(self, graph):
        super().__init__(graph, lambda feed: {"y": 2 * feed["x"]})
        self.sizes = []

    def run_beside(self, feeds):
        self.sizes.append([len(feed["x"]) for feed in feeds])
        return [self.run(feed) for feed in feeds]


@pytest.mark.parametrize(
    ("batch", "count", "sizes"),
    [
        ("batch", 7, [[3, 3, 1]]),
        ("batch", 2, [[1, 1]]),
        ("batch", 1, []),
        (2, 7, [[2, 2, 2]]),
        (2, 10, [[2, 2, 2], [2, 2]]),
        ("batch", 400, [[64] * 3, [64] * 3]),
    ],
)
def test_runs_go_side_by_side_and_every_image_lies_where_it_belongs(batch, count, sizes):
    x, y = (TensorSpec(name, "float32", (batch, 4)) for name in "xy")
    session = Beside(GraphSpec("g", (x,), (y,)))
    feed = {"x": np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)}
    np.testing.assert_array_equal(_pictures.render(session, feed, "y"), 2 * feed["x"])
    assert session.sizes == sizes
