"""`edgegen inspect`, in this process."""

import json

import msgspec
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import Drift
from edgegen.cli import main


@pytest.fixture
def inspect(monkeypatch, capsys):
    """Run the command; (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr("sys.argv", ["edgegen", "inspect", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def told(image_bundle):
    """The image bundle with a history, and with drifts of which one is bad."""
    manifest = bundles.open_bundle(image_bundle).manifest
    drifts = (
        Drift("onnxruntime", "decoder", "one", "image", 0.5, 31.25, "SQNR >= 20 dB", True),
        Drift("onnxruntime", "decoder", "two", "image", 2.0, 11.0, "SQNR >= 20 dB", False),
    )
    manifest = msgspec.structs.replace(manifest, drifts=drifts, history=({"steps": 300},))
    records.write(manifest, image_bundle / bundles.MANIFEST)
    return image_bundle


def test_a_bundle_is_printed_with_its_graphs_files_and_sums_of_layers(inspect, told):
    code, out, err = inspect(told)
    assert (code, err) == (0, "")
    for expected in (
        "bundle toy-vae: vae fp32, 4 parameters",
        "graph decoder",
        "batch, 1, 8, 8",
        "MACs at batch=1",
        "unknown",
        "decoder callable note: operators and MACs are read from onnx and openvino files only",
        "decoder callable: layers",
        "drift at export, onnxruntime: 1 of 2 outputs ok; worst decoder two image: "
        "max abs error 2, SQNR 11.0 dB (rule: SQNR >= 20 dB)",
        "history: steps 300",
    ):
        assert expected in out
    assert "│1      │ Linear │ fp32" in out


def test_every_layer_is_named_when_asked_for(inspect, text_bundle):
    out = inspect(text_bundle, "--layers")[1]
    assert "│weight │ Linear │ fp32" in out


def test_operators_are_listed_with_how_often_they_stand_in_the_file(inspect, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, ["n", 3])], [value("y", 1, ["n", 3])]
    nodes = [onnx.helper.make_node("Relu", [a], [b]) for a, b in ("xh", "hy")]
    graph = onnx.helper.make_graph(nodes, "g", *ends)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
    out = inspect(tmp_path / "net.onnx", "--size", "n=5")[1]
    assert "onnx net: onnx, 0 parameters" in out
    assert "net onnx operators: 2 Relu" in out
    assert "MACs at n=5" in out


def test_json_is_the_record(inspect, image_bundle):
    found = json.loads(inspect(image_bundle, "--json", "--size", "batch=2")[1])
    assert found["kind"] == "bundle"
    assert found["sizes"] == {"batch": 2}
    assert found["weights_mb"]["fp16"] == 8 / 1e6


@pytest.mark.parametrize("size", ["batch=-1", "batch", "=3", "batch=two"])
def test_a_size_that_is_no_number_is_a_usage_error_with_an_example(inspect, image_bundle, size):
    code, out, err = inspect(image_bundle, "--size", size)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: --size {size}: wanted NAME=N",
        "hint:  for example --size batch=1 --size seq=7",
    ]


def test_nothing_there_is_an_error_with_a_hint(inspect, tmp_path):
    code, out, err = inspect(tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "hint:  " in err
