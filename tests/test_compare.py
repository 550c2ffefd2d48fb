"""Comparisons: what is refused, what is found, and how often that is wrong."""

import msgspec
import pytest

from edgegen import records
from edgegen.bundle import Drift
from edgegen.compare import Comparison, compare, describe, require
from edgegen.errors import GateError, NotComparableError, UsageError
from edgegen.metrics import FASTER, NEITHER, SLOWER, TOO_FEW, ratios, resampled
from edgegen.spec import Request, Sampling
from edgegen.verdict import headline


def verdict(one, other, metric="p50"):
    return compare([one, other]).rows[1].ratios[metric].verdict


def judged(one, other):
    """The verdict on p50 alone, of fewer resamples: for hundreds of comparisons."""
    drawn = [resampled(profile, n, 2000) for n, profile in enumerate((one, other))]
    return ratios(one, drawn[0], other, drawn[1])["p50"].verdict


def sized(make_profile, *values, **fields):
    count = len(values)
    return make_profile(first_ms=values, steps_ms=((),) * count, repeats=count, **fields)


def test_the_ratio_is_that_of_the_medians(make_profile):
    one, other = make_profile(0), make_profile(1, scale_ms=20.0)
    ratio = compare([one, other]).rows[1].ratios["p50"]
    values = [row.values["p50"].value for row in compare([one, other]).rows]
    assert ratio.value == pytest.approx(values[1] / values[0])
    assert ratio.low < ratio.value < ratio.high


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 5])
def test_the_same_thing_twice_differs_as_seldom_as_promised(make_profile, rounds):
    turns = {"rounds": rounds, "block": "x" * (rounds > 1)}
    alarms = sum(
        judged(make_profile(seed, **turns), make_profile(1000 + seed, **turns)) != NEITHER
        for seed in range(200)
    )
    assert 0.02 * 200 <= alarms <= 0.08 * 200  # at the 95 % level


@pytest.mark.slow
def test_text_twice_differs_as_seldom_as_promised_though_its_tokens_hang_together(make_profile):
    alarms = sum(
        judged(make_profile(seed, tokens=15), make_profile(1000 + seed, tokens=15)) != NEITHER
        for seed in range(60)
    )
    assert alarms <= 0.08 * 60


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "want"), [(1.05, SLOWER), (1 / 1.05, FASTER)])
def test_five_percent_are_found(make_profile, factor, want):
    found = [
        judged(make_profile(seed, tokens=15), make_profile(1000 + seed, 10 * factor, tokens=15))
        for seed in range(20)
    ]
    assert found.count(want) >= 19


def test_a_slow_round_of_both_does_not_hide_a_difference(make_profile):
    slow = [1.0, 1.6, 1.1, 2.0, 1.3]
    one = sized(make_profile, *(10 * s for s in slow), rounds=5, block="x")
    other = sized(make_profile, *(9 * s for s in slow), rounds=5, block="x")
    assert verdict(one, other) == FASTER
    assert verdict(one, msgspec.structs.replace(other, block="y")) == NEITHER


def test_few_repeats_give_no_verdict(make_profile):
    row = compare([make_profile(repeats=4), make_profile(1, repeats=4)]).rows[1]
    assert row.ratios["p50"].verdict == TOO_FEW
    assert row.values["p50"].low is None
    assert headline(row) == TOO_FEW


def test_text_has_both_its_latencies_and_images_have_one(make_profile):
    text = compare([make_profile(tokens=3)]).rows[0].values
    images = compare([make_profile()]).rows[0].values
    assert {"ttft", "tpot", "p50"} <= set(text)
    assert text["tpot"] == text["p50"]
    assert not {"ttft", "tpot"} & set(images)


def test_every_other_figure_is_there_where_it_was_measured(make_profile):
    one = make_profile(energy_j=2.0, quality={"elbo": 30.0}, load_ms=10.0)
    other = make_profile(energy_j=1.0, quality={"elbo": 33.0}, load_ms=20.0, size_mb=1.0)
    ratios = compare([one, other]).rows[1].ratios
    found = {name: ratios[name].value for name in ("energy", "quality.elbo", "load", "size")}
    assert found == pytest.approx({"energy": 0.5, "quality.elbo": 1.1, "load": 2.0, "size": 0.25})
    assert ratios["load"].verdict == ""
    blind = make_profile(peak_rss_mb=None)
    assert not {"energy", "peak_rss"} & set(compare([blind]).rows[0].values)


def test_the_rate_is_the_inverse_of_the_time(make_profile):
    row = compare([make_profile(), make_profile(1, scale_ms=20.0)]).rows[1]
    ratio, rate = row.ratios["p50"], row.ratios["rate"]
    assert (rate.value, rate.low, rate.high) == pytest.approx(
        (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    )
    assert row.values["rate"].unit == "images/s"


@pytest.mark.parametrize(
    ("field", "value", "said", "fix"),
    [
        ("batch", 8, "batch=8, toy fp32 onnxruntime cpu ran batch=1", "with the same --batch"),
        ("seed", 3, "seed=3", "with the same --seed"),
        ("new_tokens", 5, "new_tokens=5", "with the same --new-tokens"),
        ("sizes", {"width": 9}, "sizes.width=9, .* ran sizes.width=unset", "--size width=N"),
        ("sampling", Sampling(temperature=0.7), "sampling.temperature=0.7, .*=0.0", "request"),
    ],
)
def test_unlike_requests_are_refused_naming_the_field_and_both_values(
    make_profile, field, value, said, fix
):
    one = make_profile()
    other = make_profile(engine="openvino", request=Request(**{field: value}))
    with pytest.raises(NotComparableError, match=f"^toy fp32 openvino cpu ran {said}") as error:
        compare([one, other])
    assert fix in error.value.hint


def test_no_profiles_are_a_usage_error():
    with pytest.raises(UsageError, match="no profiles"):
        compare([])


def test_each_family_is_compared_with_its_own_first(make_profile):
    a, b = make_profile(), make_profile(tokens=3)
    found = compare([a, b, make_profile(2), make_profile(3, tokens=3)])
    assert [row.family for row in found.rows] == ["vae", "vae", "gpt", "gpt"]
    assert [bool(row.against) for row in found.rows] == [False, True, False, True]
    assert "vae, gpt: each family is compared with its own first profile" in found.notes


def test_names_tell_profiles_apart(make_profile):
    same = [make_profile(), make_profile(), make_profile(precision="int8")]
    named = make_profile(bundle="toy-fp32")
    assert [row.name for row in compare([*same, named]).rows] == [
        "toy fp32 onnxruntime cpu",
        "toy fp32 onnxruntime cpu #2",
        "toy int8 onnxruntime cpu",
        "toy-fp32 onnxruntime cpu",
    ]


def test_what_was_not_taken_in_turns_is_said(make_profile):
    turn = {"rounds": 5, "block": "x"}
    assert "not measured in turns" in compare([make_profile(), make_profile(1)]).notes[0]
    assert compare([make_profile(**turn), make_profile(1, **turn)]).notes == ()
    threads = compare([make_profile(**turn), make_profile(1, threads=2, **turn)]).notes
    assert threads == ("vae: threads differ: [0, 2]",)


def test_gates_are_tried_on_every_row_but_the_first(make_profile):
    rows = [make_profile(), make_profile(1, scale_ms=5.0), make_profile(2, scale_ms=20.0)]
    found = compare(rows, ["p50<=+5%", "size<=4MB"])
    assert [(r.gate, r.met, r.sure) for r in found.gates] == [
        ("p50<=+5%", True, True),
        ("p50<=+5%", False, True),
        ("size<=4MB", True, True),
        ("size<=4MB", True, True),
    ]
    with pytest.raises(GateError, match="1 of 4 gates missed: p50<=\\+5% by") as error:
        require(found)
    assert error.value.exit_code == 4


def test_gates_that_are_met_raise_nothing(make_profile):
    found = compare([make_profile(), make_profile(1)], ["p50<=+50%", "rate>=-50%"])
    require(found)
    assert [gate.met for gate in found.gates] == [True, True]


def test_a_gate_within_the_interval_is_not_sure(make_profile):
    rows = [make_profile(), make_profile(1)]
    ratio = compare(rows).rows[1].ratios["p50"]
    (found,) = compare(rows, [f"p50<={(ratio.value - 1) * 100 + 0.1:+.2f}%"]).gates
    assert found.met
    assert not found.sure
    assert describe(found).endswith("not sure: the interval holds the bound")
    assert "[" in describe(found)


def test_a_gate_on_a_percentile_of_too_few_samples_is_refused_with_the_number(make_profile):
    with pytest.raises(UsageError, match=r"p99 needs 662 samples, .* #2 has 20") as error:
        compare([make_profile(), make_profile(1)], ["p99<=1s"])
    assert error.value.hint == "profile with --repeats 662, or set the gate on p50"


def test_a_lone_profile_can_meet_a_gate_with_a_unit_only(make_profile):
    (found,) = compare([make_profile()], ["p50<=1s"]).gates
    assert found.met
    with pytest.raises(UsageError, match="nothing to compare with"):
        compare([make_profile()], ["p50<=+5%"])


def test_a_gate_on_what_was_not_measured_says_what_was(make_profile):
    with pytest.raises(UsageError, match="has no energy") as error:
        compare([make_profile(), make_profile(1)], ["energy<=1J"])
    assert "p50" in error.value.hint


def test_a_bad_gate_is_refused_before_anything_is_compared(make_profile):
    with pytest.raises(UsageError, match="'p50' is not understood"):
        compare([make_profile()], ["p50"])


def test_headlines_say_how_many_times(make_profile):
    one = make_profile()
    rows = compare([one, make_profile(1, scale_ms=5.0), make_profile(2, scale_ms=20.0), one]).rows
    assert [headline(row).partition(" (")[0] for row in rows] == [
        "",
        f"{1 / rows[1].ratios['p50'].value:.2f}x faster",
        f"{rows[2].ratios['p50'].value:.2f}x slower",
        NEITHER,
    ]


def test_a_comparison_survives_json(make_profile):
    found = compare([make_profile(tokens=3), make_profile(1, tokens=3)], ["tpot<=+5%"])
    assert records.decode(Comparison, records.encode(found), "x") == found


def test_a_percentage_of_nothing_is_refused_with_the_reason(make_profile):
    rows = [make_profile(quality={"elbo": e}) for e in (-90.0, -95.0)]
    with pytest.raises(UsageError, match="the first has none above zero") as error:
        compare(rows, ["quality.elbo>=-2%"])
    assert "give a number" in error.value.hint
    (found,) = compare(rows, ["quality.elbo>=-92"]).gates
    assert not found.met


def test_two_machines_called_alike_are_told_apart_by_their_processors(make_profile):
    rows = compare([make_profile(), make_profile(1, device_name="another")]).rows
    usual = "toy fp32 onnxruntime cpu"
    assert [row.name for row in rows] == [f"{usual} (a processor)", f"{usual} (another)"]
    boards = compare([make_profile(board="pi5"), make_profile(1, board="nuc")]).rows
    assert [row.name for row in boards] == [
        "toy fp32 onnxruntime pi5/cpu", "toy fp32 onnxruntime nuc/cpu",
    ]  # fmt: skip


def test_p99_of_too_few_samples_has_no_verdict_and_p90_of_enough_has_its_bound(make_profile):
    few = compare([make_profile(), make_profile(1)]).rows[1].ratios["p99"]
    assert (few.verdict, few.low) == (TOO_FEW, None)
    many = compare([make_profile(repeats=100)]).rows[0].values["p90"]
    assert many.valid
    assert many.at_most == sorted(make_profile(repeats=100).first_ms)[-3]


def test_a_row_carries_its_slope_and_its_drift(make_profile):
    near = Drift("onnxruntime", "decoder", "batch-2", "image", 1e-6, 120.0, "allclose", True)
    far = Drift("onnxruntime", "encoder", "batch-2", "mean", 0.5, 12.0, "allclose", False)
    (row,) = compare([sized(make_profile, 10, 11, 12, 13, 14, drifts=(near, far))]).rows
    assert row.slope == pytest.approx(4 / 12)
    assert row.drift == far
