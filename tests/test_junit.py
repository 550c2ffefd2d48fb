"""Gates as JUnit XML."""

from xml.etree import ElementTree

import pytest

from edgegen import junit
from edgegen.compare import compare
from edgegen.errors import UsageError


def cases(comparison):
    suite = ElementTree.fromstring(junit.xml(comparison)).find("testsuite")
    return suite, suite.findall("testcase")


def test_every_gate_of_every_row_is_a_test_case(make_profile):
    rows = [make_profile(), make_profile(1, scale_ms=5.0), make_profile(2, scale_ms=20.0)]
    suite, found = cases(compare(rows, ["p50<=+5%"]))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert [case.get("name") for case in found] == ["p50<=+5%"] * 2
    assert found[0].find("failure") is None
    assert "% [" in found[1].find("failure").get("message")
    assert found[1].get("classname") == "toy fp32 onnxruntime cpu #3"


def test_a_budget_is_one_too(make_profile):
    fits, misses = (compare([make_profile()], budget=f"p50<={ms}ms") for ms in (100, 1))
    assert cases(fits)[1][0].find("system-out").text.startswith("pick toy (fp32)")
    assert "misses p50<=1ms" in cases(misses)[1][0].find("failure").text


def test_names_cannot_break_the_document(make_profile):
    rows = [make_profile(), make_profile(1, bundle='<&"x>')]
    assert cases(compare(rows, ["size<=1GB"]))[1][0].get("classname").startswith('<&"x>')


def test_without_a_gate_there_is_nothing_to_report(make_profile, tmp_path):
    with pytest.raises(UsageError, match="nothing to report"):
        junit.write(compare([make_profile()]), tmp_path / "x.xml")
    assert not (tmp_path / "x.xml").exists()
