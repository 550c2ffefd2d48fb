"""`edgegen inspect`."""

import json
import subprocess
import sys


def run(*args):
    command = [sys.executable, "-m", "edgegen", "inspect", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_is_printed_with_its_graphs_sizes_and_layers(text_bundle):
    done = run(text_bundle, "--layers")
    assert done.returncode == 0, done.stderr
    for expected in ("bundle toy-text: gpt fp32", "input_ids", "batch, seq", "weight", "Linear"):
        assert expected in done.stdout
    assert "operators and MACs are read from onnx and openvino files only" in done.stdout


def test_json_is_the_record(image_bundle):
    found = json.loads(run(image_bundle, "--json", "--size", "batch=2").stdout)
    assert found["kind"] == "bundle"
    assert found["sizes"] == {"batch": 2}
    assert found["weights_mb"]["fp16"] == 8 / 1e6


def test_a_size_that_is_no_number_is_a_usage_error_with_an_example(image_bundle):
    done = run(image_bundle, "--size", "batch=-1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --size batch=-1: wanted NAME=N",
        "hint:  for example --size batch=1 --size seq=7",
    ]


def test_nothing_there_is_an_error_with_a_hint(tmp_path):
    done = run(tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "hint:  " in done.stderr
