"""Predictions, where the answer can be worked out by hand."""

import pytest

from edgegen.gains import HALF, INT4, INT8, KEPT, gains
from edgegen.roofs import Bandwidth, Peak, Peaks, Roof
from edgegen.work import Kind, Work

PEAKS = Peaks(
    "cpu", "a processor", 1, "2026-11-21T00:00:00+00:00",
    (Peak("fp32", 10.0, "x"), Peak("int8", 40.0, "x")),
    (Bandwidth("L2", 100.0, 512, 1024, "x"), Bandwidth("DRAM", 10.0, 4096, 0, "x")),
)  # fmt: skip
ARITHMETIC = Kind("MatMul", 1e8, 0, 1000, 4000, 4000)  # 10 ms of operations, next to no bytes
WEIGHTS = Kind("MatMul", 1e6, 0, 25e6, 100e6, 0)  # 0.1 ms of operations, 10 ms of bytes in DRAM


def predicted(make_profile, kind, ms=10.0, text=False, others=(), **fields):
    profile = make_profile(first_ms=(ms,) * 11, steps_ms=((),) * 11, **fields)
    work = Work("run", 1, (kind, *(k for k, _ in others)), kind.weight_bytes)
    rows = [Roof("MatMul", ms - sum(t for _, t in others), 0, 0, 0, 0, "")]
    rows += [Roof(k.kind, t, 0, 0, 0, 0, "") for k, t in others]
    found = gains(profile, text, work, Roof("run", ms, 0, 0, 0, 0, ""), rows, PEAKS)
    return {gain.change: gain.ratio for gain in found}


def test_arithmetic_gains_what_the_peaks_differ_by_and_a_quarter_of_it_when_halved(make_profile):
    found = predicted(make_profile, ARITHMETIC)
    assert found == pytest.approx({INT8: 1 / 4, INT4: 1.0, HALF: 1 / 4})


def test_text_keeps_its_arithmetic(make_profile):
    assert predicted(make_profile, ARITHMETIC, text=True)[INT8] == pytest.approx(1.0)


def test_weights_gain_by_their_bytes(make_profile):
    found = predicted(make_profile, WEIGHTS, text=True)
    assert found == pytest.approx({INT8: 1 / 4, INT4: 1 / 8, HALF: 1 / 4})


def test_weights_that_then_fit_into_a_cache_are_read_from_there(make_profile):
    small = Kind("MatMul", 0, 0, 5e5, 2e6, 0)  # 0.2 ms from DRAM; int8 0.5 MB, 0.005 ms from L2
    found = predicted(make_profile, small, ms=0.2, text=True)
    assert found[INT8] == pytest.approx(1 / 40)


def test_what_is_over_the_roof_for_other_reasons_stays(make_profile):
    found = predicted(make_profile, ARITHMETIC, ms=100.0)
    assert found[INT8] == pytest.approx((100 - 10 + 2.5) / 100)


def test_near_the_roof_the_share_that_is_reached_stays(make_profile):
    assert predicted(make_profile, ARITHMETIC, ms=20.0)[INT8] == pytest.approx(1 / 4)


def test_time_outside_the_operators_stays(make_profile):
    profile = make_profile(first_ms=(20.0,) * 11, steps_ms=((),) * 11)
    work = Work("run", 1, (ARITHMETIC,), 4000)
    rows = [Roof("MatMul", 10.0, 0, 0, 0, 0, "")]
    found = gains(profile, False, work, Roof("run", 20.0, 0, 0, 0, 0, ""), rows, PEAKS)
    assert found[0].ratio == pytest.approx(0.5 + 0.5 / 4)


def test_other_operators_are_left_as_they_are_but_by_fewer_channels(make_profile):
    softmax = Kind("other", 0, 0, 0, 0, 50e6)  # 0.5 ms of bytes
    found = predicted(make_profile, ARITHMETIC, ms=11.0, others=[(softmax, 1.0)])
    assert found[INT8] == pytest.approx((10 / 4 + 1) / 11)
    assert found[HALF] == pytest.approx((10 / 4 + 1 / 2) / 11)


def test_without_the_engines_times_all_of_it_is_taken_for_one(make_profile):
    profile = make_profile(first_ms=(10.0,) * 11, steps_ms=((),) * 11)
    work = Work("run", 1, (ARITHMETIC,), 4000)
    found = gains(profile, False, work, Roof("run", 10.0, 0, 0, 0, 0, ""), (), PEAKS)
    assert found[0].ratio == pytest.approx(1 / 4)
    assert all(gain.assumption.endswith(KEPT) and gain.phase == "run" for gain in found)


@pytest.mark.parametrize(
    ("precision", "left"), [("fp32", 3), ("fp16", 3), ("int8", 2), ("int4", 1)]
)
def test_what_the_bundle_is_already_is_not_predicted(make_profile, precision, left):
    assert list(predicted(make_profile, WEIGHTS, precision=precision))[-left:] == list(
        predicted(make_profile, WEIGHTS, precision=precision)
    )
    assert len(predicted(make_profile, WEIGHTS, precision=precision)) == left
