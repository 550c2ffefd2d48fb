"""`edgegen compare`."""

import json
import os
import subprocess
import sys

import pytest

from edgegen import records
from edgegen.cli import app
from edgegen.errors import FormatError, GateError, NotComparableError, NotFoundError, UsageError
from edgegen.spec import Request


@pytest.fixture
def compare():
    """The command, run in this process; an error comes through as it was raised."""

    def run(*args):
        app(["compare", *map(str, args)], standalone_mode=False)

    return run


@pytest.fixture
def files(make_profile, tmp_path):
    """Three profiles: one, the same again, and one twice as fast."""
    made = make_profile(), make_profile(1), make_profile(2, scale_ms=5.0, engine="openvino")
    for name, profile in zip("abc", made, strict=True):
        records.write(profile, tmp_path / f"{name}.json")
    return [tmp_path / f"{name}.json" for name in "abc"]


def test_the_table_says_what_is_faster_and_what_is_not(compare, files, capsys):
    compare(*files)
    out, err = capsys.readouterr()
    assert "no difference detectable" in out
    assert "x faster" in out
    assert "not measured in turns" in err


def test_a_folder_stands_for_the_profiles_in_it(compare, files, capsys):
    compare(files[0].parent, "--json")
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3


def test_json_is_the_comparison(compare, files, capsys):
    compare(*files, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["rows"][2]["ratios"]["p50"]["verdict"] == "faster"


def test_markdown_goes_to_stdout(compare, files, capsys):
    compare(*files, "--markdown")
    out = capsys.readouterr().out
    assert out.startswith("### vae\n\n**toy fp32 openvino cpu is ")
    assert "\n\n|  | run ms |" in out


def test_a_missed_gate_is_raised_after_the_table(compare, files, capsys):
    with pytest.raises(GateError, match="p50<=-10% by toy fp32 onnxruntime cpu #2"):
        compare(*files, "--gate", "p50<=-10%")
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert "met" in out


def test_a_missed_gate_ends_with_4(files):
    command = [sys.executable, "-m", "edgegen", "compare", *files, "--gate", "size<=1MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "error: 2 of 2 gates missed: size<=1MB" in done.stderr


def test_gates_that_are_met_pass(compare, files, capsys):
    compare(*files, "--gate", "p50<=+50%", "--gate", "peak_rss<=1GB")
    out = capsys.readouterr().out
    assert "met" in out
    assert "MISSED" not in out


def test_a_report_is_written(compare, files, tmp_path, capsys):
    pytest.importorskip("vl_convert", reason="needs the report extra")
    (tmp_path / "sheet.md").write_text("### 1\n\n> once upon a time\n")
    compare(*files, "--html", tmp_path / "report.html", "--sheet", tmp_path / "sheet.md")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>VAE" in page
    assert "once upon a time" in page
    assert f"wrote {tmp_path / 'report.html'}" in capsys.readouterr().err


def test_a_report_without_its_extra_says_what_to_install(files, tmp_path):
    code = "import sys; sys.modules['altair'] = None; from edgegen.cli import main; main()"
    command = [sys.executable, "-c", code, "compare", *files, "--html", tmp_path / "report.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "error: the report needs altair\nhint:  run: pip install 'edgegen[report]'" in done.stderr
    )
    assert not (tmp_path / "report.html").exists()


def test_a_sheet_without_a_report_is_refused(compare, files, tmp_path):
    with pytest.raises(UsageError, match="--sheet goes into the report") as error:
        compare(*files, "--sheet", tmp_path / "sheet.png")
    assert error.value.hint == "say where to: --html FILE"


@pytest.mark.parametrize(("encoding", "plain"), [("utf-8", False), ("ascii", True)])
def test_the_samples_are_drawn_in_ascii_where_nothing_else_can_be_written(files, encoding, plain):
    command = [sys.executable, "-m", "edgegen", "compare", *files]
    drawn = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    ).stdout.decode(encoding)
    assert "n=20" in drawn
    assert drawn.isascii() == plain


def test_two_things_for_stdout_are_refused(compare, files):
    with pytest.raises(UsageError, match="--markdown and --json both"):
        compare(*files, "--markdown", "--json")


def test_a_folder_without_profiles_says_how_to_make_some(compare, tmp_path):
    with pytest.raises(UsageError, match="no profiles in") as error:
        compare(tmp_path)
    assert "edgegen profile BUNDLE" in error.value.hint


def test_a_bundle_is_not_mistaken_for_a_folder_of_profiles(compare, image_bundle):
    with pytest.raises(UsageError, match="is a bundle, not a profile") as error:
        compare(image_bundle)
    assert f"edgegen profile {image_bundle}" in error.value.hint


def test_json_of_another_kind_says_how_a_profile_is_made(compare, files):
    files[1].write_text("{}")
    with pytest.raises(FormatError, match=r"b\.json: .*schema_version") as error:
        compare(*files)
    assert error.value.hint == "make a profile: edgegen profile BUNDLE -o FILE"


def test_an_empty_budget_is_not_passed_over(compare, files):
    with pytest.raises(UsageError, match="--best '' is not understood"):
        compare(*files, "--best", "")


def test_a_figure_that_was_never_taken_says_how_it_is(compare, files):
    with pytest.raises(UsageError, match=r"has no quality\.kid") as error:
        compare(*files, "--gate", "quality.kid<=+2%")
    assert "edgegen eval toy --data DATA --save" in error.value.hint


def test_a_broken_file_is_named(compare, files):
    files[1].write_text("{")
    with pytest.raises(FormatError, match=r"b\.json: not valid JSON"):
        compare(*files)


def test_a_newer_file_is_refused(compare, files):
    files[1].write_text('{"schema_version": 2}')
    with pytest.raises(FormatError, match=r"b\.json: schema_version 2, this EdgeGen reads up to 1"):
        compare(*files)


def test_a_file_that_is_not_there_is_named(compare, tmp_path):
    with pytest.raises(NotFoundError, match=r"x\.json: no such file"):
        compare(tmp_path / "x.json")


def test_unlike_requests_are_refused_with_the_fix(compare, files, make_profile):
    records.write(make_profile(request=Request(batch=8)), files[1])
    with pytest.raises(NotComparableError, match=r"ran batch=8, .* ran batch=1") as error:
        compare(*files)
    assert error.value.hint == "profile both with the same --batch"


@pytest.mark.parametrize(
    ("gate", "hint"),
    [("p50<5", "write METRIC<=+5%"), ("ttf<=+5%", "did you mean 'ttft'?")],
)
def test_a_bad_gate_is_a_usage_error_with_the_fix(compare, files, gate, hint):
    with pytest.raises(UsageError, match=gate.partition("<")[0]) as error:
        compare(*files, "--gate", gate)
    assert error.value.hint.startswith(hint)


def test_the_verdict_stands_first_and_the_samples_are_drawn(compare, files, capsys):
    compare(*files)
    out = capsys.readouterr().out
    assert out.startswith("toy fp32 openvino cpu is ")
    assert "n=20" in out
    assert "\x1b" not in out


def test_the_best_is_named_and_nothing_that_fits_ends_with_4(compare, files, capsys):
    compare(*files, "--best", "p50<=20ms, rss<=200MB")
    assert "pick toy (fp32) with openvino on cpu: " in capsys.readouterr().out
    with pytest.raises(GateError, match="nothing fits 'p50<=1ms'") as error:
        compare(*files, "--best", "p50<=1ms")
    assert error.value.exit_code == 4


def test_junit_and_markdown_are_written_before_a_missed_gate_ends_it(compare, files, tmp_path):
    with pytest.raises(GateError):
        compare(
            *files, "--gate", "size<=1MB",
            "--junit", tmp_path / "gates.xml", "--markdown-file", tmp_path / "gates.md",
        )  # fmt: skip
    assert 'failures="2"' in (tmp_path / "gates.xml").read_text()
    assert "MISSED" in (tmp_path / "gates.md").read_text()


def test_junit_without_a_gate_is_refused_at_once(compare, files, tmp_path):
    with pytest.raises(UsageError, match="--junit has nothing to report"):
        compare(*files, "--junit", tmp_path / "x.xml")


def test_an_empty_folder_among_others_is_named(compare, files, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"no profiles in .*none"):
        compare(files[0], tmp_path / "none")


def test_an_empty_file_is_named(compare, files):
    files[0].write_text("")
    with pytest.raises(FormatError, match=r"a\.json: not valid JSON"):
        compare(*files)


def test_one_measurement_is_not_put_against_itself(compare, files, tmp_path):
    again = tmp_path / "again.json"
    again.write_bytes(files[0].read_bytes())
    with pytest.raises(UsageError, match=r"again\.json: the same measurement as") as error:
        compare(*files, again)
    assert "edgegen profile B B" in error.value.hint
