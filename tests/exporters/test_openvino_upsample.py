"""Upsampling folded into the convolution behind it: the same image on OpenVINO."""

from collections import Counter

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from edgegen.exporters import openvino as exporter
from edgegen.exporters._openvino_ledger import read
from edgegen.spec import GraphSpec, TensorSpec

pytestmark = pytest.mark.slow


def spec(batch, side):
    return GraphSpec(
        "decoder",
        (TensorSpec("x", "float32", (batch, 5, 4, 6)),),
        (TensorSpec("y", "float32", (batch, 3, 4 * side, 6 * side)),),
    )


def written(net, folder, batch="batch", side=2):
    path = folder / "m.xml"
    exporter.write(net.eval(), spec(batch, side), path)
    return path


def kinds(path):
    return Counter(node.get_type_name() for node in read(path).get_ops())


def run(path, x):
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([x])[0]


@pytest.mark.parametrize(
    ("factor", "kernel", "pad", "batch"),
    [
        (2, 3, 1, "batch"),
        (2, 3, 1, 2),
        (3, 5, 2, "batch"),
    ],
)
def test_upsampling_goes_into_the_convolution_borders_included(
    factor, kernel, pad, batch, tmp_path
):
    net = nn.Sequential(nn.Upsample(scale_factor=factor), nn.Conv2d(5, 3, kernel, 1, pad))
    path = written(net, tmp_path, batch, factor)
    (note,) = exporter.fuse(path)
    assert note == "1 upsamplings folded into the convolution behind them (exact)"
    assert "Interpolate" not in kinds(path) and kinds(path)["ConvolutionBackpropData"] == 1
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32)
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    assert np.abs(run(path, x) - want).max() < 1e-6 * np.abs(want).max() + 1e-6
    (layer,) = exporter.ledger(path)
    assert (layer.kind, layer.precision) == ("ConvolutionBackpropData", "fp32")


class Twice(nn.Module):
    """The upsampled image is read by two convolutions."""

    def __init__(self):
        super().__init__()
        self.up, self.one = nn.Upsample(scale_factor=2), nn.Conv2d(5, 3, 3, 1, 1)
        self.other = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        up = self.up(x)
        return self.one(up) + self.other(up)


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(5, 3, 3, 1, 1)), 2),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(5, 3, 3, 2, 1)), 1),
        (Twice(), 2),
        (nn.Sequential(nn.Conv2d(5, 3, 3, 1, 1), nn.Upsample(scale_factor=2)), 2),
    ],
)
def test_what_would_not_be_the_same_stays(net, side, tmp_path):
    path = written(net, tmp_path, side=side)
    before = kinds(path)
    assert exporter.fuse(path) == ()
    assert kinds(path) == before
