"""Samples drawn in text."""

import numpy as np
import pytest

from edgegen import sketch


def test_a_histogram_has_its_bars_where_the_samples_are():
    values = np.array([1.0] * 6 + [1.2, 1.2, 2.0])
    lines = sketch.strips(["a"], [values], title="run", width=40).splitlines()
    bars = lines[1].split("  ")[1]
    assert lines[0] == "run"
    assert bars[0] == "█"
    assert lines[1].rstrip().endswith("▂  n=9")


def test_the_box_has_its_median_between_its_quartiles():
    values = np.linspace(1, 2, 101)
    box = sketch.strips(["a"], [values], title="run", width=60).splitlines()[2].strip()
    assert box[0] + box[-1] == "├┤"
    assert box.count("┃") == 1
    assert abs(box.index("┃") - len(box) / 2) <= 1
    assert 0.4 < box.count("━") / len(box) < 0.6


def test_profiles_share_one_axis_whose_ends_are_said():
    a, b = np.full(5, 1.0), np.full(5, 2.0)
    lines = sketch.strips(["a", "bb"], [a, b], title="run", width=60).splitlines()
    assert lines[1].index("█") < lines[3].index("█")
    assert lines[-1].split() == ["1.00", "ms", "2.00", "ms"]


def test_a_far_outlier_is_counted_and_does_not_squeeze_the_rest():
    values = np.append(np.linspace(1, 2, 50), 1000.0)
    lines = sketch.strips(["a"], [values], title="run").splitlines()
    assert lines[1].endswith("n=51, 1 beyond")
    assert lines[-1].endswith("2.00 ms")


def test_a_wide_span_is_drawn_on_a_logarithm():
    values = [np.full(9, 1.0), np.full(9, 100.0)]
    assert sketch.strips(["a", "b"], values, title="run").endswith("(log)")


@pytest.mark.parametrize("plain", [False, True])
def test_no_line_is_longer_than_asked_and_plain_is_ascii(make_profile, plain):
    profiles = [make_profile(n, tokens=4, bundle="b" * 60) for n in range(2)]
    names = [profile.name() for profile in profiles]
    text = sketch.distributions(profiles, names, width=72, plain=plain)
    assert max(map(len, text.splitlines())) <= 72
    assert text.isascii() == plain
    assert "\x1b" not in text  # no colour: nothing for NO_COLOR to take away


def test_text_is_drawn_by_its_first_and_its_later_tokens(make_profile):
    text = sketch.distribution(make_profile(tokens=4))
    assert [line for line in text.splitlines() if line in ("TTFT", "TPOT")] == ["TTFT", "TPOT"]
    assert sketch.distribution(make_profile()).startswith("run time\ntoy onnxruntime cpu")


def test_without_samples_it_says_so():
    assert sketch.strips(["a"], [np.array([])], title="TPOT") == "TPOT: no samples"


def test_a_sparkline_goes_from_the_least_to_the_most():
    assert sketch.sparkline([1, 2, 3]) == "▁▅█"
    assert sketch.sparkline([5, 5]) == "▄▄"
    assert sketch.sparkline([1, 9], plain=True) == ".@"
