"""`edgegen verify`, in this process: the in-memory engine knows its functions only here."""

import json

import pytest

from edgegen import bundle as bundles
from edgegen.cli import main


@pytest.fixture
def edgegen(monkeypatch, capsys):
    """Run the command line; (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr("sys.argv", ["edgegen", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_a_whole_bundle_gives_the_table_of_drift_and_exit_0(edgegen, image_bundle):
    code, out, err = edgegen("verify", image_bundle)
    assert code == 0
    assert "toy-vae on cpu: 3 files as exported" in out
    assert out.count(" ok") == 3
    assert "golden data on callable" in err


def test_json_on_stdout_is_the_record_alone(edgegen, text_bundle):
    code, out, err = edgegen("verify", text_bundle, "--json", "-q", "--runtime", "callable")
    assert (code, err) == (0, "")
    assert json.loads(out)["bundle"] == "toy-text"


def test_wrong_numbers_print_the_table_and_exit_3(edgegen, image_bundle, toys):
    toys.in_memory.register(
        "toy-decoder", lambda feed: {"image": 2 * toys.toy_decoder(feed)["image"]}
    )
    try:
        code, out, err = edgegen("verify", image_bundle, "-q")
    finally:
        toys.in_memory.register("toy-decoder", toys.toy_decoder)
    assert code == 3
    assert out.count("FAILED") == 1
    assert err.startswith("error: toy-vae: 1 of 3 outputs are out of tolerance; worst: callable ")


def test_a_truncated_file_is_named_with_both_hashes_and_exit_1(edgegen, image_bundle):
    file = image_bundle / "encoder" / "model.callable"
    was = bundles.digest(file)
    file.write_bytes(file.read_bytes()[:-3])
    code, out, err = edgegen("verify", image_bundle, "-q")
    assert (code, out) == (1, "")
    for expected in (
        str(file),
        was,
        bundles.digest(file),
        "hint:  export or copy the bundle again",
    ):
        assert expected in err


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--runtime", "onnxruntim"], "no 'onnxruntim' in edgegen.runtimes", "'onnxruntime'?"),
        (["--runtime", "onnxruntime"], "not there as onnx", "--to callable,onnx"),
    ],
)
def test_engines_that_cannot_be_are_refused_with_the_fix(
    edgegen, image_bundle, args, message, hint
):
    code, out, err = edgegen("verify", image_bundle, "-q", *args)
    assert (code, out) == (1, "")
    assert message in err
    assert hint in err
