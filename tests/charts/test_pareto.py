"""Time against cost, and the front."""

import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import pareto
from edgegen.compare import compare


def test_the_edge_joins_what_nothing_beats_in_the_two():
    points = [{"ms": ms, "value": value} for ms, value in [(1, 9), (2, 4), (3, 6), (4, 1), (2, 5)]]
    assert [(p["ms"], p["value"]) for p in pareto._edge(points, -1)] == [(1, 9), (2, 4), (4, 1)]


def test_where_more_is_better_the_edge_climbs():
    points = [{"ms": ms, "value": value} for ms, value in [(1, 9), (2, 4), (3, 12), (4, 1)]]
    assert [(p["ms"], p["value"]) for p in pareto._edge(points, 1)] == [(1, 9), (3, 12)]


@pytest.fixture
def comparison(make_profile):
    small = make_profile(1, scale_ms=5.0, size_mb=1.0, quality={"psnr": 30.0})
    return compare([make_profile(quality={"psnr": 31.0}), small, make_profile(2, size_mb=8.0,
                    scale_ms=20.0, quality={"psnr": 29.0})])  # fmt: skip


def test_there_is_a_plot_for_each_cost_of_the_front(comparison):
    found = pareto.figures(comparison.rows, comparison.fronts["vae"])
    words = [figure.spec["description"].partition(":")[0] for figure in found]
    assert words == [
        "time of a run against peak memory",
        "time of a run against size on disk",
        "time of a run against psnr",
    ]
    assert "upper left is better" in found[2].caption
    assert "lower left is better" in found[1].caption


def test_what_is_beaten_says_by_whom(comparison):
    said = pareto.against(comparison.rows, "size").spec["description"]
    assert said.endswith("ms, 8.00 MB, beaten by toy fp32 onnxruntime cpu")
    assert said.count("on the front") == 2
