"""The exported program of torch: the reference, in fp32 only."""

from pathlib import Path

import pytest

from edgegen.bundle import open_bundle
from edgegen.errors import UnsupportedError
from edgegen.exporters import torch as exporter
from edgegen.spec import GraphSpec


def test_it_is_the_reference_in_fp32_and_nothing_else(tmp_path):
    with pytest.raises(UnsupportedError) as error:
        exporter.quantize(tmp_path / "model.pt2", GraphSpec("model", (), ()), "int8")
    assert "the reference runs in fp32, not in int8" in str(error.value)
    assert error.value.hint == "export it apart: --to torch --precision fp32"


def test_an_onnx_file_is_not_for_torch(tmp_path):
    with pytest.raises(UnsupportedError) as error:
        exporter.write(Path("net.onnx"), GraphSpec("model", (), ()), tmp_path / "model.pt2")
    assert "net.onnx is an ONNX file, which torch cannot run" in str(error.value)
    assert error.value.hint == "leave torch out of --to"


@pytest.mark.slow
def test_the_ledger_holds_every_weight_of_two_or_more_dimensions(exports, toys):
    layers = open_bundle(exports("gpt-torch")).artifact("model", "torch").ledger
    net = toys.tiny_net("gpt")
    want = sorted(p.numel() for p in net.parameters() if p.dim() > 1)
    assert sorted(layer.parameters for layer in layers) == want
    assert {layer.precision for layer in layers} == {"fp32"}
