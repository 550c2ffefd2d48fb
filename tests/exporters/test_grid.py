"""Quantized checkpoints as bundles: every engine computes the quantized net itself."""

import msgspec
import pytest
import torch

from edgegen import checkpoint, quantized
from edgegen.bundle import open_bundle
from edgegen.errors import UsageError
from edgegen.export import export
from edgegen.spec import Scheme

pytestmark = pytest.mark.slow


def make(tiny_checkpoint, folder, family, scheme):
    """A checkpoint with every exported layer rounded to nearest."""
    found = checkpoint.load(tiny_checkpoint(family))
    net = found.net
    names = [n for n in quantized.quantizable(net) if not n.startswith("discriminator")]
    layers = dict.fromkeys(names, scheme)
    quantized.attach(net, layers)
    for name in names:
        layer = net.get_submodule(name)
        step = quantized.quantizer_of(layer)
        low, high = step.grouped(layer.weight.detach()).aminmax(dim=-1)
        if scheme.symmetric:
            quantized.set_weight(layer, torch.maximum(-low, high) / step.levels[1])
        else:
            quantized.set_weight(layer, (high - low) / step.levels[1], -low / (high - low) * 15)
        if scheme.input_bits:
            quantized.set_input(layer, -4, 4)
    spec = msgspec.structs.replace(found.spec, layers=layers)
    checkpoint.save(folder, spec, net, (), found.tokenizer)
    return str(folder)


@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_weights_of_four_bits_are_exact_on_both_engines(tiny_checkpoint, tmp_path, family):
    source = make(tiny_checkpoint, tmp_path / "in", family, Scheme(4, 16, symmetric=False))
    (bundle,) = export(source, tmp_path / "out")
    assert bundle.manifest.precision == "int4"
    assert {artifact.tolerance for artifact in bundle.manifest.artifacts} == {"exact"}
    assert {drift.engine for drift in bundle.manifest.drifts} == {"onnxruntime", "openvino"}
    assert min(d.sqnr_db for d in bundle.manifest.drifts if d.sqnr_db is not None) >= 80
    ledger = [layer for a in bundle.manifest.artifacts for layer in a.ledger]
    assert {layer.precision for layer in ledger} <= {"int4", "int8"}
    with pytest.raises(UsageError, match="is quantized already"):
        export(source, tmp_path / "other", precisions=["int8"])


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_rounded_inputs_are_exact_on_both_engines(tiny_checkpoint, tmp_path, family):
    source = make(tiny_checkpoint, tmp_path / "in", family, Scheme(8, 0, input_bits=8))
    (bundle,) = export(source, tmp_path / "out")
    manifest = open_bundle(bundle.path).manifest
    assert manifest.precision == "w8a8"
    assert manifest.reference == "torch fp32, quantized as the checkpoint is"
    assert {d.engine for d in manifest.drifts} == {"onnxruntime", "openvino"}
    assert min(d.sqnr_db for d in manifest.drifts if d.sqnr_db is not None) >= 80
    assert {artifact.tolerance for artifact in manifest.artifacts} == {"rounded"}
