import numpy as np
import pytest

from edgegen.bundle import open_bundle
from edgegen.errors import FormatError, MismatchError, NotFoundError
from edgegen.runtimes import callable as in_memory
from edgegen.spec import GraphSpec, Options, TensorSpec

DOUBLE = GraphSpec(
    "double", (TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("n", 2)),)
)
X = np.ones((3, 2), np.float32)


def double(feed):
    return {"y": 2 * feed["x"]}


def test_a_session_runs_the_function():
    np.testing.assert_array_equal(in_memory.CallableSession(DOUBLE, double).run({"x": X})["y"], 2)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"x": X.astype(np.float64)}, r"x: wanted float32\[batch, 2\], found float64\[3, 2\]"),
        ({"x": X[0]}, r"x: wanted float32\[batch, 2\], found float32\[2\]"),
        ({"x": X[:, :1]}, r"x: wanted float32\[batch, 2\], found float32\[3, 1\]"),
        ({"z": X}, r"missing inputs \['x'\], unknown inputs \['z'\]"),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_was_wanted_and_found(feed, message):
    with pytest.raises(MismatchError, match=message):
        in_memory.CallableSession(DOUBLE, double).run(feed)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda feed: {"z": feed["x"]}, r"promised \['y'\], gave \['z'\]"),
        (lambda feed: {"y": feed["x"][0]}, r"y: wanted float32\[n, 2\], found float32\[2\]"),
    ],
)
def test_a_function_that_breaks_its_promise_is_told(function, message):
    with pytest.raises(MismatchError, match=message):
        in_memory.CallableSession(DOUBLE, function).run({"x": X})


def test_operators_are_counted_only_when_asked_for():
    plain = in_memory.CallableSession(DOUBLE, double)
    watched = in_memory.CallableSession(DOUBLE, double, Options(profile=True))
    for session in (plain, watched):
        session.run({"x": X})
        session.run({"x": X})
    assert plain.operators() == ()
    (row,) = watched.operators()
    assert (row.name, row.calls, row.device) == ("double", 2, "cpu")
    assert row.total_ms >= 0


def test_a_bundle_names_a_function_but_cannot_bring_one(text_bundle):
    file, graph = text_bundle / "model.callable", open_bundle(text_bundle).graph("model")
    assert in_memory.open_graph(file, graph, "cpu", Options()).graph == graph
    file.write_text('{"function": "os.system"}')
    with pytest.raises(NotFoundError, match=r"no function 'os.system' is registered") as error:
        in_memory.open_graph(file, graph, "cpu", Options())
    assert "callable.register" in error.value.hint


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "model.callable").write_text("{")
    with pytest.raises(FormatError, match=r"model.callable: not valid JSON"):
        in_memory.open_graph(tmp_path / "model.callable", DOUBLE, "cpu", Options())


def test_it_has_one_device(text_bundle):
    file, graph = text_bundle / "model.callable", open_bundle(text_bundle).graph("model")
    assert in_memory.devices() == ["cpu"]
    assert in_memory.version() == np.__version__
    with pytest.raises(NotFoundError, match="no device 'gppu'"):
        in_memory.open_graph(file, graph, "gppu", Options())
