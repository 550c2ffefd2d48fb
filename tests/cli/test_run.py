import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from edgegen import cli
from edgegen.bundle import OneShot
from edgegen.errors import FormatError, MismatchError, NotFoundError, UsageError
from edgegen.spec import GraphSpec, TensorSpec

Image = pytest.importorskip("PIL.Image")
CALLABLE = ("--runtime", "callable")


def run(*arguments):
    """The command as the terminal calls it; errors come out as they are raised."""
    cli.app(["run", *map(str, arguments)], standalone_mode=False)


@pytest.fixture
def tensor_bundle(tmp_path, toys):
    graph = GraphSpec(
        "double",
        (TensorSpec("x", "float32", ("batch", "wide")),),
        (TensorSpec("y", "float32", ("batch", "wide")),),
    )
    toys.in_memory.register("toy-double", lambda feed: {"y": 2 * feed["x"]})
    graphs = {"double": (graph, "toy-double")}
    return toys.write_bundle(tmp_path / "double", "module", OneShot("double"), graphs, [])


def test_stdout_is_the_text_alone_and_stderr_has_the_speed(text_bundle, toys, capsys):
    run(text_bundle, "--prompt", "Hi", "--max-new-tokens", 5, "--greedy", *CALLABLE)
    out, err = capsys.readouterr()
    assert out == bytes(toys.continuation(b"Hi", 5)).decode(errors="replace") + "\n"
    assert re.fullmatch(r"5 tokens, [\d.]+ tokens/s, TTFT [\d.]+ ms \(callable, cpu\)\n", err)


def test_a_prompt_may_come_from_stdin(text_bundle, capsys, monkeypatch):
    run(text_bundle, "--prompt", "Hi", "--max-new-tokens", 5)
    want = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    run(text_bundle, "--prompt", "-", "--max-new-tokens", 5)
    assert capsys.readouterr().out == want


def test_several_texts_come_one_after_the_other(text_bundle, capsys):
    for prompt in ("Hi", "Hello"):
        run(text_bundle, "--prompt", prompt, "--max-new-tokens", 5)
    want = capsys.readouterr().out
    run(text_bundle, "--prompt", "Hi", "--prompt", "Hello", "--max-new-tokens", 5)
    out, err = capsys.readouterr()
    assert out == want
    assert err.startswith("10 tokens")


def test_a_batch_of_one_prompt_gives_different_samples_by_seed(text_bundle, capsys):
    def texts(seed):
        run(
            text_bundle, "--prompt", "Hi", "--batch", 3, "--temperature", 9, "--top-k", 50,
            "--top-p", 0.99, "--min-p", 0.001, "--repetition-penalty", 1.1, "--seed", seed,
            "--max-new-tokens", 8, "--stop", "zzzz", "--json",
        )  # fmt: skip
        record = json.loads(capsys.readouterr().out)
        assert record["tokens"] <= 24
        assert record["ttft_ms"] > 0
        return record["texts"]

    assert len(set(texts(1))) == 3
    assert texts(1) == texts(1) != texts(2)


def test_one_token_has_no_rate(text_bundle, capsys):
    run(text_bundle, "--prompt", "Hi", "--max-new-tokens", 1)
    assert capsys.readouterr().err.startswith("1 tokens, TTFT")


def test_a_grid_of_images_is_drawn(image_bundle, tmp_path, capsys):
    run(image_bundle, "--num", 5, "--seed", 3, "-o", tmp_path / "grid.png")
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'grid.png'}\n"
    assert err == "5 images (callable, cpu)\n"
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (28, 18)


def test_the_grid_is_grid_png_of_16_by_default(image_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(image_bundle, "--json")
    assert json.loads(capsys.readouterr().out) == {"output": "grid.png", "images": 16}
    assert (tmp_path / "grid.png").is_file()


def test_images_between_two_latents(image_bundle, tmp_path):
    run(image_bundle, "--interpolate", "--num", 4, "-o", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (18, 18)


def test_pictures_stand_above_their_reconstructions(image_bundle, tmp_path):
    flat = np.repeat(np.repeat(np.array([[0, 51], [102, 255]], np.uint8), 4, 0), 4, 1)
    for name in ("a.png", "b.png"):
        Image.fromarray(flat).save(tmp_path / name)
    pictures = ("--reconstruct", tmp_path / "a.png", "--reconstruct", tmp_path / "b.png")
    run(image_bundle, *pictures, "-o", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (18, 18)
    for top in (0, 10):
        for left in (0, 10):
            np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], flat)


def test_tensors_are_given_drawn_and_stored(tensor_bundle, tmp_path, capsys):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    run(tensor_bundle, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as stored:
        np.testing.assert_array_equal(stored["y"], 2 * x)
    out, err = capsys.readouterr()
    assert re.findall(r"[\w.]+", out.splitlines()[3]) == ["y", "float32", "2x3", "0", "5", "10"]
    assert err == "1 run (callable, cpu)\n"
    run(tensor_bundle, "--batch", 3, "--size", "wide=7", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["output"], row["shape"]) == ("y", "3x7")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("text", ["--num", 3], "--num: .* makes text"),
        ("text", ["--prompt", "Hi", "--num", 0], "--num: "),
        ("text", ["-o", "a.png"], "--output: "),
        ("text", ["--input", "x=y.npy"], "--input: "),
        ("text", [], "no prompt"),
        ("text", ["--prompt", ""], "the prompt is empty"),
        ("text", ["--prompt", "Hi", "--batch", 0], "--batch is 0"),
        ("text", ["--prompt", "Hi", "--batch", -2], "--batch is -2"),
        ("text", ["--prompt", "Hi", "--batch", 10**9], "GB of memory"),
        ("text", ["--prompt", "Hi", "--max-new-tokens", 0], "new_tokens is 0"),
        ("text", ["--prompt", "Hi", "--max-new-tokens", -1], "new_tokens is -1"),
        ("text", ["--prompt", "Hi", "--max-new-tokens", 10**9], "do not fit the model's 64"),
        ("text", ["--prompt", "x" * 70, "--max-new-tokens", 1], "the prompt has 70 tokens"),
        ("text", ["--prompt", "Hi", "--temperature", -1], "temperature is -1.0"),
        ("text", ["--prompt", "Hi", "--temperature", 0, "--top-k", 3], "top_k has no effect"),
        ("text", ["--prompt", "Hi", "--greedy", "--top-k", 3], "--greedy and --top-k contradict"),
        ("text", ["--prompt", "Hi", "--stop", ""], "an empty stop string"),
        ("text", ["--prompt", "Hi", "--chat"], "there is no chat template"),
        ("text", ["--prompt", "Hi", "--seed", -1], "seed is -1"),
        ("text", ["--prompt", "Hi", "--threads", -1], "--threads is -1"),
        ("text", ["--prompt", "Hi", "--provider", "fast"], "--provider fast: not of the form"),
        ("image", ["--prompt", "Hi"], "--prompt: .* makes images"),
        ("image", ["--temperature", 0], "--temperature: .* makes images"),
        ("image", ["--max-new-tokens", 3], "--max-new-tokens: "),
        ("image", ["--num", 0], "num is 0, wanted 1 or more"),
        ("image", ["--num", -3], "num is -3, wanted 1 or more"),
        ("image", ["--num", 10**12], "num 1000000000000 would need about .* GB of memory"),
        ("image", ["--num", 1, "--interpolate"], "needs 2 or more"),
        ("image", ["--num", 2, "--reconstruct", "a.png"], "--num and --reconstruct exclude"),
        ("image", ["--interpolate", "--reconstruct", "a.png"], "--interpolate and --reconstruct"),
        ("tensor", ["--num", 2], "--num: .* makes tensors"),
        ("tensor", ["--input", "x"], "--input x: not of the form"),
        ("tensor", ["--size", "wide=big"], "--size wide=big: not a whole number"),
        ("tensor", ["--size", "wide=0"], "wide is 0"),
        ("tensor", ["--size", "wide=-4"], "wide is -4"),
        ("tensor", ["--size", f"wide={10**12}"], "GB of memory"),
        ("tensor", ["--batch", 0], "batch is 0"),
    ],
)
def test_what_does_not_fit_is_a_usage_error_that_names_the_option(
    request, capsys, kind, arguments, message
):
    bundle = request.getfixturevalue(f"{kind}_bundle")
    with pytest.raises(UsageError, match=message) as error:
        run(bundle, *arguments)
    assert error.value.exit_code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00"])
def test_an_input_that_is_no_array_is_named(tensor_bundle, tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(FormatError, match=r"x.npy: not a .npy array"):
        run(tensor_bundle, "--input", f"x={tmp_path / 'x.npy'}")


def test_an_input_that_is_a_pickle_or_missing_is_refused(tensor_bundle, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object))
    with pytest.raises(FormatError, match=r"x.npy: not a .npy array"):
        run(tensor_bundle, "--input", f"x={tmp_path / 'x.npy'}")
    with pytest.raises(NotFoundError, match=r"y.npy: no such file"):
        run(tensor_bundle, "--input", f"x={tmp_path / 'y.npy'}")


def test_an_input_of_the_wrong_type_is_named_and_nothing_is_written(tensor_bundle, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(MismatchError, match=r"x: wanted float32\[batch, wide\], found float64"):
        run(tensor_bundle, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


SCRIPT = """
import os, signal, sys
sys.argv = ["edgegen", "run", sys.argv[1], "-o", sys.argv[2]]
from edgegen.runtimes import callable
def decoder(feed):
    os.kill(os.getpid(), signal.SIGINT)
    return {"image": feed["latent"].reshape(-1, 1, 2, 2).repeat(4, axis=2).repeat(4, axis=3)}
callable.register("toy-decoder", decoder)
from edgegen.cli import main
main()
"""


@pytest.mark.slow  # a fresh interpreter
def test_ctrl_c_leaves_the_old_output_and_one_line(image_bundle, tmp_path):
    (tmp_path / "grid.png").write_text("old")
    command = [sys.executable, "-c", SCRIPT, image_bundle, tmp_path / "grid.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("error: interrupted")
    assert (tmp_path / "grid.png").read_text() == "old"
    assert list(tmp_path.glob("*partial*")) == []


def test_an_adapter_that_is_not_in_the_bundle_is_refused(text_bundle):
    with pytest.raises(NotFoundError, match="no adapter 'french' in it") as error:
        run(text_bundle, "--prompt", "Hi", "--adapter", "french", *CALLABLE)
    assert "--adapter NAME=FOLDER" in error.value.hint
