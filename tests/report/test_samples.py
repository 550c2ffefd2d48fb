"""Samples inside the page."""

import base64

import numpy as np
import pytest

pytest.importorskip("altair", reason="needs the report extra")

from edgegen.errors import FormatError, NotFoundError
from edgegen.quality import sheet
from edgegen.report import samples


def test_a_sheet_of_images_is_embedded_as_it_is(tmp_path):
    pytest.importorskip("PIL", reason="sheets are drawn with Pillow")
    rows = {"fp32": np.zeros((2, 1, 8, 8), np.float32), "int8": np.ones((2, 1, 8, 8), np.float32)}
    path = tmp_path / "vae.PNG"
    path.write_bytes(sheet.png(rows))
    text = samples.section({}, {}, [path])
    assert base64.b64encode(path.read_bytes()).decode() in text
    assert 'alt="Images made by vae"' in text


def test_a_sheet_of_texts_keeps_prompts_and_names(tmp_path):
    path = tmp_path / "gpt.md"
    path.write_text(sheet.markdown(["Once"], {"fp32": ["upon a"], "int8": ["in a"]}))
    text = samples.section({}, {}, [path])
    assert "<h3>1</h3>" in text
    assert "<strong>int8</strong>" in text
    assert text.count("<blockquote>") == 3
    assert text.count('<div class="said"><p><strong>') == 2  # beside each other, under the prompt


def test_what_a_model_wrote_stays_text(tmp_path):
    path = tmp_path / "gpt.md"
    path.write_text("> <script>x</script> ![a](https://a.b/c.png) [d](https://e.f) <https://g.h>\n")
    text = samples.section({}, {}, [path])
    assert not any(tag in text for tag in ("<script", "<img", "<a "))
    assert "&lt;script&gt;" in text


def test_nothing_made_is_no_section():
    assert samples.section({}, {}, []) == ""


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.jpg", b"x", FormatError, r"a\.jpg: a sheet of samples is \.png or \.md"),
        ("a.png", None, NotFoundError, r"a\.png: no such file"),
        ("a.png", b"x", FormatError, r"a\.png: named \.png, but it is no PNG picture"),
        ("a.md", b"\xff\xfe", FormatError, r"a\.md: not UTF-8 text"),
    ],
)
def test_a_bad_sheet_is_named_with_how_to_make_one(tmp_path, name, content, error, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=said) as found:
        samples.section({}, {}, [path])
    assert "edgegen eval BUNDLE" in found.value.hint
