"""Where the time goes, by kind."""

import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import operators
from edgegen.spec import Operator


def profile_of(make_profile, **ms):
    found = tuple(Operator(f"{kind}-0", kind, "cpu", 1, time) for kind, time in ms.items())
    return make_profile(operators=found)


def test_a_kind_is_all_its_operators(make_profile):
    found = make_profile(
        operators=(
            Operator("a", "MatMul", "cpu", 1, 3.0),
            Operator("b", "Add", "cpu", 1, 1.0),
            Operator("c", "MatMul", "cpu", 2, 4.0),
        )
    )
    assert operators.by_kind(found) == {"MatMul": 0.875, "Add": 0.125}
    assert operators.most(found) == "MatMul takes 88%"


def test_a_profile_without_operators_has_no_kinds(make_profile):
    assert operators.by_kind(make_profile()) == {}


def test_the_smallest_kinds_are_the_rest_and_the_shares_fill_the_line(make_profile):
    times = {f"Kind{n}": 2.0**-n for n in range(12)}
    profiles = {"one": profile_of(make_profile, **times), "two": profile_of(make_profile, Solo=1.0)}
    shown = operators.kinds(profiles)
    assert shown == ["Solo", *(f"Kind{n}" for n in range(6)), operators.REST]
    figure = operators.shares(profiles)
    rows = [row for rows in figure.spec["datasets"].values() for row in rows if "kind" in row]
    mine = [row for row in rows if row["profile"] == "one"]
    assert mine[0]["from"] == 0
    assert mine[-1]["to"] == 1
    assert mine[-1]["kind"] == operators.REST
    assert [row["kind"] for row in rows if row["profile"] == "two"] == ["Solo"]
