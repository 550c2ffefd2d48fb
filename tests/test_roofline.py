"""Rooflines of made-up work and times, where bounds and shares follow by hand."""

import msgspec
import pytest

from edgegen import measure, roofline, rooftables
from edgegen.bundle import open_bundle
from edgegen.errors import MismatchError, UnsupportedError
from edgegen.roofs import BANDWIDTH, COMPUTE, OVERHEAD, Bandwidth, Peak, Peaks
from edgegen.spec import Operator
from edgegen.timing import PROFILED_RUNS
from edgegen.work import Kind, Work

PEAKS = Peaks(
    "cpu", "a processor", 2, "2026-11-21T00:00:00+00:00",
    (Peak("fp32", 10.0, "x"),),
    (Bandwidth("L2", 100.0, 512, 1024, "x"), Bandwidth("DRAM", 10.0, 4096, 0, "x")),
    ("bf16 is not measured: no engine here computes in it",),
)  # fmt: skip


def operator(kind, ms):
    return Operator(f"a {kind}", kind, "cpu", 1, ms * PROFILED_RUNS)


def run(make_profile, path, kinds, ms=10.0, operators=(), resident=2e6, **fields):
    profile = make_profile(
        first_ms=(ms,) * 11, steps_ms=((),) * 11, operators=tuple(operators), **fields
    )
    work = Work("run", 1, tuple(kinds), resident)
    return roofline.roofline(profile, open_bundle(path), [work], PEAKS)


def test_arithmetic_near_the_peak_is_bound_by_compute(make_profile, image_bundle):
    found = run(make_profile, image_bundle, [Kind("Conv", 5e7, 0, 10, 40, 40)])
    (phase,) = found.phases
    assert (phase.name, phase.ms, phase.bound) == ("run", 10.0, COMPUTE)
    assert (phase.roof_ms, phase.of_roof) == pytest.approx((5.0, 0.5))
    assert found.precision == "fp32"
    assert found.sentence.startswith("run: bound by arithmetic: 10 ms, 5 ms at the roof (50% of")


def test_weights_read_at_the_bandwidth_are_bound_by_it(make_profile, image_bundle):
    found = run(make_profile, image_bundle, [Kind("MatMul", 1e6, 0, 2e7, 8e7, 0)], resident=8e7)
    assert (found.phases[0].bound, found.level) == (BANDWIDTH, "DRAM")
    assert found.phases[0].of_roof == pytest.approx(0.8)
    assert "reading from DRAM" in found.sentence
    assert "int4 would take 0.12 of the time" in found.sentence


def test_time_that_no_roof_explains_is_overhead(make_profile, image_bundle):
    found = run(make_profile, image_bundle, [Kind("Conv", 1e6, 0, 10, 40, 40)], resident=100)
    assert (found.phases[0].bound, found.level) == (OVERHEAD, "L2")
    assert found.sentence.endswith("neither int8 nor int4 nor half the channels would help much")


def test_what_is_all_done_already_has_no_prediction_but_channels(make_profile, image_bundle):
    kinds = [Kind("Conv", 5e7, 5e7, 10, 40, 40)]
    found = run(make_profile, image_bundle, kinds, precision="int4")
    assert [gain.change for gain in found.gains] == ["half the channels"]
    assert found.precision == "int8"
    assert "held against the fp32 peak" in found.notes[-1]


def test_operators_of_an_engine_meet_those_of_the_graph(make_profile, image_bundle):
    kinds = [Kind("Conv", 5e7, 0, 10, 40, 40), Kind("MatMul", 1e6), Kind("other", moved_bytes=8)]
    times = [operator("FusedConv", 6.0), operator("Conv", 2.0), operator("Reorder", 1.0)]
    found = run(make_profile, image_bundle, kinds, operators=[*times, operator("QGemm", 0.5)])
    assert [(row.name, row.ms) for row in found.operators] == [
        ("Conv", 8.0), ("other", 1.0), ("MatMul", 0.5),
    ]  # fmt: skip
    assert found.operators[0].of_roof == pytest.approx(5 / 8)
    assert [row.bound for row in found.operators] == [COMPUTE, OVERHEAD, OVERHEAD]


@pytest.mark.parametrize(
    ("kinds", "operators"),
    [
        ([Kind("MatMul", 5e7)], ["MatMul", "MultiHeadAttention"]),
        ([Kind("MatMul", 2e7), Kind("Attention", 3e7)], ["FullyConnected"]),
    ],
)
def test_attention_that_only_one_side_knows_is_matrix_products(
    make_profile, image_bundle, kinds, operators
):
    times = [operator(kind, 8.0 / len(operators)) for kind in operators]
    (row,) = run(make_profile, image_bundle, kinds, operators=times).operators
    assert (row.name, row.ms, row.flops) == ("MatMul", 8.0, 5e7)


@pytest.mark.parametrize(
    ("engine", "kind"),
    {
        "Convolution": "Conv",
        "ConvolutionBackpropData": "ConvTranspose",
        "Convert": "other",
        "ConvInteger": "Conv",
        "FullyConnectedQuantizedLegacy": "MatMul",
        "MatMulNBits": "MatMul",
        "ScaledDotProductAttentionWithKVCache": "Attention",
        "aten::addmm": "MatMul",
        "aten::mkldnn_convolution": "Conv",
        "SkipLayerNormalization": "other",
        "Gemm": "MatMul",
    }.items(),
)
def test_engines_have_names_of_their_own(engine, kind):
    assert roofline.kind_of(engine) == kind


def test_text_has_two_phases_and_the_run_has_all_their_tokens(make_profile, text_bundle):
    profile = make_profile(
        tokens=4, first_ms=(20.0,) * 11, steps_ms=((8.0,) * 4,) * 11,
        operators=(operator("MatMul", 50.0),),
    )  # fmt: skip
    prefill = Work("prefill", 1, (Kind("MatMul", 1e8, 0, 10, 40, 0),), 100)
    decode = Work("decode", 4, (Kind("MatMul", 0, 0, 1e7, 4e7, 0),), 2e6, ("decode: a note",))
    found = roofline.roofline(profile, open_bundle(text_bundle), [prefill, decode], PEAKS)
    assert [(p.name, p.ms, p.bound) for p in found.phases] == [
        ("prefill", 20.0, COMPUTE), ("decode", 8.0, BANDWIDTH),
    ]  # fmt: skip
    assert found.phases[1].roof_ms == pytest.approx(4.0)
    assert found.operators[0].roof_ms == pytest.approx(10 + 4 * 4)
    assert {gain.phase for gain in found.gains} == {"decode"}
    assert found.notes == ("decode: a note",)


def test_the_table_is_compact_and_its_notes_say_the_rest(make_profile, image_bundle):
    kinds = [Kind("Conv", 5e7, 0, 10, 40, 40)]
    found = run(make_profile, image_bundle, kinds, operators=[operator("Conv", 8.0)])
    columns, rows = rooftables.roofs(found)
    assert columns[-1] == "bound by"
    assert [row[0] for row in rows] == ["run", "  Conv"]
    assert rows[0][1:] == ["10.0", "50.0", "8.00e-05", "5.00", "50%", "compute"]
    notes = rooftables.footnotes(found)
    assert notes[0].startswith("predicted share of the time of run: int8 ")
    assert notes[0].count("keeps the share") == 1
    assert notes[1] == (
        "roof, measured 2026-11-21 with 2 threads: fp32 10.0 GFLOP/s; DRAM 10.0 GB/s "
        "(edgegen devices --measure)"
    )
    assert notes[2].startswith("bf16 is not measured")
    none_left = msgspec.structs.replace(found, gains=())
    assert rooftables.footnotes(none_left) == notes[1:]


def test_peaks_are_a_table_with_what_measured_them():
    columns, rows = rooftables.peaks(PEAKS)
    assert columns == ["", "at most", "measured by"]
    assert rows == [
        ["fp32", "10.0 GFLOP/s", "x"],
        ["L2", "100 GB/s", "x of 512 KiB"],
        ["DRAM", "10.0 GB/s", "x of 4096 KiB"],
    ]
    assert rooftables.threads(msgspec.structs.replace(PEAKS, threads=1)) == "1 thread"


@pytest.mark.slow
def test_a_real_profile_is_explained_and_read_back(onnx_bundle, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from edgegen import profile as profiles
    from edgegen import records

    taken = measure.profile(onnx_bundle, runtime="onnxruntime", repeats=3, warmup=0)
    found = roofline.explained(taken, onnx_bundle, PEAKS)
    assert {row.name for row in found.roofline.operators} == {"MatMul", "other"}
    assert found.roofline.phases[0].flops == 2 * 4 * 64
    records.write(found, tmp_path / "p.json")
    assert profiles.read(tmp_path / "p.json") == found


def test_a_profile_of_another_bundle_is_refused(make_profile, onnx_bundle):
    with pytest.raises(MismatchError, match="not the bundle that was profiled") as error:
        roofline.explained(make_profile(), onnx_bundle, PEAKS)
    assert "edgegen profile" in error.value.hint


def test_what_cannot_be_explained_is_said_before_it_is_measured(image_bundle, onnx_bundle):
    with pytest.raises(UnsupportedError, match="counted in an ONNX graph"):
        measure.profile(image_bundle, runtime="callable", roofline=True)
    with pytest.raises(UnsupportedError, match="measured of the CPU only"):
        measure.profile(onnx_bundle, device="gpu", roofline=True)
