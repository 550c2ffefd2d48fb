"""Gates as text."""

import pytest

from edgegen.errors import UsageError
from edgegen.gates import SYNTAX, Gate, parse


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("p50<=+5%", Gate("p50<=+5%", "p50", True, 0.05, True, "%")),
        ("p50<=20ms", Gate("p50<=20ms", "p50", True, 20.0, False, "ms")),
        ("ttft <= 0.5 s", Gate("ttft <= 0.5 s", "ttft", True, 500.0, False, "ms")),
        ("peak_rss<=1.5GB", Gate("peak_rss<=1.5GB", "peak_rss", True, 1500.0, False, "MB")),
        ("rss<=200MB", Gate("rss<=200MB", "peak_rss", True, 200.0, False, "MB")),
        ("size<=-10%", Gate("size<=-10%", "size", True, -0.1, True, "%")),
        ("rate>=30", Gate("rate>=30", "rate", False, 30.0, False, "/s")),
        ("rate>=30tokens/s", Gate("rate>=30tokens/s", "rate", False, 30.0, False, "/s")),
        ("quality.fid<=+2%", Gate("quality.fid<=+2%", "quality.fid", True, 0.02, True, "%")),
        ("quality.elbo>=-90", Gate("quality.elbo>=-90", "quality.elbo", False, -90.0, False, "")),
        ("energy<=500mJ", Gate("energy<=500mJ", "energy", True, 0.5, False, "J")),
    ],
)
def test_a_gate_is_read(text, want):
    found = parse(text)
    assert found == want


@pytest.mark.parametrize(
    "text",
    ["", "p50", "p50<5", "p50<=", "p50<=fast", "<=5%", "p50==5ms", "p50<=5ms!", "p50<=5 % %"],
)
def test_what_is_no_gate_shows_the_syntax(text):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert repr(text) in str(error.value)
    assert error.value.hint == f"write {SYNTAX}"


def test_an_unknown_metric_gets_a_did_you_mean():
    with pytest.raises(UsageError, match="no metric 'ttf'") as error:
        parse("ttf<=+5%")
    assert error.value.hint == "did you mean 'ttft'?"


def test_a_percentage_without_a_sign_could_mean_two_things():
    with pytest.raises(UsageError, match="more or less than the first profile") as error:
        parse("p50<=95%")
    assert error.value.hint == "give the percentage a sign: 'p50<=+95%'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p50<=20", "p50 without a unit"),
        ("p50<=20MB", "p50 is not in MB"),
        ("size<=20ms", "size is not in ms"),
    ],
)
def test_a_wrong_or_missing_unit_names_those_there_are(text, said):
    with pytest.raises(UsageError, match=said) as error:
        parse(text)
    assert error.value.hint.startswith("have: ")


def test_a_bound_is_met_by_what_equals_it():
    assert parse("p50<=20ms").met(20.0)
    assert not parse("p50<=20ms").met(20.1)
    assert parse("rate>=-5%").met(-0.05)
    assert not parse("rate>=-5%").met(-0.051)
