"""The page as a browser has it: quiet, whole, its tables sorted by keyboard, its charts drawn."""

import pytest

pytest.importorskip("vl_convert", reason="needs the report extra")

from edgegen import trends
from edgegen.bundle import Drift
from edgegen.compare import compare
from edgegen.history import History, Point, Trend
from edgegen.report import write_html
from edgegen.spec import Operator

pytestmark = pytest.mark.slow
ENTER, TAB = 13, 9


@pytest.fixture(scope="module")
def url(make_profile, tmp_path_factory):
    """A page with everything on it."""
    drift = Drift("onnxruntime", "decoder", "one", "image", 1e-6, 100.0, "allclose", ok=True)
    more = {
        "operators": (Operator("n", "MatMul", "cpu", 3, 9.0, "gemm"),),
        "drifts": (drift,),
        "environment": {"isa": ["avx2"] * 40},
    }
    profiles = [
        make_profile(repeats=70, bundle="a-name-that-is-long-enough-for-no-phone-at-all", **more),
        make_profile(1, repeats=70, scale_ms=5.0, engine="openvino", size_mb=1.0, **more),
        make_profile(2, repeats=70, scale_ms=80.0, size_mb=120.0, **more),
        make_profile(3, tokens=4, **more),
        make_profile(4, tokens=4, scale_ms=12.0),
    ]
    sheet = tmp_path_factory.mktemp("sheet") / "sheet.md"
    sheet.write_text("### 1\n\n> ![x](https://example.org/x.png) <img src=//example.org/y.png>\n")
    path = tmp_path_factory.mktemp("page") / "report.html"
    comparison = compare(profiles, ["p50<=+5%"])
    write_html(
        comparison, profiles, path, sheets=[sheet], commands=["edgegen compare " + "x" * 200]
    )
    return path.as_uri()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_it_is_drawn_without_an_error_a_request_or_a_scroll_bar(browser, url, width, theme):
    browser.look(url, width=width, theme=theme)
    assert browser.errors == []
    assert browser.requests == []
    count = "document.querySelectorAll('.chart').length"
    assert browser.run(f"document.querySelectorAll('.chart > svg, .chart svg').length == {count}")
    assert browser.run("document.documentElement.scrollWidth") == width
    widest = "Math.max(...[...document.querySelectorAll('.chart svg')].map(x => x.clientWidth))"
    assert 200 < browser.run(widest) < width


def test_a_request_would_have_been_seen(browser, url):
    browser.look(url)
    browser.run("fetch('https://example.org/').catch(() => 0)")
    assert any("Content Security Policy" in text for text in browser.errors)


def test_the_theme_changes_colours_and_draws_nothing_again(browser, url):
    browser.look(url)
    browser.run("window.first = document.querySelector('.chart svg')")
    ink = "getComputedStyle(document.querySelector('.chart svg .mark-text text')).fill"
    light = browser.run(ink)
    browser.theme("dark")
    assert browser.run(ink) != light
    assert browser.run("document.querySelector('.chart svg') === window.first")


def column(browser):
    first = "[...document.querySelector('table').tBodies[0].rows]"
    return browser.run(f"{first}.map(row => row.cells[1].dataset.v).map(Number)")


def test_a_table_is_sorted_with_the_keyboard_alone(browser, url):
    browser.look(url)
    text = "document.activeElement.textContent"
    for _ in range(12):
        browser.press("Tab", TAB)
        if browser.run(text) == "run ms":
            break
    assert browser.run(text) == "run ms"
    before = column(browser)
    browser.press("Enter", ENTER, "\r")
    state = "document.activeElement.closest('th').getAttribute('aria-sort')"
    assert browser.run(state) == "ascending"
    assert column(browser) == sorted(before) != before
    browser.press(" ", 32, " ")
    assert browser.run(state) == "descending"
    assert column(browser) == sorted(before, reverse=True)


def test_sorting_by_another_column_takes_the_mark_from_the_first(browser, url):
    browser.look(url)
    browser.run("document.querySelectorAll('th > button').forEach((b, n) => n < 2 && b.click())")
    assert (
        browser.run("document.querySelectorAll('table')[0].querySelectorAll('[aria-sort]').length")
        == 1
    )
    assert browser.run("document.querySelector('[aria-sort]').textContent") == "run ms"


def test_what_has_no_number_stays_last(browser, url):
    browser.look(url)
    numbers = """
        document.body.insertAdjacentHTML("beforeend", `<table>
            <thead><tr><th><button>x</button></th></tr></thead>
            <tbody><tr><td data-v=2>2<tr><td>-<tr><td data-v=10>10</tbody></table>`);
        const made = [...document.querySelectorAll("table")].at(-1);
        const seen = () => {
            sort(made.rows[0].cells[0]);
            return [...made.tBodies[0].rows].map(row => row.textContent).join(" ");
        };
        [seen(), seen()]
    """
    assert browser.run(numbers) == ["2 10 -", "10 2 -"]


def test_a_chart_says_what_it_shows(browser, url):
    browser.look(url)
    labels = browser.run(
        "[...document.querySelectorAll('[role=graphics-document]')].map(x => x.ariaLabel)"
    )
    assert len(labels) == browser.run("document.querySelectorAll('.chart').length")
    assert all(labels)


@pytest.fixture(scope="module")
def history_url(tmp_path_factory):
    """A page of trends, of which two end close to one another."""
    path = tmp_path_factory.mktemp("history") / "history.html"
    trends.draw(history(), path, command="edgegen history profiles --plot history.html")
    return path.as_uri()


def history():
    def line(engine, values):
        days = (f"2026-11-0{n}T10:00:00Z" for n in range(1, 9))
        points = tuple(
            Point(day, float(value), "1.0", "a.json")
            for day, value in zip(days, values, strict=False)
        )
        name = f"a-name-that-is-long-enough-for-no-phone-at-all {engine} cpu"
        return Trend(name, "a", "fp32", engine, "cpu", "a processor", "{}", points, None)

    lines = line("onnxruntime", [10, 11, 9]), line("openvino", [5, 6, 9.01]), line("native", [4])
    return History(1, "p50", "ms", lines)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_trends_are_drawn_without_an_error_a_request_or_a_scroll_bar(
    browser, history_url, width, theme
):
    browser.look(history_url, width=width, theme=theme)
    assert browser.errors == []
    assert browser.requests == []
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.querySelectorAll('.chart svg .mark-symbol path').length") == 7
    numbers = "[...document.querySelectorAll('.chart .mark-text.role-mark text')]"
    assert sorted(browser.run(f"{numbers}.map(x => x.textContent)")) == ["1", "2", "3"]
    covers = f"""
        const boxes = {numbers}.map(x => x.getBoundingClientRect());
        boxes.some((a, n) => boxes.slice(n + 1).some(b =>
            a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom))
    """
    assert not browser.run("{" + covers + "}")
