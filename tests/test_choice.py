"""The Pareto front, and the best that fits a budget."""

import pytest

from edgegen.compare import compare, require
from edgegen.errors import GateError, UsageError


@pytest.fixture
def three(make_profile):
    """A slow one, one twice as fast, and one as fast as that with half the memory."""
    return [
        make_profile(0, scale_ms=20.0, bundle="slow"),
        make_profile(1, scale_ms=10.0, bundle="fast", engine="openvino"),
        make_profile(1, scale_ms=10.0, bundle="small", peak_rss_mb=40.0, precision="int8"),
    ]


def best(profiles, budget):
    return compare(profiles, budget=budget).best


def test_the_pick_has_a_bundle_an_engine_a_device_and_a_reason(three):
    found = best(three, "p50<=12ms, rss<=60MB")
    assert (found.bundle, found.precision, found.engine, found.device) == (
        "small", "int8", "onnxruntime", "cpu",
    )  # fmt: skip
    assert found.why.startswith("the only one that fits: p50 ")
    assert "peak_rss 40 MB holds to rss<=60MB" in found.why


def test_each_other_one_is_excluded_by_name_and_by_every_constraint_it_misses(three):
    found = {one.row: one.why for one in best(three, "p50<=12ms, rss<=60MB").excluded}
    slow = found["slow fp32 onnxruntime cpu"]
    assert "misses p50<=12ms; peak_rss 80 MB misses rss<=60MB" in slow
    assert found["fast fp32 openvino cpu"] == "peak_rss 80 MB misses rss<=60MB"


def test_of_those_as_fast_the_one_with_least_memory_is_taken(three):
    found = best(three, "p50<=1s")
    assert found.bundle == "small"
    assert "least memory of 2 that are as fast as the fastest, of 3 that fit" in found.why
    why = {one.row: one.why for one in found.excluded}
    assert why["fast fp32 openvino cpu"] == "fits and is as fast, but takes no less memory"
    assert why["slow fp32 onnxruntime cpu"].startswith("fits, but is slower: p50 +")


def test_rounds_tell_whether_two_are_as_fast(make_profile):
    turns = {"rounds": 20, "block": "x"}
    one = make_profile(0, **turns)
    a_little = make_profile(
        first_ms=tuple(ms * 1.005 for ms in one.first_ms), bundle="b", peak_rss_mb=10.0, **turns
    )
    assert best([one, a_little], "p50<=1s").bundle == "toy"  # 0.5 % slower in every round


def test_a_percentage_is_of_the_first_which_holds_to_it_itself(three):
    assert best(three, "p50<=-20%").bundle == "small"
    assert best(three[:1], "p50<=+0%").bundle == "slow"


def test_nothing_that_fits_is_exit_4_with_each_reason_and_the_nearest(three):
    found = compare(three, budget="p50<=9ms")
    assert found.best.row == ""
    with pytest.raises(
        GateError, match=r"nothing fits 'p50<=9ms': slow .*; fast .*; small"
    ) as error:
        require(found)
    assert error.value.exit_code == 4
    assert error.value.hint.startswith("the nearest is ")


def test_what_one_row_does_not_know_excludes_it(three, make_profile):
    measured = make_profile(3, energy_j=1.0, energy_source="measured: RAPL", bundle="meter")
    found = best([*three, measured], "energy<=2J")
    assert found.bundle == "meter"
    assert {one.why for one in found.excluded} == {"energy is not known"}


def test_a_percentile_of_too_few_samples_fits_no_budget(three):
    assert {one.why for one in best(three, "p99<=1s").excluded} == {"p99 has too few samples"}


@pytest.mark.parametrize(
    ("budget", "said", "hint"),
    [
        ("p50<=20ms,", "is not understood", "write METRIC<=BOUND"),
        ("p5<=20ms", "no metric 'p5'", "did you mean 'p50'?"),
        ("p50<=20MB", "p50 is not in MB", "have: us, ms, s"),
        ("p50<=20", "p50 without a unit", "have: us, ms, s"),
        ("energy<=1J", "no profile has energy", "have: p50"),
        ("p50", "is not understood", "write METRIC<=+5%"),
    ],
)
def test_a_bad_budget_is_a_usage_error_with_the_fix(three, budget, said, hint):
    with pytest.raises(UsageError, match=said) as error:
        compare(three, budget=budget)
    assert str(error.value).startswith("--best")
    assert error.value.hint.startswith(hint)


def test_a_budget_is_for_one_family(make_profile):
    with pytest.raises(UsageError, match="one family, these are vae, gpt"):
        compare([make_profile(), make_profile(tokens=3)], budget="p50<=1s")


def test_what_is_as_good_at_everything_and_better_at_something_beats(three):
    rows = compare(three).rows
    assert [bool(row.beaten_by) for row in rows] == [True, True, False]
    assert rows[0].beaten_by == rows[1].name
    assert compare(three).fronts == {"vae": ("p50", "peak_rss", "size")}


def test_what_differs_by_chance_is_on_the_front(make_profile):
    rows = compare([make_profile(0), make_profile(1, peak_rss_mb=81.0)]).rows
    assert [row.beaten_by for row in rows] == ["", ""]


def test_one_figure_of_quality_counts_the_way_it_is_good(make_profile):
    good = make_profile(quality={"elbo_nats": -90.0, "psnr_db": 30.0})
    bad = make_profile(quality={"elbo_nats": -95.0, "psnr_db": 31.0})
    found = compare([bad, good])
    assert found.fronts["vae"][-1] == "quality.elbo_nats"
    assert [bool(row.beaten_by) for row in found.rows] == [True, False]
    kid = [make_profile(quality={"kid": k, "charm": 1.0}) for k in (0.2, 0.1)]
    assert [bool(row.beaten_by) for row in compare(kid).rows] == [True, False]


def test_a_figure_that_nobody_knows_the_direction_of_is_left_out(make_profile):
    assert "quality.charm" not in compare([make_profile(quality={"charm": 1.0})] * 2).fronts["vae"]


def test_modelled_and_measured_joules_are_not_held_against_each_other(make_profile):
    metered = make_profile(energy_j=2.0, energy_source="measured: RAPL")
    modelled = make_profile(energy_j=1.0, energy_source="modelled: 15 W")
    found = compare([metered, modelled])
    assert "energy" not in found.fronts["vae"]
    assert "energy" not in found.rows[1].ratios
    assert "energy is not alike: measured: RAPL, modelled: 15 W; not compared" in found.notes[-1]
    assert "energy" in compare([metered, metered]).fronts["vae"]
