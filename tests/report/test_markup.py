"""Tables and colours of the page."""

import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.report import markup


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("12.3 ±0.2", 12.3),
        ("15,521", 15521),
        ("-65%", -65),
        ("2.98e-07", 2.98e-07),
        ("0.147 (0.0957 to 0.225)", 0.147),
        ("2.00x faster (1.90 to 2.10)", 0.5),
        ("1.25x slower (1.10 to 1.40)", 1.25),
        ("the first", 1),
        ("no difference detectable (0.9 to 1.1; about 3 more rounds would decide)", 1),
        ("-", None),
        ("2026-11-01", None),  # as text: its year alone would sort
        ("cpu", None),
        ("", None),
    ],
)
def test_a_cell_sorts_by_what_it_says(text, key):
    assert markup.order(text) == key


def test_headings_are_buttons_where_there_is_anything_to_press():
    assert markup.table((["", "run ms"], [["a", "1.0"]]), "figures").count("<button") == 1


def test_facts_stand_as_they_were_given():
    assert markup.facts({"cpu": "a <b>"}) == (
        '<table class="facts"><tbody><tr><th scope="row">cpu</th><td>a &lt;b&gt;</td></tr>\n'
        "</tbody></table>"
    )


def test_a_sentence_breaks_into_lines_and_has_no_colour():
    text = markup.table((["x", "y"], [["a", "it is slower than all of the others here"]]), "t")
    assert '<td class="long">it is slower' in text
    few = markup.table((["x", "y"], [["a", "fits, but is slower"]]), "t")
    assert "<td>fits, but is slower</td>" in few


def test_a_table_can_be_scrolled_with_the_keyboard_and_has_a_name():
    text = markup.table((["x"], [["1"]]), 'a "name"')
    assert 'tabindex="0" role="region" aria-label="a &quot;name&quot;"' in text


def test_rows_bear_the_numbers_of_the_charts():
    text = markup.table((["x", "y"], [["a", "1"], ["b", "2"]]), "t", numbered=True)
    assert 'data-v="1"><span class="chip" style="background:var(--c1)">2</span>b' in text


def test_a_verdict_is_coloured_and_what_is_in_brackets_is_small():
    text = markup.table((["x", "y"], [["a", "2.00x faster (1.9 to 2.1)"], ["b", "MISSED"]]), "t")
    assert '<td class="good" data-v="0.5">2.00x faster<small>1.9 to 2.1</small></td>' in text
    assert '<td class="bad">MISSED</td>' in text
    assert markup.coloured("<a> is 1.20x slower.") == (
        '&lt;a&gt; is <em class="bad">1.20x slower</em>.'
    )


def test_nothing_to_say_is_no_section():
    assert markup.section("Gates", "") == ""
