"""`edgegen export` from the command line."""

import json

import pytest

from edgegen.cli import main

FILE = """import torch


def flat():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


class Branch(torch.nn.Module):
    def forward(self, input):
        return input if input.sum() > 0 else -input
"""


@pytest.fixture
def edgegen(monkeypatch, capsys, tmp_path):
    """Run the command line on the user's file; (exit code, stdout, stderr)."""
    (tmp_path / "mine.py").write_text(FILE)

    def run(source, *args):
        place = f"{tmp_path / 'mine.py'}:{source}"
        command = ["export", place, "-o", tmp_path / "out", *args]
        monkeypatch.setattr("sys.argv", ["edgegen", *map(str, command)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


INPUT = ("--input", "input:float32[batch,32]", "--to", "onnx")


@pytest.mark.slow
def test_two_precisions_are_two_bundles_and_two_tables(edgegen, tmp_path):
    code, out, err = edgegen("flat", *INPUT, "--precision", "fp32,int8")
    assert code == 0, err
    assert (tmp_path / "out-fp32/manifest.json").is_file()
    assert (tmp_path / "out-int8/manifest.json").is_file()
    assert out.count("SQNR dB") == 2
    assert "2 fp32" in out
    assert "2 int8" in out
    assert "note: onnx model: weight-only int8, group size 32" in err
    assert err.count("peak memory ") == 2


@pytest.mark.slow
def test_json_on_stdout_is_the_manifest_alone(edgegen):
    code, out, err = edgegen("flat", *INPUT, "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)["precision"] == "fp32"


@pytest.mark.slow
def test_fixed_shapes_are_written_as_fixed(edgegen):
    code, out, _ = edgegen("flat", *INPUT, "--json", "-q", "--static", "batch=1")
    assert code == 0
    assert json.loads(out)["graphs"][0]["inputs"][0]["shape"] == [1, 32]


@pytest.mark.slow
def test_a_module_that_cannot_be_exported_is_two_lines_with_the_place(edgegen, tmp_path):
    code, out, err = edgegen("Branch", *INPUT, "-q")
    assert (code, out) == (1, "")
    assert err.startswith("error: onnx: graph model cannot be exported: ")
    assert f"{tmp_path / 'mine.py'}:11" in err
    assert "\nhint:  rewrite that line" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--precision", "int88"), ("no precision 'int88'", "did you mean 'int8'?")),
        (("--precision", ""), ("no precision to export at", "pass --precision")),
        (("--to", "onx"), ("no format 'onx'", "did you mean 'onnx'?")),
        (("--group-size", "24"), ("group size 24", "take a power of two from 16")),
        (("--static", "x"), ("--static 'x' is not NAME=SIZE,...", "--static batch=1,seq=256")),
        (("--static", "batch=many"), ("is not NAME=SIZE,...", "--static batch=1,seq=256")),
        (("--static", "bacth=1"), ("bacth: no graph has it free", "did you mean 'batch'?")),
        (("--static", "batch=0"), ("--static batch=0: wanted 1 to",)),
        (("--pixels", "1"), ("--pixels '1' is not LOW,HIGH", "--pixels=-1,1")),
        (("--input", "text"), ("text",)),
    ],
)
def test_a_bad_option_is_an_error_with_its_fix(edgegen, tmp_path, args, told):
    given = () if args[0] == "--input" else INPUT
    code, out, err = edgegen("flat", *given, *args, "-q")
    assert code in (1, 2)
    assert out == ""
    for words in told:
        assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_adapters_are_given_as_name_and_folder(edgegen, tmp_path):
    import torch

    from edgegen.adapter_files import save_peft
    from edgegen.adapters import attach

    net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    attach(net, {"0": 2})
    save_peft(net, tmp_path / "a")
    code, out, err = edgegen("flat", *INPUT, "--adapter", f"a={tmp_path / 'a'}", "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)["adapters"] == {"base": "adapters/base.npz", "a": "adapters/a.npz"}
    given = ("--adapter", f"a={tmp_path / 'a'}", "--merge")
    code, out, err = edgegen("flat", *INPUT, *given, "--json", "-q")
    assert code == 0, err
    assert json.loads(out)["adapters"] == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("french",), "--adapter french: not NAME=FOLDER"),
        (("=there",), "--adapter =there: not NAME=FOLDER"),
        (("a=x", "a=y"), "--adapter a: twice"),
    ],
)
def test_an_adapter_without_a_name_or_folder_is_refused(edgegen, given, said):
    flags = [part for text in given for part in ("--adapter", text)]
    code, _, err = edgegen("flat", *INPUT, *flags)
    assert code == 2
    assert said in err
    assert "hint" in err
