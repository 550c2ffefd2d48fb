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


class Residual(nn.Module):
    """A sum, and a norm of it where there is one."""

    def __init__(self, norm):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = norm

    def forward(self, x):
        return self.two(torch.relu(self.norm(x + self.one(x))))


@pytest.mark.parametrize(("norm", "stays"), [(nn.GroupNorm(2, 8), True), (nn.ReLU(), False)])
def test_sums_before_group_norms_are_not_rounded_in_static_int8(tmp_path, norm, stays):
    graph = GraphSpec(
        "model",
        (TensorSpec("x", "float32", ("batch", 8, 8, 8)),),
        (TensorSpec("y", "float32", ("batch", 8, 8, 8)),),
    )
    write_graph(Residual(norm).eval(), graph, tmp_path, "openvino")
    path = tmp_path / exporter.FILE
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(2)]
    notes = exporter.quantize(path, graph, "int8", feeds)
    assert ("sums are of fp32, for group norms read them" in notes) == stays
    model = ov.Core().read_model(path)
    (total,) = (n for n in model.get_ops() if n.get_friendly_name() == "aten::add/Add")
    rounded = {v.get_node().get_type_name() == "FakeQuantize" for v in total.input_values()}
    assert rounded == ({False} if stays else {True})
    assert {layer.precision for layer in exporter.ledger(path)} == {"int8"}


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
        "import edgegen, sys\nfrom edgegen.exporters import _openvino_nncf\n"
        "with _openvino_nncf.nncf_quietly(): pass\n"
        "print(sys.modules.get('openvino_telemetry', 'loaded'))"
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

    from edgegen.exporters._openvino_half import nearest_bf16

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    values[:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # half way: to even
    wanted = values.bfloat16().float().numpy()
    assert np.array_equal(nearest_bf16(values.numpy()), wanted)
