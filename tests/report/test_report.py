"""The page: whole in one file, safe against odd names, and the same for everybody."""

import base64
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("vl_convert", reason="needs the report extra")

from edgegen.bundle import Drift
from edgegen.compare import compare
from edgegen.report import write_html
from edgegen.roofs import Bandwidth, Gain, Peak, Peaks, Roof, Roofline
from edgegen.spec import Operator

pytestmark = pytest.mark.slow  # Vega is put together once: some seconds
VOID = {"meta", "img", "br", "link"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Tags in order, whether they close, and what is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "report.html"


@pytest.fixture(scope="module")
def page(path):
    def make(*profiles, gates=(), budget="", **more):
        write_html(compare(profiles, gates, budget), profiles, path, **more)
        return path.read_text()

    return make


@pytest.fixture(scope="module")
def full(page, make_profile):
    """A page with everything on it."""
    operators = (
        Operator("n", "MatMul", "cpu", 3, 9.0, "gemm"),
        Operator("m", "Add", "cpu", 3, 1.0),
    )
    drift = Drift("onnxruntime", "decoder", "batch-2", "image", 1e-6, 100.0, "allclose", ok=True)
    environment = {"cpu": "a", "isa": ["avx2"], "cores": 2.0, "caches": {"L2": 9}, "governor": None}
    more = {"operators": operators, "drifts": (drift,), "environment": environment}
    return page(
        make_profile(**more),
        make_profile(1, scale_ms=5.0, engine="openvino", flags=("drift: up",), **more),
        make_profile(2, tokens=4),
        make_profile(3, tokens=4, scale_ms=12.0),
        gates=["p50<=+5%"],
        pictures={"vae grid": PNG},
        texts={"gpt": "once upon a time"},
        commands=["edgegen profile a b -o p", "edgegen compare p"],
    )


def test_nothing_is_fetched(full):
    found = Page(full)
    assert not {"iframe", "object", "embed"} & set(found.tags)
    assert all(source.startswith("data:") for source in found.sources)
    assert "default-src 'none'" in full
    assert "unsafe-eval" not in full


def test_every_tag_closes(full):
    assert Page(full).open == []


def test_it_is_of_a_size_that_can_be_mailed(full):
    assert len(full) < 1_500_000


def test_the_verdict_stands_before_everything_else(page, make_profile):
    text = page(make_profile(), make_profile(1, scale_ms=5.0, size_mb=1.0))
    body = text[text.index("<body>") :]
    first = re.match(r"<body>\s*<header>\s*<h1>(.*?)</h1>", body)[1]
    assert re.search(r'<em class="good">[12]\.[09]\dx faster</em>', first)
    assert "25% of the size" in first
    assert "Nothing here" not in text


def test_every_family_has_its_verdict(full):
    found = re.findall(r'<p class="verdict"><b>(\w+)</b> (.*?)</p>', full)
    assert [family for family, _ in found] == ["VAE", "Text"]
    assert "x slower</em>" in found[1][1]


def test_a_lone_profile_has_a_page_without_a_verdict_or_ratios(page, make_profile):
    text = page(make_profile(peak_rss_mb=None), title="One")
    assert "<h1>One</h1>" in text
    assert "Against" not in text
    assert text.count("<figure>") == 2  # every sample, and their shares


def test_every_section_is_there(full):
    assert re.findall(r"^<h2>(.*?)(?: <small|<)", full, re.M) == [
        "VAE",
        "Text",
        "What they made",
        "Gates",
        "Where the time goes",
        "Why it is slow",
        "Drift from the reference",
        "Keep in mind",
        "Where it was measured",
        "Made with",
    ]
    for expected in (
        *("once upon a time", "edgegen compare p", "MatMul takes 90%", "avx2", "MISSED", "L2 9"),
        *("Time to first token", "Time per output token", "Each later token by its place"),
        *("Time against size on disk", "Time against peak memory", base64.b64encode(PNG).decode()),
    ):
        assert expected in full


def test_the_pick_of_a_budget_is_on_the_page(page, make_profile):
    text = page(make_profile(), make_profile(1, scale_ms=5.0), budget="p50<=20ms")
    assert "Which to take" in text
    assert "pick toy (fp32) with onnxruntime on cpu" in text


def test_an_engine_without_operators_is_said(page, make_profile):
    timed = make_profile(operators=(Operator("n", "Conv", "cpu", 1, 1.0),))
    text = page(timed, make_profile(1, engine="other"))
    assert "toy fp32 other cpu: its engine did not say." in text


def test_a_roofline_is_drawn_and_one_that_is_not_there_is_said(page, make_profile):
    peaks = Peaks(
        "cpu", "x", 2, "2026", (Peak("fp32", 99.0, "a"),), (Bandwidth("DRAM", 9.0, 9, 0, "a"),)
    )
    run = Roof("run", 2.0, 20e6, 10e6, 1.0, 0.5, "memory")
    gain = Gain("int8", "run", 0.5, "weights of one byte")
    why = Roofline(peaks, "fp32", "DRAM", (run,), (), (gain,), "run: bound by <memory>", ("odd",))
    text = page(make_profile(roofline=why), make_profile(1))
    assert "run: bound by &lt;memory&gt;." in text
    assert "predicted share of the time of run: int8 0.50 (weights of one byte)" in text
    assert "<li>odd</li>" in text
    assert "Has a roofline: not toy fp32 onnxruntime cpu #2." in text
    assert "Has a roofline: none of these profiles." in page(make_profile())


def test_every_colour_that_is_used_is_defined_in_both_themes(full):
    css = full[full.index("<style>") : full.index("</style>")]
    light, dark = css.split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r"var\((--\w+)\)", full))
    assert used <= set(re.findall(r"(--\w+):", light))
    assert used - {"--font"} <= set(re.findall(r"(--\w+):", dark))


def test_an_odd_name_is_shown_and_never_run(page, make_profile):
    odd = '</script><script>alert("1")</script> & $x^2$ "'
    profile = make_profile(
        bundle=odd, family="<b>", device_name=odd, environment={odd: odd}, flags=(odd,)
    )
    text = page(
        profile,
        make_profile(1, bundle=odd, family="<b>"),
        pictures={odd: PNG},
        texts={odd: odd},
        commands=[odd],
        title=odd,
    )
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert Page(text).open == []


def test_the_same_profiles_give_the_same_page(page, make_profile):
    assert page(make_profile(), make_profile(1)) == page(make_profile(), make_profile(1))


def test_an_old_page_stays_whole_when_writing_fails(page, make_profile, path):
    path.write_text("old")
    with pytest.raises(TypeError):
        page(make_profile(), pictures={"x": None})
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
