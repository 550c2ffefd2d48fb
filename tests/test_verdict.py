"""What a comparison found, in one sentence."""

import numpy as np

from edgegen.compare import compare
from edgegen.metrics import NEITHER, Ratio
from edgegen.verdict import advice, headline


def sentence(*profiles):
    (found,) = compare(profiles).verdicts.values()
    return found


def test_a_faster_one_is_named_first_with_what_else_it_saves(make_profile):
    one = make_profile()
    fast = make_profile(1, scale_ms=5.0, bundle="fast", size_mb=1.0, peak_rss_mb=40.0)
    said = sentence(one, fast)
    assert said.startswith("fast fp32 onnxruntime cpu is ")
    assert "x faster (" in said
    assert said.endswith("with 25% of the size and 50% of the peak memory.")


def test_a_slower_one_and_no_difference_are_said_of_two(make_profile):
    assert "x slower (" in sentence(make_profile(), make_profile(1, scale_ms=20.0))
    assert f": {NEITHER} (" in sentence(make_profile(), make_profile(1))
    few = sentence(make_profile(repeats=4), make_profile(1, repeats=4))
    assert few.endswith("too few samples to tell them apart.")


def test_of_several_none_may_be_faster(make_profile):
    said = sentence(*(make_profile(n) for n in range(3)))
    assert said == "Nothing here is detectably faster than toy fp32 onnxruntime cpu."


def test_one_alone_has_no_verdict(make_profile):
    assert sentence(make_profile()) == ""


def test_no_difference_says_how_many_more_rounds_would_decide(make_profile):
    rng = np.random.default_rng(1)
    values = 10 * np.exp(rng.normal(0, 0.05, (2, 20))) * [[1], [1.01]]
    turns = {"rounds": 20, "block": "x", "steps_ms": ((),) * 20}
    row = compare([make_profile(first_ms=tuple(v.tolist()), **turns) for v in values]).rows[1]
    ratio = row.ratios["p50"]
    assert ratio.verdict == NEITHER
    assert ratio.of == "rounds"
    assert ratio.more > 0
    assert headline(row).endswith(f"; about {ratio.more:,} more rounds would decide)")


def test_advice_counts_in_words():
    assert advice(Ratio(1.1, 0.9, 1.3, NEITHER, 1, "rounds")) == "about 1 more round would decide"
    none = advice(Ratio(1.0, 0.9, 1.1, NEITHER, None, "repeats"))
    assert none == "more than 1,000 more repeats would have to decide"
