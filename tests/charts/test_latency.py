"""Charts of times: what is drawn is what was measured."""

import numpy as np
import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import latency, look
from edgegen.compare import compare


def values_of(spec, key):
    """The rows of a chart that have the field `key`."""
    return [row for rows in spec["datasets"].values() for row in rows if key in row]


@pytest.fixture
def pair(make_profile):
    profiles = [make_profile(repeats=70), make_profile(1, repeats=70, scale_ms=5.0)]
    return compare(profiles).rows, profiles


def test_every_sample_is_a_dot_and_the_median_is_the_profile_s(pair):
    rows, profiles = pair
    found = latency.strips(rows, profiles, "first", "time of a run").spec
    dots = [row for row in values_of(found, "ms") if set(row) == {"n", "ms", "y"}]
    assert sorted(row["ms"] for row in dots if row["n"] == 0) == pytest.approx(
        sorted(profiles[0].first_ms), rel=1e-3
    )
    medians = {row["n"]: row["ms"] for row in values_of(found, "quartiles")}
    assert medians == {n: look.short(rows[n].values["p50"].value) for n in (0, 1)}
    assert "medians: toy fp32 onnxruntime cpu" in found["description"]


def test_of_many_samples_the_dots_keep_their_ends(make_profile):
    many = make_profile(repeats=400)
    found = latency.strips(compare([many]).rows, [many], "first", "time").spec
    dots = [row["ms"] for row in values_of(found, "ms") if "y" in row and len(row) == 3]
    assert len(dots) == latency.MOST
    assert min(dots) == look.short(min(many.first_ms))
    assert max(dots) == look.short(max(many.first_ms))


@pytest.mark.parametrize(("repeats", "marks"), [(20, []), (64, ["p90"]), (700, ["p90", "p99"])])
def test_a_tail_is_marked_only_of_enough_samples(make_profile, repeats, marks):
    profile = make_profile(repeats=repeats)
    found = latency.strips(compare([profile]).rows, [profile], "first", "time").spec
    assert [row["mark"] for row in values_of(found, "mark")] == marks


def test_a_curve_climbs_from_nothing_to_all_at_the_samples():
    assert latency._curve(np.array([1.0, 2.0, 4.0, 8.0])) == [
        (1.0, 0.0), (1.0, 0.25), (2.0, 0.5), (4.0, 0.75), (8.0, 1.0),
    ]  # fmt: skip


def test_a_long_curve_keeps_its_ends():
    curve = latency._curve(np.arange(1.0, 5001.0))
    assert len(curve) == latency.MOST + 1
    assert curve[1] == (1.0, 1 / 5000)
    assert curve[-1] == (5000.0, 1.0)


def test_tokens_are_drawn_by_their_place(make_profile):
    profile = make_profile(tokens=4, repeats=20)
    found = latency.positions(compare([profile]).rows, [profile]).spec
    rows = values_of(found, "token")
    assert [row["token"] for row in rows] == [2, 3, 4, 5]
    second = np.median([steps[0] for steps in profile.steps_ms])
    assert rows[0]["ms"] == look.short(float(second))
    assert rows[0]["lower"] <= rows[0]["ms"] <= rows[0]["upper"]


def test_a_ratio_has_its_interval_and_its_verdict(pair):
    rows, _ = pair
    (row,) = values_of(latency.ratios(rows, {"p50": ""}).spec, "verdict")
    assert row["verdict"] == "faster"
    assert row["low"] < row["ratio"] < row["high"] < 1


def test_ratios_without_an_interval_are_drawn_all_the_same(make_profile):
    few = [make_profile(repeats=3), make_profile(1, repeats=3)]
    (row,) = values_of(latency.ratios(compare(few).rows, {"p50": ""}).spec, "verdict")
    assert row["verdict"] == "too few samples"
    assert row["low"] is None
