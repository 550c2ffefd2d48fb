"""Tables of text."""

import pytest

from edgegen import tables
from edgegen.bundle import Drift
from edgegen.compare import compare
from edgegen.metrics import Estimate


@pytest.mark.parametrize(
    ("value", "want"),
    [(0.01234, "0.0123"), (1.2, "1.20"), (12.345, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_keep_three_digits_that_count(value, want):
    assert tables.number(value) == want


@pytest.mark.parametrize(
    ("ends", "valid", "want"),
    [
        ((12.1, 12.5), True, "12.3 ±0.2"),
        ((6.0, 25.2), True, "12.3 (6.00 to 25.2)"),
        ((None, None), True, "12.3"),
        ((12.1, 12.5), False, "12.3* ±0.2"),
    ],
)
def test_an_estimate_shows_how_sure_it_is(ends, valid, want):
    assert tables.estimate(Estimate(12.3, "ms", *ends, valid)) == want


def test_text_shows_both_latencies_and_the_rest_one(make_profile):
    text, _ = tables.table(compare([make_profile(tokens=3)]).rows)
    images, _ = tables.table(compare([make_profile()]).rows)
    assert text[1:3] == ["TTFT ms", "TPOT ms"]
    assert images[1] == "run ms"
    assert "tokens/s" in text
    assert "images/s" in images


def test_columns_nobody_fills_are_left_out(make_profile):
    plain, _ = tables.table(compare([make_profile()]).rows)
    full, rows = tables.table(compare([make_profile(energy_j=1.5, quality={"elbo": 3.0})]).rows)
    assert set(full) - set(plain) == {"J/image", "elbo"}
    assert rows[0][full.index("elbo")] == "3.00"
    assert "run vs first" not in plain


def test_the_others_are_put_against_the_first(make_profile):
    rows = compare([make_profile(), make_profile(1, scale_ms=5.0, size_mb=1.0)]).rows
    columns, cells = tables.table(rows)
    versus, size = columns.index("run vs first"), columns.index("size MB")
    assert cells[0][versus] == "the first"
    assert "x faster (" in cells[1][versus]
    assert cells[1][size] == "1.00 (-75%)"


def test_a_missing_figure_is_a_dash(make_profile):
    rows = compare([make_profile(), make_profile(1, peak_rss_mb=None)]).rows
    columns, cells = tables.table(rows)
    assert cells[1][columns.index("peak RSS MB")] == "-"


def test_p90_is_shown_only_of_enough_samples_and_with_what_it_is_not_above(make_profile):
    few, many = compare([make_profile()]), compare([make_profile(repeats=64)])
    columns, cells = tables.table(few.rows)
    assert cells[0][columns.index("p90 ms")] == "-"
    assert tables.NO_P90 in tables.footnotes(few)
    worst = max(make_profile(repeats=64).first_ms)
    assert tables.table(many.rows)[1][0][2].endswith(f"≤{tables.number(worst)}")
    assert tables.footnotes(many) == []


def test_a_median_of_few_samples_is_starred_and_explained(make_profile):
    few = compare([make_profile(repeats=6)])
    assert "*" in tables.table(few.rows)[1][0][1]
    assert tables.FEW in tables.footnotes(few)


def test_flags_stand_under_the_table_with_the_name_of_their_row(make_profile):
    notes = tables.footnotes(compare([make_profile(flags=("drift: up",))]))
    assert "toy fp32 onnxruntime cpu: drift: up" in notes


def test_a_flag_of_several_stands_once(make_profile):
    rows = [make_profile(flags=("busy",)), make_profile(flags=("busy", "drift"))]
    notes = tables.footnotes(compare(rows))
    assert notes[-2:] == ["all 2: busy", "toy fp32 onnxruntime cpu #2: drift"]


def test_markdown_is_a_table_a_family(make_profile):
    profiles = [make_profile(), make_profile(1), make_profile(tokens=3)]
    text = tables.markdown(compare(profiles, ["size<=+1%"]))
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["### vae", "### gpt", "### gates"]
    bars = [line.count("|") for line in lines if line.startswith("|")]
    assert bars[:4] == [bars[0]] * 4
    assert lines[2].startswith(
        "**toy fp32 onnxruntime cpu #2 against toy fp32 onnxruntime cpu: no "
    )
    assert lines[5].startswith("| --- | ---: |")
    assert text.endswith("\n")


def test_a_name_cannot_break_out_of_markdown(make_profile):
    text = tables.markdown(compare([make_profile(bundle="a|b<script>\n`x`")]))
    row = next(line for line in text.splitlines() if "a\\|b" in line)
    assert "\\<script\\> \\`x\\`" in row


def test_energy_is_never_without_how_it_was_had(make_profile):
    rows = [
        make_profile(energy_j=2.0, energy_source="measured: RAPL package"),
        make_profile(1, energy_j=1.0, energy_source="modelled: 15 W"),
        make_profile(2),
    ]
    columns, cells = tables.table(compare(rows).rows)
    energy = columns.index("J/image")
    assert [row[energy] for row in cells] == ["2.00 measured", "1.00 modelled", "-"]


def test_drift_and_the_front_have_a_column(make_profile):
    far = Drift("onnxruntime", "decoder", "b", "image", 0.5, 12.0, "allclose", False)
    near = Drift("onnxruntime", "decoder", "b", "image", 1e-7, None, "allclose", True)
    rows = [make_profile(drifts=(far,)), make_profile(1, scale_ms=5.0, drifts=(near,))]
    found = compare([*rows, make_profile(2, scale_ms=2.0, size_mb=9.0)])
    columns, cells = tables.table(found.rows)
    assert [row[columns.index("drift")] for row in cells] == ["12.0 dB too far", "1e-07", "-"]
    assert [row[columns.index("Pareto")] for row in cells] == ["", tables.FRONT, tables.FRONT]
    assert any("on the Pareto front of time, peak RSS, size" in n for n in tables.footnotes(found))


def test_markdown_has_the_pick(make_profile):
    text = tables.markdown(compare([make_profile(), make_profile(1)], budget="p50<=1s"))
    assert "### best\n\n**pick toy (fp32) with onnxruntime on cpu" in text
    missed = compare([make_profile()], budget="p50<=1ms").best
    assert tables.pick(missed) == "nothing fits p50<=1ms"
