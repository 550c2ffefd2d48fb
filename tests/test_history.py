"""Profiles over time, asked through DuckDB."""

import builtins

import msgspec
import numpy as np
import pytest

from edgegen import history as histories
from edgegen import records, trends
from edgegen.errors import FormatError, MissingExtraError, NotFoundError, UsageError
from edgegen.history import history
from edgegen.spec import Request

pytest.importorskip("duckdb", reason="needs the history extra")


@pytest.fixture
def folder(make_profile, tmp_path):
    """Three days of one bundle, one day of it on another engine, and one of text on a board."""
    days = [make_profile(n, created=f"2026-11-0{n + 1}T10:00:00+00:00") for n in range(3)]
    other = make_profile(engine="openvino", quality={"kid": 0.5}, energy_j=2.0)
    text = make_profile(tokens=4, board="pi5", bundle="gpt", repeats=20)
    (tmp_path / "deeper").mkdir()
    for n, profile in enumerate([*days, other, text]):
        records.write(profile, tmp_path / ("deeper" * (n % 2)) / f"{n}.json")
    return tmp_path


def test_what_is_alike_is_one_trend_in_the_order_of_its_days(folder, make_profile):
    found = history(folder)
    first = found.trends[0]
    assert len(found.trends) == 3
    assert first.name == "toy fp32 onnxruntime cpu"
    assert [point.created[:10] for point in first.points] == [f"2026-11-0{n}" for n in (1, 2, 3)]
    medians = [float(np.median(make_profile(n).first_ms)) for n in range(3)]
    assert [point.value for point in first.points] == pytest.approx(medians)
    assert first.change == pytest.approx(medians[2] / np.median(medians[:2]) - 1)
    assert found.trends[1].change is None


@pytest.mark.parametrize(
    ("metric", "want"),
    [("ttft", True), ("tpot", True), ("p90", True), ("p99", False)],
)
def test_the_metrics_are_those_of_compare(folder, make_profile, metric, want):
    from edgegen.compare import compare

    profile = make_profile(tokens=4, board="pi5", bundle="gpt", repeats=20)
    if not want:  # too few samples for it
        with pytest.raises(NotFoundError, match="none of them a profile with p99"):
            history(folder, metric)
        return
    (found,) = [trend for trend in history(folder, metric).trends if trend.bundle == "gpt"]
    value = compare([profile]).rows[0].values[metric].value
    assert found.points[0].value == pytest.approx(value)


@pytest.mark.parametrize("metric", ["rate", "load", "cold", "peak_rss", "rss", "size", "energy"])
def test_every_metric_of_a_gate_has_a_trend(folder, metric):
    assert history(folder, metric, engines=["openvino"]).trends[0].points


def test_quality_has_a_trend_and_what_lacks_it_is_counted(folder):
    found = history(folder, "quality.kid")
    assert found.trends[0].points[0].value == 0.5
    assert found.ignored == 4


def test_it_is_narrowed_by_bundle_engine_device_and_day(folder):
    assert len(history(folder, engines=["openvino"]).trends) == 1
    assert [t.device for t in history(folder, devices=["pi5"]).trends] == ["pi5/cpu"]
    assert len(history(folder, bundles=["toy", "gpt"]).trends) == 3
    days = history(folder, bundles=["toy"], since="2026-11-02", until="2026-11-03").trends
    assert [len(trend.points) for trend in days] == [2]


@pytest.mark.parametrize(
    ("asked", "said", "hint"),
    [
        ({"bundles": ["tay"]}, "no profile of bundle 'tay'", "did you mean 'toy'?"),
        ({"engines": ["openvno"]}, "no profile of engine", "did you mean 'openvino'?"),
        ({"devices": ["pi4"]}, "no profile of device 'pi4'", "did you mean 'pi5'?"),
        ({"until": "2020-01-01"}, "no profile of these days", "have: 2026-11-01 to 2026-11-21"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(folder, asked, said, hint):
    with pytest.raises(NotFoundError, match=said) as error:
        history(folder, **asked)
    assert error.value.hint == hint


def test_a_bad_metric_or_day_is_a_usage_error(folder):
    with pytest.raises(UsageError, match="no metric 'p5'") as error:
        history(folder, "p5")
    assert error.value.hint == "did you mean 'p50'?"
    with pytest.raises(UsageError, match="--since 'yesterday' is no day"):
        history(folder, since="yesterday")


def test_broken_and_empty_files_are_named(folder):
    (folder / "x.json").write_text('{"bundle":')
    with pytest.raises(FormatError, match=r"Malformed JSON in file .*x\.json"):
        history(folder)
    (folder / "x.json").write_text("")
    with pytest.raises(FormatError, match=r"x\.json: an empty file"):
        history(folder)


def test_json_that_is_no_profile_is_left_out_and_counted(folder):
    (folder / "manifest.json").write_text('{"format_version": 1}')
    found = history(folder)
    assert found.ignored == 1
    assert len(found.trends) == 3


@pytest.mark.parametrize("name", ["created", "engine", "device", "device_name"])
def test_a_profile_without_what_makes_a_trend_is_left_out_and_counted(folder, make_profile, name):
    written = msgspec.to_builtins(make_profile())
    del written[name]
    (folder / "x.json").write_bytes(msgspec.json.encode(written))
    found = history(folder)
    assert found.ignored == 1
    assert trends.table(found)[1]


def test_a_folder_without_profiles_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFoundError, match="0 JSON files") as error:
        history(tmp_path)
    assert "edgegen profile BUNDLE" in error.value.hint
    with pytest.raises(NotFoundError, match="no such folder"):
        history(tmp_path / "x")


def test_unlike_requests_are_trends_of_their_own_and_say_so(make_profile, tmp_path):
    asked = [Request(), Request(batch=8, sizes={"width": 9})]
    for n, request in enumerate(asked):
        records.write(make_profile(request=request, threads=n), tmp_path / f"{n}.json")
    names = {trend.name for trend in history(tmp_path).trends}
    usual = "toy fp32 onnxruntime cpu"
    assert names == {usual, f"{usual} threads=1 batch=8 width=9"}


def test_the_table_has_a_line_and_a_curve_for_each(folder):
    columns, rows = trends.table(history(folder))
    assert "last ms" in columns
    assert len(rows) == 3
    assert len(rows[0][-1]) == 3  # one character a profile
    assert rows[1][-2] == "-"
    assert trends.table(history(folder), plain=True)[1][0][-1].isascii()


def test_without_duckdb_the_extra_is_named(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "duckdb":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="history needs duckdb") as error:
        histories.history(folder)
    assert error.value.hint == "run: pip install 'edgegen[history]'"


@pytest.mark.parametrize(
    ("metric", "hint"), [("quality.fid", "edgegen eval BUNDLE"), ("tpot", "these two are of text")]
)
def test_a_metric_that_nobody_has_says_where_it_comes_from(make_profile, tmp_path, metric, hint):
    records.write(make_profile(), tmp_path / "p.json")
    with pytest.raises(NotFoundError, match=f"none of them a profile with {metric}") as error:
        history(tmp_path, metric)
    assert hint in error.value.hint
