"""Files first, then golden data: on the in-memory engine, so that every number is exact."""

import msgspec
import numpy as np
import pytest

from edgegen import bundle as bundles
from edgegen import proof, records
from edgegen.bundle import Artifact, Case, open_bundle
from edgegen.errors import FormatError, MissingExtraError, NotFoundError, ParityError


def change(path, **fields):
    manifest = open_bundle(path).manifest
    fields.setdefault("files", bundles.sums(path))
    records.write(msgspec.structs.replace(manifest, **fields), path / bundles.MANIFEST)


def test_a_whole_bundle_is_proved_output_by_output(image_bundle):
    said = []
    found = proof.prove(image_bundle, report=lambda *step: said.append(step[0]))
    assert {(d.engine, d.graph, d.output) for d in found.drifts} == {
        ("callable", "decoder", "image"),
        ("callable", "encoder", "mean"),
        ("callable", "encoder", "logvar"),
    }
    assert all(drift.ok and drift.max_abs_error == 0 for drift in found.drifts)
    assert (found.files, found.skipped) == (3, {})
    assert found.sha256 == bundles.digest(image_bundle / "manifest.json")
    assert said == ["check files", "golden data on callable"]
    proof.demand(found)


def test_one_wrong_number_fails_the_demand_and_is_named(image_bundle):
    cases = bundles.read_golden(open_bundle(image_bundle))
    decoder, encoder = cases
    off = {"image": decoder.outputs["image"] + np.float32(0.25)}
    bundles.write_golden(
        [Case("decoder", "batch-2", decoder.inputs, off), encoder], image_bundle / bundles.GOLDEN
    )
    change(image_bundle)
    found = proof.prove(image_bundle)
    assert [drift.output for drift in found.drifts if not drift.ok] == ["image"]
    with pytest.raises(ParityError, match="1 of 3 outputs are out of tolerance") as error:
        proof.demand(found)
    assert "callable decoder batch-2 image: max abs error 0.25" in str(error.value)
    assert "edgegen devices --doctor" in error.value.hint
    assert error.value.exit_code == 3


def test_an_altered_file_is_found_before_anything_is_run(image_bundle):
    with (image_bundle / bundles.GOLDEN).open("ab") as file:
        file.write(b"x")
    with pytest.raises(FormatError, match=r"golden\.npz: altered or truncated"):
        proof.prove(image_bundle, "callable")


def test_an_unknown_engine_is_refused_with_the_nearest(image_bundle):
    with pytest.raises(NotFoundError, match="no 'calable'") as error:
        proof.prove(image_bundle, "calable")
    assert error.value.hint == "did you mean 'callable'?"


def test_a_format_that_no_installed_engine_reads_says_what_the_bundle_holds(image_bundle):
    artifact = Artifact("decoder", "tflite", "decoder/model.callable", ())
    change(image_bundle, artifacts=(artifact,))
    with pytest.raises(MissingExtraError, match="holds tflite; no installed engine") as error:
        proof.prove(image_bundle)
    assert "--to onnx" in error.value.hint


def test_a_bundle_without_golden_data_cannot_be_proved(image_bundle):
    (image_bundle / bundles.GOLDEN).unlink()
    change(image_bundle)
    with pytest.raises(FormatError, match=r"golden\.npz: no golden data"):
        proof.prove(image_bundle)
