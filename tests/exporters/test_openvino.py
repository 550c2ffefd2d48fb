"""What stands in the OpenVINO files: counted exactly, and read back by the ledger."""

import subprocess
import sys
from collections import Counter

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from edgegen import folding, quantized
from edgegen.bundle import open_bundle
from edgegen.errors import UnsupportedError
from edgegen.exporters import openvino as exporter
from edgegen.exporters import write_graph
from edgegen.spec import GraphSpec, Scheme, TensorSpec

pytestmark = pytest.mark.slow

LINEAR = 2 * 7 + 1  # q, k, v, o, gate, up, down of two layers, and the head


def ledger(path, graph="model"):
    return open_bundle(path).artifact(graph, "openvino").ledger


def counts(layers):
    return Counter((layer.kind, layer.precision) for layer in layers)


def test_fp32_is_every_layer_as_it_was(exports):
    assert counts(ledger(exports("gpt"))) == {("MatMul", "fp32"): LINEAR, ("Gather", "fp32"): 1}


def test_fp16_is_every_layer(exports):
    layers = ledger(exports("gpt", "fp16"))
    assert counts(layers) == {("MatMul", "fp16"): LINEAR, ("Gather", "fp16"): 1}


def test_int8_is_every_linear_layer_and_the_embedding(exports):
    layers = ledger(exports("gpt", "int8"))
    assert counts(layers) == {("MatMul", "int8"): LINEAR, ("Gather", "int8"): 1}
    assert {layer.note for layer in layers} == {"weight-only"}


def test_int4_leaves_the_output_layer_and_the_embedding_at_int8(exports):
    layers = ledger(exports("gpt", "int4"))
    assert counts(layers) == {
        ("MatMul", "int4"): LINEAR - 1,
        ("MatMul", "int8"): 1,
        ("Gather", "int8"): 1,
    }
    assert {layer.group_size for layer in layers if layer.precision == "int4"} == {16}


def test_static_int8_rounds_convolutions_with_their_activations(exports):
    layers = ledger(exports("vae", "int8"), "encoder")
    found = {(layer.precision, layer.note) for layer in layers if layer.kind == "Convolution"}
    assert found == {("int8", "weights and activations")}


def test_what_angles_are_computed_from_stays_fp32_in_fp16(exports):
    (artifact,) = (
        a for a in open_bundle(exports("gpt", "fp16")).manifest.artifacts if a.format == "openvino"
    )
    assert any("constants behind angles stay fp32" in note for note in artifact.notes)


def test_text_keeps_its_cache_in_variables_and_reads_beams(exports):
    model = ov.Core().read_model(exports("gpt") / "openvino_model.xml")
    inputs = {name for port in model.inputs for name in port.names}
    assert inputs == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert len(model.get_sinks()) == 4
    assert "stateful" in open_bundle(exports("gpt")).artifact("model", "openvino").notes[-1]


def test_the_attention_of_text_is_fused(exports):
    compiled = ov.Core().compile_model(exports("gpt") / "openvino_model.xml", "CPU")
    kinds = Counter(
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
    )
    assert kinds["ScaledDotProductAttention"] == 2


def test_the_tokenizer_lies_beside_text_as_graphs(exports):
    for name in ("tokenizer", "detokenizer"):
        assert (exports("gpt") / f"openvino_{name}.xml").is_file()


def test_more_outputs_than_the_graph_has_are_named_as_the_fault(tmp_path):
    ends = tuple(TensorSpec(name, "float32", ("batch", 4)) for name in "xyz")
    graph = GraphSpec("model", ends[:1], ends[1:])
    with pytest.raises(UnsupportedError) as error:
        write_graph(torch.nn.Tanh(), graph, tmp_path, "openvino")
    assert "has 1 ports, the spec 2: an unused input or a repeated output" in str(error.value)
    assert error.value.hint == "drop that input or output from the module"


def test_nothing_reports_home_about_an_export():
    code = (
        "import edgegen, sys\nfrom edgegen.exporters import openvino\n"
        "with openvino._nncf(): pass\nprint(sys.modules.get('openvino_telemetry', 'loaded'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize(("zero", "said"), [(0, 0), (128, 0), (56, 1)])
def test_a_transposed_convolution_that_openvino_computes_in_fp32_is_said_to_be(
    tmp_path, zero, said
):
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 2, 1)).eval()
    quantized.attach(net, {"0": Scheme(8, 0, input_bits=8)})
    quantized.set_weight(net[0], torch.full((3, 1), 0.01))
    quantized.set_input(net[0], 0.0, 1.0)
    with torch.no_grad():
        quantized.input_quantizer_of(net[0]).zero.fill_(zero)
    spec = GraphSpec(
        "model",
        (TensorSpec("x", "float32", ("batch", 2, 4, 4)),),
        (TensorSpec("y", "float32", ("batch", 3, 8, 8)),),
    )
    folded, path = folding.fold(net), tmp_path / "m.xml"
    exporter.write(folded.net, spec, path)
    notes, exact = exporter.dress(path, folded)
    assert sum("OpenVINO computes them in fp32" in note for note in notes) == said
    assert not exact


def test_bf16_is_rounded_to_the_nearest_as_torch_does():
    import torch

    from edgegen.exporters.openvino import _nearest_bf16

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    values[:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # half way: to even
    wanted = values.bfloat16().float().numpy()
    assert np.array_equal(_nearest_bf16(values.numpy()), wanted)
