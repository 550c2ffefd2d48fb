"""A bundle on disk: read, checked file by file, and refused when it is not what was exported."""

import json
from zipfile import ZipFile

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import Artifact, Bundle, Case, FileSum, Manifest, open_bundle
from edgegen.errors import FormatError, NotFoundError


def test_a_bundle_is_read_with_its_graphs_and_formats(image_bundle, toys):
    bundle = open_bundle(image_bundle)
    assert bundle.manifest.name == "toy-vae"
    assert bundle.graph("encoder") == toys.ENCODER
    assert bundle.formats() == ["callable"]
    assert bundle.artifact("decoder", "callable").path == "decoder/model.callable"
    assert bundle.sha256() == bundles.digest(image_bundle / "manifest.json")


def test_a_manifest_survives_json(text_bundle):
    manifest = open_bundle(text_bundle).manifest
    assert msgspec.json.decode(records.encode(manifest), type=Manifest) == manifest


def test_where_no_bundle_is_the_command_that_makes_one_is_told(tmp_path):
    with pytest.raises(NotFoundError, match="no bundle there") as error:
        open_bundle(tmp_path)
    assert error.value.hint == "make one with: edgegen export SOURCE -o BUNDLE"


def rewrite(path, **fields):
    """Change a manifest as an editor would."""
    data = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(data | fields))


def test_a_manifest_of_a_newer_version_is_refused_whatever_else_is_in_it(text_bundle):
    rewrite(text_bundle, format_version=2, invented_since={"a": 1})
    with pytest.raises(FormatError) as error:
        open_bundle(text_bundle)
    place = text_bundle / "manifest.json"
    assert str(error.value) == f"{place}: format_version 2, this EdgeGen reads up to 1"
    assert error.value.hint == "run: pip install --upgrade edgegen"


@pytest.mark.parametrize(
    ("field", "near"), [("precison", "precision"), ("artefacts", "artifacts"), ("loops", "loop")]
)
def test_an_unknown_field_in_a_manifest_is_answered_with_the_nearest(text_bundle, field, near):
    rewrite(text_bundle, **{field: 1})
    with pytest.raises(FormatError, match=f"unknown field `{field}`") as error:
        open_bundle(text_bundle)
    assert error.value.hint == f"did you mean {near!r}?"


def test_a_truncated_manifest_is_refused(text_bundle):
    file = text_bundle / "manifest.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"manifest\.json: not valid JSON"):
        open_bundle(text_bundle)


def test_whole_files_pass(text_bundle):
    bundles.check_files(open_bundle(text_bundle))


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"?"], ids=["truncated", "altered"]
)
def test_a_spoiled_file_is_named_with_both_sizes_and_hashes(text_bundle, spoil):
    file = text_bundle / "tokenizer.json"
    want = open_bundle(text_bundle).manifest.files["tokenizer.json"]
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(FormatError) as error:
        bundles.check_files(open_bundle(text_bundle))
    message = str(error.value)
    assert message.startswith(f"{file}: altered or truncated: ")
    assert f"{file.stat().st_size} bytes sha256 {bundles.digest(file)}" in message
    assert message.endswith(f"the manifest says {want.bytes} bytes sha256 {want.sha256}")
    assert error.value.hint == "export or copy the bundle again"


def test_only_the_files_asked_for_are_checked(text_bundle):
    (text_bundle / "tokenizer.json").unlink()
    bundle = open_bundle(text_bundle)
    bundles.check_files(bundle, only={"model.callable"})
    with pytest.raises(FormatError, match=r"tokenizer\.json: missing from the bundle"):
        bundles.check_files(bundle)


def test_a_graph_or_format_that_is_not_in_it_is_refused_with_what_is(image_bundle):
    bundle = open_bundle(image_bundle)
    with pytest.raises(NotFoundError, match="no graph 'decodr'") as error:
        bundle.graph("decodr")
    assert error.value.hint == "did you mean 'decoder'?"
    with pytest.raises(NotFoundError, match="not there as onnx; have: callable") as error:
        bundle.artifact("decoder", "onnx")
    assert error.value.hint.endswith(f"-o {image_bundle} --to callable,onnx")


def test_the_size_of_a_format_is_its_graphs_and_their_weights(image_bundle):
    files = {
        "model.onnx": 1_000_000,
        "model.onnx.data": 2_000_000,
        "openvino_model.xml": 10_000,
        "openvino_model.bin": 500_000,
        "openvino_tokenizer.xml": 7_000,
        "golden.npz": 9_000_000,
    }
    manifest = msgspec.structs.replace(
        open_bundle(image_bundle).manifest,
        artifacts=(
            Artifact("model", "onnx", "model.onnx", ()),
            Artifact("model", "openvino", "openvino_model.xml", ()),
        ),
        files={name: FileSum(size, "") for name, size in files.items()},
    )
    bundle = Bundle(image_bundle, manifest)
    assert bundle.size_mb("onnx") == 3.0
    assert bundle.size_mb("openvino") == 0.51
    assert bundle.files("onnx") == {"model.onnx", "model.onnx.data"}


def test_golden_data_comes_back_as_it_was_in_order(image_bundle):
    cases = [
        Case("decoder", "b", {"x/y": np.arange(3)}, {"z": np.float32([0.1])}),
        Case("decoder", "a", {"x/y": np.zeros((0, 2))}, {"z": np.float32([0.2])}),
    ]
    bundles.write_golden(cases, image_bundle / bundles.GOLDEN)
    again = bundles.read_golden(open_bundle(image_bundle))
    assert [case.name for case in again] == ["b", "a"]
    for one, other in zip(cases, again, strict=True):
        np.testing.assert_array_equal(one.inputs["x/y"], other.inputs["x/y"], strict=True)
        np.testing.assert_array_equal(one.outputs["z"], other.outputs["z"], strict=True)


@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: data[:200], lambda data: b"text"])
def test_broken_golden_data_is_refused(image_bundle, spoil):
    file = image_bundle / bundles.GOLDEN
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(FormatError, match=r"golden\.npz: no golden data") as error:
        bundles.read_golden(open_bundle(image_bundle))
    assert error.value.hint == "export the bundle again"


def test_golden_data_is_never_unpickled(image_bundle):
    array = np.array([print], dtype=object)
    np.savez(image_bundle / bundles.GOLDEN, **{"decoder/a/in/x": array})
    with pytest.raises(FormatError, match="allow_pickle=False"):
        bundles.read_golden(open_bundle(image_bundle))


def test_golden_data_is_packed_only_where_it_repeats(tmp_path):
    noise = np.random.default_rng(0).standard_normal((64, 300)).astype(np.float32)
    long = np.tile(noise[:, :4], (1, 75))
    case = bundles.Case("model", "text", {"past": long}, {"logits": noise, "none": noise[:0]})
    bundles.write_golden([case], tmp_path / "golden.npz")
    with ZipFile(tmp_path / "golden.npz") as file:
        packed = {
            entry.filename: entry.compress_size < entry.file_size for entry in file.infolist()
        }
    start = "model/text"
    assert packed == {
        f"{start}/in/past.npy": True,
        f"{start}/out/logits.npy": False,
        f"{start}/out/none.npy": False,
    }
