"""The fused graph on disk: integers where MatMulNBits looks for them, a tied embedding once."""

import msgspec
import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgegen import checkpoint, records
from edgegen.bundle import MANIFEST, open_bundle, sums
from edgegen.errors import UnsupportedError
from edgegen.export import export
from edgegen.exporters import fused
from edgegen.exporters._fused_quantize import pack
from edgegen.models import gan, gpt
from edgegen.spec import ModelSpec
from edgegen.verify import verify

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_on_the_grid_are_exact_and_padding_is_zero(bits):
    steps = RNG.integers(-7, 8, (3, 40)).astype(np.float32)
    steps[:, ::32] = -8 if bits == 4 else 127
    codes, scale = pack(steps * 0.25, bits, 32)
    assert codes.shape == (3, 2, 4 * bits)
    assert (scale == 0.25).all()
    if bits == 4:  # the lower half of a byte comes first
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(3, 2, 32)
    back = codes.astype(np.float32).reshape(3, 64) - 2 ** (bits - 1)
    assert np.array_equal(back[:, :40], steps)
    assert not back[:, 40:].any()


def test_rows_of_zeros_stay_zeros():
    codes, scale = pack(np.zeros((2, 32), np.float32), 4, 32)
    assert (codes == 0x88).all()
    assert not scale.any()


def drawn(folder, precision="fp32", **change):
    path = folder / fused.FILE
    module, graph = gpt.graphs(gpt.Net(gpt.Config(hidden_size=64, num_hidden_layers=1, **change)))[
        "model"
    ]
    notes = fused.write(module, graph, path)
    if precision != "fp32":
        notes += fused.quantize(path, graph, precision)
    return path, notes


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_tied_embedding_is_stored_and_listed_once(tmp_path, precision):
    path, _ = drawn(tmp_path, precision)
    sizes = [np.prod(w.dims) for w in onnx.load(path).graph.initializer]
    assert sizes.count(512 * 64) == 1
    rows = fused.ledger(path)
    assert [row.parameters for row in rows].count(512 * 64) == 1
    inner = {row.precision for row in rows if row.name.startswith("layers.")}
    assert inner == {precision}
    assert next(row for row in rows if row.name == "head").precision == (
        "fp32" if precision == "fp32" else "int8"
    )


def test_an_untied_head_is_a_matrix_of_its_own(tmp_path):
    path, _ = drawn(tmp_path, "int8", tie_word_embeddings=False)
    names = {row.name: row.precision for row in fused.ledger(path)}
    assert names["head"] == names["embedding"] == "int8"


def test_what_is_rounded_besides_the_weights_is_said(tmp_path):
    notes = drawn(tmp_path, "int4")[1]
    assert "weight-only int4, group size 32; embedding and head int8" in notes
    assert any("accuracy level 4" in note for note in notes)


def test_other_precisions_and_sizes_are_refused_with_the_fix(tmp_path):
    path, _ = drawn(tmp_path)
    graph = gpt.graphs(gpt.Net(gpt.Config()))["model"][1]
    with pytest.raises(UnsupportedError, match="has no fp16") as caught:
        fused.quantize(path, graph, "fp16")
    assert "--to onnx" in caught.value.hint
    with pytest.raises(UnsupportedError, match="hidden_size is 64, wanted a multiple"):
        fused.quantize(path, graph, "int8", group=128)


def test_what_is_no_decoder_is_refused(tmp_path):
    net = gan.Net(gan.Config())
    for module, graph in gan.graphs(net).values():
        with pytest.raises(UnsupportedError, match="no decoder of the gpt family"):
            fused.write(module, graph, tmp_path / "x.onnx")


def test_heads_that_the_attention_cannot_take_are_refused_by_their_size(tmp_path):
    with pytest.raises(UnsupportedError, match=r"head_dim is 24, .* a multiple of 16"):
        drawn(tmp_path, head_dim=24)


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    net = gpt.Net(gpt.Config(**sizes)).eval()
    torch.nn.init.normal_(net.embed_tokens.weight, std=0.3)  # no two logits nearly equal
    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(512)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    text = tokenizer.to_str().encode()
    checkpoint.save(tmp_path / "source", ModelSpec("gpt", sizes), net, (), text)
    return str(tmp_path / "source")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_is_proved_and_verifies(source, tmp_path, precision):
    [bundle] = export(source, tmp_path / "b", formats=["fused"], precisions=[precision])
    assert bundle.formats() == ["fused"]
    assert all(row.ok for row in verify(bundle, "fused"))


@pytest.mark.slow
def test_an_altered_weight_does_not_verify(source, tmp_path):
    [bundle] = export(source, tmp_path / "b", formats=["fused"])
    file = bundle.path / fused.FILE
    model = onnx.load(file)
    weight = next(w for w in model.graph.initializer if w.name == fused.EMBEDDING)
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * 1.1).tobytes()
    onnx.save(model, file)
    files = bundle.manifest.files | {fused.FILE: sums(bundle.path)[fused.FILE]}
    records.write(msgspec.structs.replace(bundle.manifest, files=files), bundle.path / MANIFEST)
    assert not all(row.ok for row in verify(open_bundle(bundle.path), "fused"))
