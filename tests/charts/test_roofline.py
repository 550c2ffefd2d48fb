"""Rooflines as pictures."""

import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import roofline
from edgegen.compare import compare
from edgegen.roofs import OVERHEAD, Bandwidth, Gain, Peak, Peaks, Roof, Roofline

PEAKS = Peaks(
    "cpu",
    "a processor",
    2,
    "2026-11-21T00:00:00+00:00",
    (Peak("fp32", 100.0, "a"), Peak("int8", 400.0, "a")),
    (Bandwidth("L1", 200.0, 32, 32, "a"), Bandwidth("DRAM", 10.0, 65536, 0, "a")),
)


def found(peaks=PEAKS):
    run = Roof("run", 2.0, 20e6, 10e6, 1.0, 0.5, OVERHEAD)
    parts = Roof("MatMul", 1.0, 20e6, 5e6, 0.5, 0.5, OVERHEAD), Roof("other", 1, 0, 0, 0, 0, "")
    gain = Gain("int8", "run", 0.5, "weights of one byte")
    return Roofline(peaks, "fp32", "DRAM", (run,), parts, (gain,), "run: bound by overhead")


@pytest.fixture
def rows(make_profile):
    return compare([make_profile(), make_profile(1)]).rows


def values_of(figure, key):
    return [row for rows in figure.spec["datasets"].values() for row in rows if key in row]


def test_a_run_lies_where_its_operations_bytes_and_time_put_it(rows):
    (figure,) = roofline.figures(rows, {rows[1].name: found()})
    whole, operator = values_of(figure, "part")
    assert (whole["x"], whole["y"], whole["n"]) == (2.0, 10.0, 1)
    assert (operator["part"], operator["x"], operator["y"]) == ("MatMul", 4.0, 20.0)
    assert "50% of the roof" in whole["reached"]
    assert "10.0 GFLOP/s" in figure.spec["description"]


def test_a_memory_meets_the_highest_peak_where_both_are_as_fast(rows):
    (figure,) = roofline.figures(rows, {rows[0].name: found()})
    ends = {row["label"]: (row["x"], row["y"]) for row in values_of(figure, "roof") if row["label"]}
    assert ends["L1"] == (2.0, 400.0)
    assert ends["DRAM"] == (40.0, 400.0)
    assert ends["fp32"][1] == 100.0
    assert "fp32 100, int8 400 GFLOP/s; L1 200, DRAM 10.0 GB/s" in figure.caption


def test_each_device_has_a_chart_of_its_own(rows):
    other = Peaks("cpu", "another", 2, PEAKS.created, PEAKS.peaks, PEAKS.bandwidths)
    charts = roofline.figures(rows, {rows[0].name: found(), rows[1].name: found(other)})
    assert [chart.caption.partition(",")[0] for chart in charts] == ["a processor", "another"]
    assert len(roofline.figures(rows, {row.name: found() for row in rows})) == 1
