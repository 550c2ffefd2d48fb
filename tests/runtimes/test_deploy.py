import json
import sys

import msgspec
import numpy as np
import pytest

import edgegen
from edgegen import records, rooms, runtimes
from edgegen.bundle import MANIFEST, Manifest
from edgegen.errors import (
    FormatError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.runtimes import deploy
from edgegen.spec import Options, Request


def rewrite(bundle, **fields):
    """The bundle with other fields in its manifest."""
    manifest = records.read(Manifest, bundle / MANIFEST)
    records.write(msgspec.structs.replace(manifest, **fields), bundle / MANIFEST)
    return bundle


def test_load_is_deploy_and_finds_an_engine_by_itself(image_bundle):
    assert edgegen.load is deploy
    with edgegen.load(image_bundle) as deployment:
        assert (deployment.engine, deployment.device) == ("callable", "cpu")
        assert list(deployment.sessions) == ["decoder"]
        deployment.session("encoder")
        assert list(deployment.sessions) == ["decoder", "encoder"]
    assert deployment.sessions == {}


@pytest.mark.slow  # imports torch
@pytest.mark.parametrize(("kind", "name"), runtimes.FIRST.items())
def test_the_engine_taken_first_for_a_format_reads_it(kind, name):
    pytest.importorskip(name)
    assert kind == rooms.load(runtimes.ROOM, name).READS


def test_the_precision_is_the_bundles_own(image_bundle):
    rewrite(image_bundle, precision="int8")
    deployment = deploy(image_bundle, options=Options(threads=2, precision="fp16"))
    assert deployment.options == Options(threads=2, precision="int8")


def test_an_unknown_engine_is_met_with_the_nearest(image_bundle):
    with pytest.raises(NotFoundError, match="no 'callabel'") as error:
        deploy(image_bundle, "callabel")
    assert error.value.hint == "did you mean 'callable'?"


def test_an_engine_that_is_not_installed_is_met_with_the_pip_command(image_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "edgegen.runtimes.openvino", raising=False)
    with pytest.raises(MissingExtraError, match="openvino needs openvino") as error:
        deploy(image_bundle, "openvino")
    assert error.value.hint == "run: pip install 'edgegen[openvino]'"


def as_format(bundle, kind):
    manifest = records.read(Manifest, bundle / MANIFEST)
    artifacts = [msgspec.structs.replace(a, format=kind) for a in manifest.artifacts]
    return rewrite(bundle, artifacts=tuple(artifacts))


def test_when_no_installed_engine_reads_the_bundle_the_one_that_would_is_named(
    image_bundle, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "edgegen.runtimes.openvino", raising=False)
    with pytest.raises(MissingExtraError, match="holds openvino; no installed engine") as error:
        deploy(as_format(image_bundle, "openvino"))
    assert error.value.hint == "run: pip install 'edgegen[openvino]'"


def test_an_engine_whose_format_is_not_in_the_bundle_is_met_with_the_export(image_bundle):
    with pytest.raises(NotFoundError, match="graph 'decoder' is not there as callable") as error:
        deploy(as_format(image_bundle, "onnx"), "callable")
    assert f"edgegen export SOURCE -o {image_bundle} --to onnx,callable" in error.value.hint


def test_an_unknown_device_is_met_with_those_that_are_there(image_bundle):
    with pytest.raises(NotFoundError, match="no device 'cpuu'") as error:
        deploy(image_bundle, "callable", "cpuu")
    assert error.value.hint == "did you mean 'cpu'?"


def test_an_altered_graph_is_named_with_both_hashes(image_bundle):
    (image_bundle / "decoder" / "model.callable").write_text('{"function": "other"}')
    with pytest.raises(FormatError, match=r"decoder.model.callable: altered.*sha256 .*sha256"):
        deploy(image_bundle)


def test_what_is_not_opened_is_not_checked(image_bundle):
    (image_bundle / "golden.npz").write_bytes(b"")
    deploy(image_bundle)


@pytest.mark.parametrize("path", ["../elsewhere.callable", "/etc/passwd", "unknown.callable"])
def test_a_graph_outside_the_bundle_or_without_a_hash_is_refused(image_bundle, path):
    manifest = records.read(Manifest, image_bundle / MANIFEST)
    artifacts = [msgspec.structs.replace(a, path=path) for a in manifest.artifacts]
    some = next(iter(manifest.files.values()))
    files = manifest.files if path.startswith("unknown") else {**manifest.files, path: some}
    rewrite(image_bundle, artifacts=tuple(artifacts), files=files)
    with pytest.raises(FormatError, match="has no hash for"):
        deploy(image_bundle)


@pytest.mark.parametrize(("engine", "kind"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_free_dimensions_are_refused_where_the_device_needs_fixed_ones(
    text_bundle, image_bundle, engine, kind
):
    pytest.importorskip(engine)
    with pytest.raises(UnsupportedError, match="npu needs fixed ones") as error:
        deploy(as_format(text_bundle, kind), engine, "npu")
    assert error.value.hint.endswith("--static batch=1,seq=64")
    with pytest.raises(UnsupportedError, match=r"\(batch\), npu:1 needs") as error:
        deploy(as_format(image_bundle, kind), engine, "npu:1")
    assert error.value.hint.endswith("--static batch=1")


def test_a_loop_this_version_does_not_know_is_a_broken_manifest(image_bundle):
    manifest = json.loads((image_bundle / MANIFEST).read_text())
    manifest["loop"]["type"] = "denoise"
    (image_bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=r"manifest.json: Invalid value 'denoise'"):
        deploy(image_bundle)


def test_text_goes_on_from_a_prompt(text_bundle, toys):
    deployment = deploy(text_bundle, "callable")
    want = bytes(toys.continuation(b"Hi", 5)).decode(errors="replace")
    assert deployment.generate("Hi", max_new_tokens=5) == want
    assert deployment.generate(["Hi", "Hello"], max_new_tokens=5)[0] == want


def test_the_stream_adds_up_to_the_text(text_bundle):
    pieces = {0: [], 1: []}
    texts = deploy(text_bundle, "callable").generate(
        ["Hi", "Hello"],
        max_new_tokens=40,
        temperature=8.0,
        seed=5,
        stream=lambda i, piece: pieces[i].append(piece),
    )
    assert ["".join(pieces[0]), "".join(pieces[1])] == texts
    assert len(pieces[0]) > 1


def test_text_ends_with_the_positions_when_nothing_is_said(text_bundle, toys):
    text = deploy(text_bundle, "callable").generate("\x01\x02\x03")
    assert text == bytes(toys.continuation((1, 2, 3), 62)).decode(errors="replace")


def test_text_ends_before_a_stop_string(text_bundle):
    deployment = deploy(text_bundle, "callable")
    whole = deployment.generate("Hi", max_new_tokens=5)
    assert deployment.generate("Hi", max_new_tokens=5, stop=[whole[2:4]]) == whole[:2]


def test_a_stop_in_one_text_leaves_the_others_alone(text_bundle):
    deployment = deploy(text_bundle, "callable")
    one, two = deployment.generate(["Hi", "Hello"], max_new_tokens=20)
    stopped = deployment.generate(["Hi", "Hello"], max_new_tokens=20, stop=[one[1:]])
    assert stopped == [one[:1], two]


def test_all_ids_at_once_are_those_of_the_steps(text_bundle):
    with deploy(text_bundle) as deployment:
        request = Request(batch=2, new_tokens=5, prompt_tokens=3)
        steps = np.stack(list(deployment.steps(request)))
        assert steps.shape == (5, 2)
        assert np.array_equal(deployment.tokens(request), steps)


def test_images_have_no_ids(image_bundle):
    with deploy(image_bundle) as deployment, pytest.raises(UsageError, match="is no text model"):
        deployment.tokens(Request())


def test_ids_can_be_stepped_through(text_bundle, toys):
    request = Request(prompts=((72, 105),), new_tokens=4)
    steps = deploy(text_bundle, "callable").steps(request)
    assert [int(ids[0]) for ids in steps] == toys.continuation(b"Hi", 4)


def test_image_i_depends_on_the_seed_and_i_only(image_bundle):
    deployment = deploy(image_bundle)
    some, many = deployment.generate(num=3, seed=4), deployment.generate(num=130, seed=4)
    np.testing.assert_array_equal(many[:3], some)
    assert (many.dtype, many.shape) == (np.float32, (130, 1, 8, 8))
    assert (deployment.generate(num=3, seed=5) != some).any()
    assert deployment.generate().shape[0] == 16


def test_steps_and_generate_start_from_the_same_latents(image_bundle):
    deployment = deploy(image_bundle)
    (outputs,) = deployment.steps(Request(batch=3, seed=4))
    np.testing.assert_array_equal(outputs["image"], deployment.generate(num=3, seed=4))


def test_a_text_bundle_without_a_tokenizer_still_steps(text_bundle):
    manifest = records.read(Manifest, text_bundle / MANIFEST)
    files = {n: s for n, s in manifest.files.items() if n != "tokenizer.json"}
    deployment = deploy(rewrite(text_bundle, files=files), "callable")
    assert len(list(deployment.steps(Request(prompts=((1,),), new_tokens=2)))) == 2
    with pytest.raises(NotFoundError, match="without a tokenizer"):
        deployment.generate("Hi")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("text", {}, "makes no images|is a text model"),
        ("text", {"num": 3}, "is a text model"),
        ("text", {"prompt": "Hi", "num": 3}, "num is for images"),
        ("text", {"prompt": "Hi", "seed": -1}, "seed is -1, wanted 0 or more"),
        ("text", {"prompt": "Hi", "max_new_tokens": 0}, "new_tokens is 0"),
        ("text", {"prompt": "Hi", "top_q": 0.1}, "no sampling option 'top_q'"),
        ("text", {"prompt": "", "max_new_tokens": 3}, "the prompt is empty"),
        ("text", {"prompt": "x" * 65}, "the prompt has 65 tokens"),
        ("text", {"prompt": "Hi", "stop": [""]}, "an empty stop string"),
        ("text", {"prompt": []}, "batch is 0, wanted 1"),
        ("image", {"prompt": "Hi"}, "is no text model, it does not take a prompt"),
        ("image", {"temperature": 1.0}, "temperature is for text"),
        ("image", {"stream": print}, "stream is for text"),
        ("image", {"num": 0}, "num is 0, wanted 1 or more"),
        ("image", {"num": -7}, "num is -7, wanted 1 or more"),
        ("image", {"num": 10**12}, r"num 1000000000000 would need about .* GB"),
        ("image", {"seed": -1}, "seed is -1, wanted 0 or more"),
    ],
)
def test_what_does_not_fit_the_bundle_is_refused_by_name(
    text_bundle, image_bundle, kind, options, message
):
    deployment = deploy(text_bundle if kind == "text" else image_bundle, "callable")
    with pytest.raises(UsageError, match=message):
        deployment.generate(**options)


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("batch", -1), ("seed", -1)])
def test_a_request_out_of_range_is_refused(image_bundle, field, value):
    request = msgspec.structs.replace(Request(), **{field: value})
    with pytest.raises(UsageError, match=f"{field} is {value}, wanted"):
        deploy(image_bundle).steps(request)
