"""Bundles, ONNX files and checkpoints, looked into."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import inspect as inspecting
from edgegen import records
from edgegen.bundle import Artifact, Drift, Layer
from edgegen.errors import FormatError, NotFoundError

# y = x W with W of 4 x 16, as OpenVINO writes it (cut down to what is read).
XML = """<net name="g"><layers><layer id="0" type="Parameter"/><layer id="1" type="Const"/>
<layer id="2" type="MatMul"/><layer id="3" type="Const"/></layers></net>"""


def write_onnx(path, columns=16):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["latent", "w"], ["image"])],
        "g",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(np.zeros((4, columns), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)


@pytest.fixture
def formats(image_bundle):
    """The image bundle with its decoder as an ONNX and an OpenVINO file, too."""
    layer = Layer("w", "MatMul", "int4", 64, 16, "weight-only")
    write_onnx(image_bundle / "decoder" / "model.onnx")
    (image_bundle / "decoder" / "openvino_model.xml").write_text(XML)
    (image_bundle / "decoder" / "openvino_model.bin").write_bytes(bytes(1000))
    manifest = bundles.open_bundle(image_bundle).manifest
    new = (
        Artifact("decoder", "onnx", "decoder/model.onnx", (layer,), ("made for a test",)),
        Artifact("decoder", "openvino", "decoder/openvino_model.xml", (layer,)),
    )
    change = {
        "artifacts": (*manifest.artifacts, *new),
        "files": bundles.sums(image_bundle),
        "drifts": (Drift("onnxruntime", "decoder", "one", "image", 0.5, 31.0, "sqnr >= 20", True),),
        "history": ({"step": "train", "loss": 1.5},),
    }
    records.write(msgspec.structs.replace(manifest, **change), image_bundle / bundles.MANIFEST)
    return image_bundle


def test_a_bundle_shows_graphs_files_macs_ledger_and_history(formats):
    found = inspecting.inspect(formats, {"batch": 3})
    assert (found.kind, found.name, found.family) == ("bundle", "toy-vae", "vae")
    assert [graph.name for graph in found.graphs] == ["decoder", "encoder"]
    assert found.sizes == {"batch": 3}
    onnx = next(file for file in found.files if file.format == "onnx")
    assert (onnx.opset, onnx.parameters, onnx.macs) == (20, 64, 3 * 4 * 16)
    assert onnx.operators == {"MatMul": 1}
    assert onnx.notes == ("made for a test",)
    assert onnx.layers == (Layer("w", "MatMul", "int4", 64, 16, "weight-only"),)
    assert found.drifts[0].engine == "onnxruntime"
    assert found.history == ({"step": "train", "loss": 1.5},)


def test_an_openvino_file_shows_its_operators_and_says_that_macs_are_not_counted(formats):
    found = inspecting.inspect(formats)
    file = next(file for file in found.files if file.format == "openvino")
    assert file.operators == {"Const": 2, "Parameter": 1, "MatMul": 1}
    assert file.macs is None
    assert "--to onnx" in file.notes[0]
    assert file.size_mb == (len(XML) + 1000) / 1e6


def test_weights_at_each_precision_are_parameters_times_bytes():
    assert inspecting.weights_mb(2_000_000) == {"fp32": 8.0, "fp16": 4.0, "int8": 2.0, "int4": 1.0}


def test_an_onnx_file_on_its_own_is_read(tmp_path):
    write_onnx(tmp_path / "net.onnx")
    found = inspecting.inspect(tmp_path / "net.onnx", {"batch": 2})
    assert (found.kind, found.parameters, found.files[0].macs) == ("onnx", 64, 2 * 4 * 16)
    assert found.graphs[0].inputs[0].shape == ("batch", 4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vae", "gan", "gpt"])
def test_a_checkpoint_and_its_export_agree_on_the_macs(tmp_path, family):
    """torch counts what it runs, ours what stands in the file: two ways to one number."""
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from edgegen import checkpoint, macs, onnxfile, rooms
    from edgegen.exporters import onnx as exporter
    from edgegen.spec import ModelSpec

    net = checkpoint.build(ModelSpec(family, {})).eval()
    checkpoint.save(tmp_path / "ck", ModelSpec(family, {}), net, ({"steps": 1},))
    parts = rooms.load("edgegen.models", family).graphs(net)
    sizes = {"batch": 2, "seq": 5, "past": 3} if family == "gpt" else {"batch": 2}
    found = inspecting.inspect(tmp_path / "ck", sizes)
    assert found.kind == "checkpoint"
    assert found.history == ({"steps": 1},)
    for file in found.files:
        module, graph = parts[file.graph]
        exporter.write(module, graph, tmp_path / "model.onnx")
        exported, notes = macs.count(onnxfile.load(tmp_path / "model.onnx"), sizes)
        assert exported == file.macs > 0, notes
        own = sum(weight.numel() for weight in module.parameters())
        assert file.parameters == sum(layer.parameters for layer in file.layers) == own


def test_a_quantized_checkpoint_says_what_each_layer_is(tmp_path, tiny_checkpoint):
    pytest.importorskip("torch", reason="torch is not installed")
    import msgspec

    from edgegen import checkpoint
    from edgegen.spec import Scheme

    whole = checkpoint.load(tiny_checkpoint("gpt"))
    name = "layers.0.mlp.up_proj"
    spec = msgspec.structs.replace(whole.spec, layers={name: Scheme(4, 16, symmetric=False)})
    checkpoint.save(tmp_path / "small", spec, checkpoint.build(spec), (), whole.tokenizer)
    found = inspecting.inspect(tmp_path / "small")
    layers = {layer.name: layer for layer in found.files[0].layers}
    assert found.precision == "int4"
    assert (layers[name].kind, layers[name].precision) == ("Linear", "int4")
    assert (layers[name].group_size, layers[name].parameters) == (16, 32 * 48)
    assert layers["layers.0.mlp.gate_proj"].precision == "fp32"
    plain = {layer.name for layer in inspecting.inspect(whole.path).files[0].layers}
    assert set(layers) == plain


def test_a_bundle_is_inspected_without_onnx_and_says_what_is_lost(formats):
    code = (
        "import sys; sys.modules['onnx'] = None; sys.modules['torch'] = None\n"
        "from edgegen import records; from edgegen.inspect import inspect\n"
        "sys.stdout.write(records.encode(inspect(sys.argv[1])).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(formats)], capture_output=True, text=True, check=True
    )
    files = {file["format"]: file for file in json.loads(done.stdout)["files"]}
    assert files["onnx"]["macs"] is None
    note = files["onnx"]["notes"][-1]
    assert "needs onnx" in note
    assert "pip install 'edgegen[build]'" in note
    assert files["openvino"]["operators"]["MatMul"] == 1


def test_what_is_none_of_the_three_is_refused_and_told_what_is_wanted(tmp_path):
    with pytest.raises(NotFoundError, match="neither a bundle") as error:
        inspecting.inspect(tmp_path)
    assert ".onnx" in error.value.hint


def test_a_size_for_a_dimension_that_is_not_there_is_refused_with_the_nearest(formats):
    with pytest.raises(NotFoundError, match="no free dimension 'bach'") as error:
        inspecting.inspect(formats, {"bach": 2})
    assert error.value.hint == "did you mean 'batch'?"


def test_a_missing_or_broken_graph_is_named(formats):
    xml = formats / "decoder" / "openvino_model.xml"
    xml.write_text(XML[:60])
    with pytest.raises(FormatError, match=r"openvino_model\.xml: not a whole OpenVINO file"):
        inspecting.inspect(formats)
    xml.unlink()
    with pytest.raises(FormatError, match=r"openvino_model\.xml: missing from the bundle"):
        inspecting.inspect(formats)
