import msgspec
import pytest

from edgegen.bundle import open_bundle
from edgegen.compare import compare
from edgegen.compress import Target
from edgegen.compress._gate import (
    _better,
    _gain_missed,
    _gains,
    _metrics,
    format_of,
    judge,
    kept,
    over_budget,
    quality_of,
)
from edgegen.errors import NotFoundError, UsageError
from edgegen.quality import Figure
from edgegen.recipe import Gate


@pytest.fixture
def row(make_profile):
    """The second row of a comparison: times and MB of what was there before."""

    def make(times, megabytes=4.0):
        block = {"rounds": 5, "block": "one"}
        first = make_profile(seed=1, **block)
        second = make_profile(seed=2, scale_ms=10.0 * times, size_mb=megabytes, **block)
        return compare([first, second]).rows[1]

    return make


def figures(**values):
    return {name: Figure(value, 0.1, 64, "windows", "lower") for name, value in values.items()}


@pytest.mark.parametrize(
    ("times", "megabytes", "passes"),
    [
        (0.5, 4.0, True),
        (1.0, 2.0, True),
        (2.0, 2.0, True),
        (1.0, 4.0, False),
        (0.97, 3.9, False),
        (2.0, 8.0, False),
    ],
)
def test_a_step_must_be_faster_or_smaller_by_the_margin(row, times, megabytes, passes):
    gate = Gate(faster="20%", smaller="10%")
    assert (_gain_missed(row(times, megabytes), gate) == []) is passes


def test_what_was_missed_is_said_with_numbers(row):
    (reason,) = _gain_missed(row(2.0), Gate(faster="20%", smaller="10%"))
    assert reason.startswith("neither faster (2.0")
    assert "asked for 20% less time) nor smaller (the same size; asked for 10% less)" in reason


def test_nothing_at_all_is_no_gain_even_without_a_margin(row):
    assert _gain_missed(row(1.3), Gate(faster="0%", smaller="0%"))


def test_a_smaller_but_slower_step_says_so(row):
    (said,) = _gains(row(3.0, 1.0))
    assert said.startswith("4.00x smaller but ") and "x slower" in said


def test_a_faster_and_smaller_step_says_both(row):
    (said,) = _gains(row(0.5, 2.5))
    assert "x faster" in said and said.endswith(", 1.60x smaller")


def test_a_larger_one_is_called_larger(row):
    assert _gains(row(0.5, 5.0))[0].endswith(", 1.25x larger")


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (10.0, 9.0, "better: perplexity 10 -> 9 ± 0.1 (64 windows)"),
        (10.0, 9.95, ""),
        (10.0, 11.0, ""),
        (0.0, 1.0, ""),
    ],
)
def test_a_step_that_learns_may_make_the_model_better(was, now, said):
    assert _better(Gate(), figures(perplexity=was), figures(perplexity=now)) == said


def test_better_is_higher_where_the_figure_says_so():
    was, now = (
        {"sqnr_db": Figure(value, None, 4, "outputs", "higher", "dB")} for value in (20, 25)
    )
    assert _better(Gate(), was, now) == "better: sqnr_db 20 -> 25 dB (4 outputs)"
    assert _better(Gate(), now, was) == ""
    assert _better(Gate(), {}, {}) == ""


def test_a_broken_budget_names_the_figure_before_and_after():
    gate = Gate(quality={"perplexity": "+3%", "kl_nats": "<=0.2"})
    original = figures(perplexity=10.0, kl_nats=0.0)
    assert over_budget(gate, original, figures(perplexity=10.2, kl_nats=0.2)) == []
    assert over_budget(gate, original, figures(perplexity=11.0, kl_nats=0.25)) == [
        "perplexity 10 -> 11 ± 0.1 (64 windows), +10.0%, misses the budget +3%",
        "kl_nats 0 -> 0.25 ± 0.1 (64 windows) misses the budget <=0.2",
    ]


def test_a_figure_goes_by_the_beginning_of_its_name():
    gate = Gate(quality={"kid": "<=0.05"})
    assert over_budget(gate, figures(kid_net=0.0), figures(kid_net=0.04)) == []


def test_a_budget_for_an_unknown_figure_shows_the_nearest():
    with pytest.raises(UsageError, match="no figure 'perplexty' of this model") as error:
        over_budget(Gate(quality={"perplexty": "+3%"}), {}, figures(perplexity=1.0))
    assert error.value.hint == "did you mean 'perplexity'?"
    with pytest.raises(UsageError) as error:
        over_budget(Gate(quality={"perplexity": "+3%"}), {}, {})
    assert error.value.hint.startswith("give --data")


def test_a_share_of_nothing_is_refused():
    zero = figures(kl_nats=0.0)
    with pytest.raises(UsageError, match="is a share of the original model's kl_nats, which is 0"):
        over_budget(Gate(quality={"kl_nats": "+3%"}), zero, zero)


def test_formats_are_those_of_the_engine():
    assert format_of(Target()) == "onnx"
    assert format_of(Target("openvino")) == "openvino"
    with pytest.raises(NotFoundError, match="no 'onnxruntim'"):
        format_of(Target("onnxruntim"))


def test_figures_are_chosen_by_what_the_model_makes(text_bundle, image_bundle):
    assert "perplexity" in _metrics(open_bundle(text_bundle))
    assert "elbo_nats" in _metrics(open_bundle(image_bundle))


def test_without_data_images_are_compared_for_the_same_inputs(image_bundle):
    bundle = open_bundle(image_bundle)
    found = quality_of(bundle, bundle, None, Target("callable"), Gate())
    assert found == {"sqnr_db": Figure(200.0, None, 1, "outputs, the worst", "higher", "dB")}


def test_without_data_text_has_no_figure(text_bundle):
    bundle = open_bundle(text_bundle)
    assert quality_of(bundle, bundle, None, Target("callable"), Gate()) == {}


@pytest.mark.slow
def test_a_bundle_against_itself_is_refused(onnx_bundle):
    bundle = open_bundle(onnx_bundle)
    gate = Gate(repeats=2, rounds=1, require=("size<=-10%",))
    same = figures(sqnr_db=30.0)
    found = judge(bundle, bundle, gate, Target(), original=same, was=same, now=same)
    assert found.outcome == "refused"
    assert "neither faster" in found.reason and "size<=-10% is missed: +0.0 %" in found.reason
    assert found.before.size_mb == found.after.size_mb
    assert msgspec.structs.replace(found, outcome="kept anyway") == kept(found)
