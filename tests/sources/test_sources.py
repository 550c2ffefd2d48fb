import sys

import pytest

from edgegen import records, rooms, sources
from edgegen.errors import (
    FormatError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)


def test_the_kind_is_read_from_the_name_and_from_what_lies_there(tmp_path, folder):
    assert sources.kind_of("some/file.py:build") == "module"
    assert sources.kind_of("some/file.py") == "module"
    assert sources.kind_of(str(folder)) == "huggingface"
    for name in ("a.gguf", "b.onnx"):
        (tmp_path / name).touch()
        assert sources.kind_of(str(tmp_path / name)) == name[2:]
    (tmp_path / "config.json").write_text('{"family": "vae", "config": {}}')
    assert sources.kind_of(str(tmp_path)) == "checkpoint"


def test_every_kind_reads_the_same_way():
    for name in rooms.names("edgegen.sources"):
        assert callable(rooms.load("edgegen.sources", name).read)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".tar", ".bin"])
def test_a_pickle_is_refused_and_the_safe_way_is_shown(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.touch()
    with pytest.raises(UnsupportedError, match="can run code") as error:
        sources.open_source(str(path))
    assert f"torch.load('weights{suffix}', weights_only=True)" in error.value.hint
    assert "FILE.py:FUNCTION" in error.value.hint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("model.tflite", "does not read this kind of file", "FILE.gguf"),
        ("model.safetensors", "does not read this kind of file", "give the folder"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, name, message, hint):
    (tmp_path / name).touch()
    with pytest.raises(UnsupportedError, match=message) as error:
        sources.open_source(str(tmp_path / name))
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "hf download HuggingFaceTB/SmolLM2-135M --local-dir"),
        ("./nowhere/model", "check the path"),
    ],
)
def test_nothing_there_is_said_with_a_way_on(source, hint):
    with pytest.raises(NotFoundError, match="no such file or folder") as error:
        sources.open_source(source)
    assert hint in error.value.hint


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        sources.open_source(str(tmp_path))


def test_a_bundle_is_no_source(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="exported already") as error:
        sources.open_source(str(tmp_path))
    assert f"edgegen run {tmp_path}" in error.value.hint


def test_a_config_that_is_not_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json: not a JSON object"):
        sources.open_source(str(tmp_path))


def test_input_and_pixels_belong_to_what_does_not_say_them_itself(folder):
    with pytest.raises(UsageError, match="--input describes a module or an ONNX file"):
        sources.open_source(str(folder), inputs=["x:float32[1]"])
    with pytest.raises(UsageError, match="--pixels describes a module or an ONNX file") as error:
        sources.open_source(str(folder), pixels=(0, 1))
    assert error.value.hint.startswith("leave it out")


def test_a_missing_extra_is_a_pip_command(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "edgegen.sources.gguf", raising=False)
    with pytest.raises(MissingExtraError, match="gguf needs gguf") as error:
        sources.open_source(str(tmp_path / "a.gguf"))
    assert error.value.hint == "run: pip install 'edgegen[gguf]'"


def test_side_files_are_json(folder):
    files = sources.open_source(str(folder)).files
    for name, data in files.items():
        assert records.decode(dict, data, name)
