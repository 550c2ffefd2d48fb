"""The page: whole in one file, safe against odd names, and the same picture for everybody."""

import base64
import re
from html.parser import HTMLParser

import pytest

from edgegen.bundle import Drift
from edgegen.compare import compare
from edgegen.report import write_html
from edgegen.spec import Operator

pytest.importorskip("matplotlib", reason="needs the report extra")

# matplotlib asks pyparsing for names that pyparsing has renamed since
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib")

VOID = {"meta", "img", "br", "use", "path", "link"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Tags in order, whether they close, the ids, and what is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.sources = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        fields = dict(attrs)
        self.ids += [fields["id"]] if "id" in fields else []
        self.sources += [fields[k] for k in ("src", "href", "xlink:href") if fields.get(k)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(make_profile, tmp_path):
    def make(*profiles, gates=(), **more):
        path = tmp_path / "report.html"
        write_html(compare(profiles, gates), profiles, path, **more)
        return path.read_text()

    return make


@pytest.fixture
def full(page, make_profile):
    """A page with everything on it."""
    operators = (
        Operator("n", "MatMul", "cpu", 3, 9.0, "gemm"),
        Operator("m", "Add", "cpu", 3, 1.0),
    )
    drift = Drift("onnxruntime", "decoder", "batch-2", "image", 1e-6, 100.0, "allclose", ok=True)
    more = {
        "operators": operators,
        "drifts": (drift,),
        "environment": {
            "cpu": "a",
            "isa": ["avx2"],
            "cores": 2.0,
            "load_1min": 0.5,
            "caches": {"L2": 9},
            "governor": None,
        },
    }
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


def test_nothing_is_fetched_and_no_script_is_needed(full):
    assert not re.search(r"(https?:)?//[a-z]", full)
    assert "@import" not in full
    found = Page(full)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in found.sources)


def test_every_tag_closes_and_every_id_is_one(full):
    found = Page(full)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))


def test_every_picture_says_in_words_what_it_shows(full):
    found = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', full)
    assert len(found) == full.count("<svg")
    assert any(text.startswith("Time of a run") or "medians" in text for text in found)
    assert 'alt="Images made by vae grid"' in full


def test_every_section_is_there(full):
    found = re.findall(r"<h2>(.*?)<", full)
    assert found == [
        "VAE",
        "Text",
        "What they made",
        "Gates",
        "Where the time goes",
        "Drift from the reference",
        "Keep in mind",
        "Where it was measured",
        "Made with",
    ]
    for expected in (
        "once upon a time",
        "edgegen compare p",
        "MatMul takes 90%",
        "avx2",
        "MISSED",
        "L2 9",
    ):
        assert expected in full
    assert base64.b64encode(PNG).decode() in full


def test_the_colours_and_the_font_are_the_page_s(full):
    assert not re.search(r"#0[12]00[0-9a-f]{2}", full)
    assert "DejaVu" not in full
    assert "prefers-color-scheme: dark" in full
    used, defined = set(re.findall(r"var\((--\w+)\)", full)), set(re.findall(r"(--\w+):", full))
    assert used <= defined


def test_the_lead_names_the_fastest_and_says_by_how_much(page, make_profile):
    fast = page(make_profile(), make_profile(1, scale_ms=5.0, size_mb=1.0))
    assert re.search(r"<strong>2\.0\dx faster|<strong>1\.9\dx faster", fast)
    assert "25% of the size" in fast
    assert "Nothing here is detectably faster" in page(make_profile(), make_profile(1))


def test_a_lone_profile_has_a_page_without_ratios(page, make_profile):
    text = page(make_profile(peak_rss_mb=None))
    assert "Against" not in text
    assert text.count("<figure") == 2


def test_an_odd_name_is_shown_and_never_run(page, make_profile):
    odd = '<script>alert("1")</script> & $x^2$ "'
    text = page(
        make_profile(
            bundle=odd, family="<b>", device_name=odd, environment={odd: odd}, flags=(odd,)
        ),
        make_profile(1, bundle=odd, family="<b>"),
        pictures={odd: PNG},
        texts={odd: odd},
        commands=[odd],
        title=odd,
    )
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert Page(text).open == []


def test_the_same_profiles_give_the_same_page(page, make_profile):
    assert page(make_profile(), make_profile(1)) == page(make_profile(), make_profile(1))


def test_an_old_page_stays_whole_when_writing_fails(page, make_profile, tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(TypeError):
        page(make_profile(), pictures={"x": None})
    assert (tmp_path / "report.html").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
