"""Axes and colours of the charts."""

import numpy as np
import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.charts import look


def ticks(span):
    return span.axis("ms").to_dict()["values"]


def test_an_axis_holds_its_values_and_is_even_where_they_are_near():
    span = look.span([10.0, 12.0])
    assert not span.log
    assert span.low < 10 < 12 < span.high
    assert "values" not in span.axis("ms").to_dict()


def test_an_axis_of_a_wide_span_goes_by_powers():
    span = look.span(np.array([1.0, 50.0]))
    assert span.log
    assert ticks(span) == [1, 2, 5, 10, 20, 50]
    assert ticks(look.span([1.0, 1000.0])) == [1, 10, 100, 1000]


def test_powers_over_a_short_way_have_round_ticks():
    assert ticks(look.Span(0.47, 1.1, log=True)) == [0.6, 0.8, 1.0]
    assert ticks(look.Span(0.98, 1.03, log=True)) == [0.98, 1.0, 1.02]


def test_an_axis_of_one_value_has_room():
    span = look.span([3.0, 3.0])
    assert span.low < 3 < span.high
    assert look.span([0.0, 0.0]) == look.Span(0.0, 1.0, False)


def test_no_axis_of_times_begins_below_zero():
    assert look.span([0.01, 0.2, 0.19, 0.0]).low == 0
    assert look.span([4.0, 6.0], zero=True).low == 0


def test_numbers_are_cut_to_what_the_eye_sees():
    assert look.short(1.23456789) == 1.235
    assert look.short(0.000123456) == 0.0001235


def test_colours_are_the_page_s_and_go_round():
    shades = look.by_row(10).to_dict()["scale"]["range"]
    assert shades[0] == shades[8] == "var(--c0)"
    assert shades[7] == "var(--c7)"
