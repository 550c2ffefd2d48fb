import numpy as np
import pytest

from edgegen.bundle import OneShot
from edgegen.errors import MismatchError, UsageError
from edgegen.runtimes.callable import CallableSession
from edgegen.runtimes.loops import oneshot
from edgegen.spec import GraphSpec, Request, TensorSpec

LOOP = OneShot("echo")


def graph(*inputs, limits=None):
    """A graph whose outputs are its inputs."""
    outputs = tuple(TensorSpec(f"{s.name}_out", s.dtype, s.shape) for s in inputs)
    return GraphSpec("echo", inputs, outputs, limits or {})


def echo(feed):
    return {f"{name}_out": array for name, array in feed.items()}


def run(spec, request=None, inputs=None):
    request = request or Request()
    rng = np.random.default_rng(request.seed)
    sessions = {"echo": CallableSession(spec, echo)}
    (outputs,) = oneshot.steps(sessions, LOOP, request, rng, inputs)
    return outputs


LATENT = TensorSpec("z", "float32", ("batch", 5))


def test_a_run_is_one_step_and_its_outputs_are_the_sample():
    sessions = {"echo": CallableSession(graph(LATENT), echo)}
    loop = oneshot.steps(sessions, LOOP, Request(batch=2), np.random.default_rng(0))
    first = next(loop)
    with pytest.raises(StopIteration) as end:
        next(loop)
    assert end.value.value is first
    assert first["z_out"].shape == (2, 5)


def test_sample_i_depends_on_the_seed_and_i_only():
    label = TensorSpec("label", "int64", ("batch",), 0, 9)
    alone = run(graph(LATENT, label), Request(batch=1, seed=7))
    many = run(graph(LATENT, label), Request(batch=6, seed=7))
    for name in ("z_out", "label_out"):
        np.testing.assert_array_equal(many[name][:1], alone[name])
    other = run(graph(LATENT, label), Request(batch=6, seed=8))
    assert (other["z_out"] != many["z_out"]).all()


def test_latents_are_the_numbers_of_numpys_default_generator():
    found = run(graph(LATENT), Request(batch=3, seed=11))["z_out"]
    want = np.random.default_rng(11).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(found, want)


def test_half_precision_starts_from_the_same_numbers():
    half = run(graph(TensorSpec("z", "float16", ("batch", 5))), Request(batch=3))["z_out"]
    full = run(graph(LATENT), Request(batch=3))["z_out"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (TensorSpec("x", "int64", ("batch", 200), 3, 5), {3, 4, 5}),
        (TensorSpec("x", "int32", ("batch", 200)), {0, 1}),
        (TensorSpec("x", "int64", ("batch", 200), 4), {4, 5}),
        (TensorSpec("x", "bool", ("batch", 200)), {False, True}),
    ],
)
def test_integers_are_drawn_from_their_bounds_both_included(spec, allowed):
    found = run(graph(spec))["x_out"]
    assert found.dtype == np.dtype(spec.dtype)
    assert set(found.ravel().tolist()) == allowed


def test_floats_with_bounds_are_uniform_between_them():
    found = run(graph(TensorSpec("x", "float32", ("batch", 1000), 2.0, 4.0)))["x_out"]
    assert found.min() >= 2
    assert found.max() <= 4
    assert found.mean() == pytest.approx(3, abs=0.1)


def test_an_input_without_a_batch_is_drawn_once():
    scale = TensorSpec("scale", "float32", ())
    found = run(graph(LATENT, scale), Request(batch=3))
    assert found["scale_out"].shape == ()


def test_free_dimensions_come_from_the_inputs_the_request_and_a_default():
    a = TensorSpec("a", "float32", ("batch", "seq", "wide"))
    b = TensorSpec("b", "float32", ("batch", "short"))
    spec = graph(a, b, limits={"short": 4})
    assert run(spec, Request(batch=2, sizes={"seq": 3}))["a_out"].shape == (2, 3, 8)
    assert run(spec, Request(batch=2))["b_out"].shape == (2, 4)
    given = {"a": np.zeros((5, 6, 7), np.float32)}
    assert run(spec, Request(batch=2), given)["b_out"].shape == (5, 4)


def test_a_given_input_is_used_as_it_is():
    given = np.arange(10, dtype=np.float32).reshape(2, 5)
    np.testing.assert_array_equal(run(graph(LATENT), None, {"z": given})["z_out"], given)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((2, 5)), r"float64\[2, 5\]"),
        (np.zeros((2, 6), np.float32), r"float32\[2, 6\]"),
        (np.zeros(5, np.float32), r"float32\[5\]"),
    ],
)
def test_a_given_input_that_does_not_fit_is_named(array, found):
    with pytest.raises(MismatchError, match=rf"z: wanted float32\[batch, 5\], found {found}"):
        run(graph(LATENT), None, {"z": array})


@pytest.mark.parametrize(
    ("request_", "inputs", "message", "hint"),
    [
        (Request(), {"x": np.ones(1)}, "no input 'x'", "have: z"),
        (Request(sizes={"sek": 4}), {}, "no free dimension 'sek'", "did you mean 'seq'?"),
        (Request(sizes={"seq": 0}), {}, "seq is 0, wanted 1", ""),
        (Request(sizes={"seq": -2}), {}, "seq is -2, wanted 1", ""),
        (Request(sizes={"seq": 17}), {}, "seq is 17, wanted 1 to 16", ""),
        (Request(batch=10**10), {}, r"would need about .* GB of memory, .* are free", "less"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(request_, inputs, message, hint):
    spec = graph(TensorSpec("z", "float32", ("batch", "seq")), limits={"seq": 16})
    with pytest.raises(UsageError, match=message) as error:
        run(spec, request_, inputs)
    assert hint in error.value.hint


def test_a_fixed_batch_runs_as_it_is_and_no_other():
    spec = graph(TensorSpec("z", "float32", (4, 5)))
    assert run(spec)["z_out"].shape == (4, 5)
    assert run(spec, Request(batch=4))["z_out"].shape == (4, 5)
    with pytest.raises(UsageError, match="cannot run batch 3") as error:
        run(spec, Request(batch=3))
    assert "free dimension named batch" in error.value.hint
