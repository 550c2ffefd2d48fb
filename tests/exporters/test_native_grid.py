"""A quantized checkpoint in the native file: the same integers, each where its kernel looks."""

import numpy as np
import pytest
import torch

from edgegen import folding, quantized
from edgegen.errors import UnsupportedError
from edgegen.exporters import native
from edgegen.models import gpt
from edgegen.spec import Scheme

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 50}


def quantize(schemes):
    """A small decoder rounded to nearest; `schemes` by the end of a layer's name, "" for others."""
    torch.manual_seed(0)
    net = gpt.Net(gpt.Config(**SIZES)).eval()
    chosen = {
        name: next(scheme for end, scheme in schemes.items() if name.endswith(end))
        for name in quantized.quantizable(net)
    }
    quantized.attach(net, chosen)
    for name, scheme in chosen.items():
        layer = net.get_submodule(name)
        step = quantized.quantizer_of(layer)
        low, high = step.grouped(layer.weight.detach()).aminmax(dim=-1)
        # A scale that fp16 holds, so that nothing is lost but what the grid itself takes.
        scale = (torch.maximum(-low, high) / step.levels[1]).half().float()
        quantized.set_weight(layer, scale, None if scheme.symmetric else torch.full_like(scale, 7))
    return net


def dressed(net, tmp_path):
    ((_, graph),) = gpt.graphs(net).values()
    path = tmp_path / native.FILE
    folded = folding.fold(net)
    native.write(folded.net, graph, path)
    plain = native.read(path)[1]
    notes, exact = native.dress(path, folded)
    assert not exact
    return plain, *native.read(path), notes


def floats(packed, scale, bits):
    """(block, k, 16), as the file has it in fp32."""
    if bits == 4:  # the two halves of a byte are lines that follow each other
        lines = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1, 16, 4)
    else:
        lines = packed
    q = lines.transpose(0, 1, 3, 2).reshape(len(lines), -1, 16).astype(np.float32)
    times = q.shape[1] if scale.shape[1] == 1 else 32
    return (q - 2 ** (bits - 1)) * np.repeat(scale.astype(np.float32), times, axis=1)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (Scheme(4, 32), Scheme(8, 0)),
        (Scheme(8, 64), Scheme(8, 32)),
        (Scheme(3, 32), Scheme(4, 32)),
        (Scheme(8, 0), Scheme(8, 0)),
        (Scheme(4, 0), Scheme(8, 32)),
    ],
)
def test_every_matrix_is_the_one_of_the_checkpoint(tmp_path, inner, outer):
    net = quantize({"embed_tokens": outer, "lm_head": outer, "": inner})
    plain, sizes, tensors, notes = dressed(net, tmp_path)
    assert (sizes.bits, sizes.outer_bits) == (4 if inner.bits < 5 else 8, 4 + 4 * (outer.bits == 8))
    matrices = [name for name, array in plain.items() if array.ndim == 3]
    assert len(matrices) > 4
    for name in matrices:
        bits, scheme = sizes.bits, inner
        if not name.startswith("layers."):
            bits, scheme = sizes.outer_bits, outer
        scale = tensors[f"{name.removesuffix('.weight')}.scale"]
        columns = plain[name].shape[1]
        assert scale.shape[1] == (1 if scheme.group_size in (0, columns) else columns // 32)
        assert np.array_equal(floats(tensors[name], scale, bits), plain[name]), name
    assert "inputs of each product to int8" in notes[-1]


@pytest.mark.parametrize(
    ("schemes", "told"),
    [
        ({"": Scheme(4, 32, symmetric=False)}, "symmetric weights of 4 and 8 bits"),
        ({"": Scheme(4, 16)}, "symmetric weights of 4 and 8 bits"),
        ({"o_proj": Scheme(8, 0), "": Scheme(4, 32)}, "layers of one width are wanted"),
        ({"k_proj": Scheme(8, 0), "": Scheme(4, 32)}, "layers.0.qkv has"),
    ],
)
def test_grids_that_the_kernels_have_not_are_refused(tmp_path, schemes, told):
    with pytest.raises(UnsupportedError, match=told) as error:
        dressed(quantize(schemes), tmp_path)
    assert "--set" in error.value.hint
