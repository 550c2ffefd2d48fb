"""Packing: what comes out of a packed matrix is what went in, rounded as the format says."""

import numpy as np
import pytest

from edgegen.errors import UnsupportedError
from edgegen.exporters import BY_ROW, native, quantize_graph
from edgegen.exporters._native_file import SLAB
from edgegen.models import gan, gpt

RNG = np.random.default_rng(0)


def place(packed, row, k, bits):
    """The byte, or half of one, that holds (row, k), as engine.h draws it."""
    block, lane = divmod(row, 16)
    if bits == 8:
        return int(packed[block, k // 4, lane, k % 4]) - 128
    byte = int(packed[block, k // 8, lane, k % 4])
    return (byte & 15 if k % 8 < 4 else byte >> 4) - 8


def test_fp32_rows_come_back_with_zeros_for_padding():
    weight = RNG.standard_normal((17, 33)).astype(np.float32)
    packed, scale = native.pack(weight, 32)
    assert scale is None
    back = native.unpack(packed)
    assert back.shape == (32, 64)
    assert np.array_equal(back[:17, :33], weight)
    assert not back[17:].any() and not back[:, 33:].any()


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_many_rows_are_packed_as_few_are(bits):
    weight = RNG.standard_normal((SLAB + 40, 32)).astype(np.float32)
    whole, scales = native.pack(weight, bits)
    for start, end in ((0, SLAB), (SLAB, SLAB + 40)):
        part, scale = native.pack(weight[start:end], bits)
        blocks = slice(start // 16, start // 16 + len(part))
        assert np.array_equal(whole[blocks], part)
        assert scale is None or np.array_equal(scales[blocks], scale)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_integer_lies_where_the_drawing_says(bits):
    weight = RNG.standard_normal((32, 64)).astype(np.float32)
    packed, scale = native.pack(weight, bits)
    assert packed.size == weight.size * bits // 8
    assert scale.shape == (2, 2, 16)
    for row, k in [(0, 0), (0, 5), (15, 31), (16, 32), (31, 63), (7, 44)]:
        step = float(scale[row // 16, k // 32, row % 16])
        steps = np.clip(
            round(weight[row, k] / step), -127 if bits == 8 else -8, 127 if bits == 8 else 7
        )
        assert place(packed, row, k, bits) == steps


@pytest.mark.parametrize(("bits", "by_row"), [(8, False), (4, False), (8, True)])
def test_weights_on_the_grid_are_exact(bits, by_row):
    steps = RNG.integers(-7, 8, (16, 64)).astype(np.float32)
    steps[:, ::32] = -8 if bits == 4 else 127
    packed, scale = native.pack(steps * 0.25, bits, by_row=by_row)
    assert scale.shape == (1, 1 if by_row else 2, 16)
    assert (scale == 0.25).all()
    back = [[place(packed, r, k, bits) for k in range(64)] for r in range(16)]
    assert np.array_equal(back, steps)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"head_dim": 24}, "head_dim is 24"), ({"hidden_size": 40}, "hidden_size is 40")],
)
def test_sizes_that_do_not_fill_the_lanes_are_refused_by_name(tmp_path, change, named):
    config = gpt.Config(**{"hidden_size": 64, "head_dim": 16} | change)
    ((module, graph),) = gpt.graphs(gpt.Net(config)).values()
    with pytest.raises(UnsupportedError, match=named) as caught:
        native.write(module, graph, tmp_path / native.FILE)
    assert "leave native out of --to" in caught.value.hint


def test_only_decoders_are_written(tmp_path):
    ((module, graph),) = gan.graphs(gan.Net(gan.Config())).values()
    with pytest.raises(UnsupportedError, match="no decoder of the gpt family"):
        native.write(module, graph, tmp_path / native.FILE)


@pytest.mark.parametrize(("precision", "group"), [("fp16", 0), ("int8", 64)])
def test_precisions_and_groups_it_has_not_are_refused(tmp_path, precision, group):
    ((_, graph),) = gpt.graphs(gpt.Net(gpt.Config())).values()
    with pytest.raises(UnsupportedError, match="it runs fp32, int8 and int4 in groups of 32"):
        native.quantize(tmp_path / native.FILE, graph, precision, (), group)


def test_the_ledger_counts_every_matrix_at_its_bits(tmp_path):
    ((module, graph),) = gpt.graphs(
        gpt.Net(gpt.Config(hidden_size=64, num_hidden_layers=1))
    ).values()
    path = tmp_path / native.FILE
    native.write(module, graph, path)
    plain = native.ledger(path)
    assert {layer.precision for layer in plain} == {"fp32"}
    native.quantize(path, graph, "int4")
    small = {layer.name: layer for layer in native.ledger(path)}
    assert {layer.group_size for layer in small.values()} == {None, 32}
    assert small["embedding"].precision == "int8"
    assert small["layers.0.qkv"].precision == "int4"
    assert {n: layer.parameters for n, layer in small.items()} == {
        layer.name: layer.parameters for layer in plain
    }


def test_int8_with_a_scale_a_row_says_so(tmp_path):
    ((module, graph),) = gpt.graphs(gpt.Net(gpt.Config(num_hidden_layers=1))).values()
    path = tmp_path / native.FILE
    native.write(module, graph, path)
    notes = native.quantize(path, graph, "int8", (), BY_ROW)
    assert "weight-only int8, a scale a row" in notes[0]
    assert {layer.group_size for layer in native.ledger(path)} == {None}
    assert all("a scale a row" in layer.note for layer in native.ledger(path))


@pytest.mark.parametrize(("kind", "precision"), [("native", "int4"), ("onnx", "int8")])
def test_a_scale_a_row_is_refused_where_it_has_no_kernel(tmp_path, kind, precision):
    ((_, graph),) = gpt.graphs(gpt.Net(gpt.Config(num_hidden_layers=1))).values()
    with pytest.raises(UnsupportedError, match=f"{kind}: {precision} with a scale a row") as raised:
        quantize_graph(graph, tmp_path, kind, precision=precision, group=BY_ROW)
    assert "--to native and --to openvino" in raised.value.hint
