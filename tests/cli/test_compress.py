import json
import sys
from pathlib import Path

import pytest

from edgegen import checkpoint
from edgegen.cli import main

METHODS = Path(__file__).parent.parent / "compress" / "methods"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `edgegen ...` with the methods of the tests: (exit code, stdout, stderr)."""
    compress = pytest.importorskip("edgegen.compress", reason="compression needs torch")
    monkeypatch.setattr(compress, "__path__", [*compress.__path__, str(METHODS)])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgegen", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture
def slim(command, tiny_checkpoint, tmp_path):
    """`edgegen compress` of a tiny text model by `slim`, not measured."""

    def run(*arguments, output="out"):
        source, output = tiny_checkpoint("gpt"), tmp_path / output
        return command("compress", source, "--method", "slim", "-o", output, *arguments)

    return run


def test_a_method_alone_with_its_options(slim, tmp_path):
    code, out, err = slim("--set", "ratio=0.25", "--no-measure")
    assert code == 0, err
    assert "slim ratio=0.25" in out and "not measured" in out and "step 1: slim" in err
    assert checkpoint.load(tmp_path / "out").spec.config["intermediate_size"] == 36


def test_json_is_all_there_is_on_stdout(slim):
    code, out, err = slim("--no-measure", "--json", "--quiet")
    (entry,) = json.loads(out)
    assert (code, err, entry["kind"]) == (0, "", "slim")
    assert entry["notes"] == {"hidden": [48, 24]}


def test_a_recipe_from_a_file(command, tiny_checkpoint, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[steps]]\nkind = "slim"\n[[steps]]\nkind = "slim"\noptions = {ratio = 0.25}\n'
    )
    source = tiny_checkpoint("gpt")
    code, out, _ = command("compress", source, "-r", path, "-o", tmp_path / "o", "--no-measure")
    assert code == 0 and out.count("slim") == 2


def test_inspect_prints_the_steps_as_one_table(slim, command, tmp_path):
    slim("--no-measure")
    code, out, _ = command("inspect", tmp_path / "out")
    assert code == 0
    assert "compression" in out and "run with --no-measure" in out
    assert "step 1, slim: hidden: [48, 24]" in out


def test_quantization_aware_training_alone(command, tiny_checkpoint, tmp_path):
    quick = "--set", "steps=2", "--set", "batch=2", "--set", "samples=2", "--no-measure"
    source = tiny_checkpoint("vae")
    code, out, err = command("compress", source, "--qat", "w8a8", *quick, "-o", tmp_path / "o")
    assert code == 0, err
    assert "qat" in out and "qat (2)" in err
    assert {s.input_bits for s in checkpoint.load(tmp_path / "o").spec.layers.values()} == {8}


@pytest.mark.slow
def test_a_refused_step_shows_its_numbers_and_exits_with_4(slim, tmp_path):
    tight = "--faster", "99%", "--smaller", "90%", "--repeats", "1", "--rounds", "1"
    code, out, err = slim(*tight)
    assert code == 4
    assert "refused" in out and "->" in out and "measured on onnxruntime" in out
    assert "error: step 1, slim, is refused: neither faster" in err
    assert "hint:" in err and "--keep-anyway" in err
    code, out, err = slim(*tight, "--resume", "--keep-anyway", "--json")
    (entry,) = json.loads(out)
    assert (code, entry["verdict"]["outcome"]) == (0, "kept anyway")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((), "one recipe or one method is wanted, found none", "shipped: any-int8"),
        (("--prune", "0.5", "--quantize", "int8"), "found --prune, --quantize", "into a recipe"),
        (("-r", "gpt-int"), "no recipe of that name", "did you mean 'gpt-int4'?"),
        (("-r", "gpt-int4", "--set", "bits=3"), "is for one method alone", "edit the recipe"),
        (("--method", "slim", "--set", "ratio"), "--set ratio: wanted KEY=VALUE", "ratio=0.5"),
        (("--method", "slim", "--set", "ration=1"), "unknown field `ration`", "mean 'ratio'?"),
        (("--method", "slim", "--budget", "kid"), "--budget kid: wanted FIGURE", "FIGURE<=12"),
        (("--method", "slim", "--budget", "kid<=1"), "a budget for kid, and no data", "--data"),
        (("--method", "slim", "--faster", "soon"), "faster = 'soon' is no percentage", "5%"),
        (("--method", "slim", "--rounds", "9", "--repeats", "2"), "rounds is 9", "one repeat"),
        (("--qat", "int44"), "--qat int44", "mean 'int4'?"),
        (("--quantize", "int99"), "--quantize int99", "mean 'int8'?"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(
    command, tiny_checkpoint, tmp_path, arguments, message, hint
):
    code, out, err = command("compress", tiny_checkpoint("gpt"), "-o", tmp_path / "o", *arguments)
    assert (code in (1, 2), out) == (True, ""), err
    assert message in err and hint in err.replace("\n", " ")


def test_values_of_set_are_toml_where_they_can_be():
    from edgegen.cli.compress import _bound, _setting

    assert _setting('layers=["a.*", "b"]') == ("layers", ["a.*", "b"])
    assert _setting("quality=+3%") == ("quality", "+3%")
    assert _setting("bits=4") == ("bits", 4)
    assert _bound("perplexity=+3%") == ("perplexity", "+3%")
    assert _bound("psnr_db>=25") == ("psnr_db", ">=25")
