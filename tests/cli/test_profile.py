"""`edgegen profile`."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from edgegen import peaks, records
from edgegen import profile as profiles_on_disk
from edgegen.cli import app
from edgegen.devices import cpu
from edgegen.errors import EdgeGenError, NotFoundError, UnsupportedError, UsageError
from edgegen.roofs import Bandwidth, Peak, Peaks

COMMAND = [sys.executable, "-m", "edgegen", "profile"]


@pytest.fixture
def profile():
    """The command, run in this process; an error comes through as it was raised."""

    def run(*args):
        app(["profile", *map(str, args)], standalone_mode=False)

    return run


@pytest.fixture
def engine():
    return pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")


@pytest.mark.slow
def test_a_profile_is_printed_and_written(profile, engine, onnx_bundle, tmp_path, capsys):
    file = tmp_path / "p.json"
    profile(onnx_bundle, "--repeats", 11, "--warmup", 1, "--threads", 1, "-o", file)
    out, err = capsys.readouterr()
    for expected in ("run ms", "images/s", "peak RSS MB", "MatMul", "share of time"):
        assert expected in out
    assert "run time\ntoy-onnx" in out
    assert "n=11" in out
    for expected in (f"wrote {file}", "few samples: 11", "toy-onnx onnxruntime cpu (12)"):
        assert expected in err
    found = profiles_on_disk.read(file)
    assert (found.repeats, found.warmup, found.threads) == (11, 1, 1)


@pytest.mark.slow
def test_json_on_stdout_is_the_profile_and_nothing_else(profile, engine, onnx_bundle, capsys):
    profile(onnx_bundle, "--repeats", 2, "--batch", 2, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["request"]["batch"] == 2
    assert err == ""


@pytest.mark.slow
def test_several_are_measured_in_turns_into_a_folder(
    profile, engine, onnx_bundle, tmp_path, capsys
):
    other = tmp_path / "other"
    other.symlink_to(onnx_bundle)
    profile(other, onnx_bundle, "--runtime", "onnxruntime", "--repeats", 5, "-o", tmp_path / "p")
    found = sorted((tmp_path / "p").iterdir())
    assert [file.name for file in found] == [
        "other-onnxruntime-cpu.json",
        "toy-onnx-onnxruntime-cpu.json",
    ]
    out, err = capsys.readouterr()
    assert "the first" in out
    assert "n=5" in out
    assert "on the Pareto front of" in err
    one, two = map(profiles_on_disk.read, found)
    assert one.block == two.block != ""
    assert one.rounds == two.rounds == 5


@pytest.mark.slow
def test_alone_each_is_written_as_it_comes_and_only_what_is_missing_again(
    profile, engine, onnx_bundle, tmp_path, capsys
):
    args = ["--device", "cpu", "--no-interleave", "--repeats", 1, "-q", "-o", tmp_path / "p.json"]
    profile(onnx_bundle, *args)
    before = (tmp_path / "p.json").stat().st_mtime_ns
    profile(onnx_bundle, *args, "--resume")
    assert "1 of 1 profiles are there already" in capsys.readouterr().err
    assert (tmp_path / "p.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["--repeats", "0"], "--repeats is 0", "give a number from 1 to 1000000"),
        (["--repeats", "-5"], "--repeats is -5", "give a number from 1"),
        (["--batch", "99999999999"], "--batch is 99999999999", "give a number from 1"),
        (["--threads", "-1"], "--threads is -1", "give a number from 0"),
        (["--timeout", "0"], "--timeout is 0", "give a number from 0.1"),
        (["--prompt-tokens", "8"], "--prompt-tokens 8: .* is no text model", "leave"),
        (["--size", "width"], "--size 'width'", "write it as --size NAME=VALUE"),
        (["--size", "width=x"], "--size width=x: not a whole number", ""),
        (["--size", "width=4"], "no free dimension 'width'", "have: none"),
        (["--interleave"], "--interleave: one alone takes no turns", "give several bundles"),
        (["--resume"], "--resume looks at what is in -o", "give -o DIR"),
        (["--fleet", "tls://pi5"], "--fleet: no device is named", "give --device all, or some of"),
        (["--fleet", "pi5"], "'pi5' is no address of a hub", "write it as tls://HOST:8786"),
        (["--fleet", "tcp://pi5"], "neither encrypted nor authenticated", "edgegen devices keys"),
        (["--provider", "=4"], "--provider '=4'", "write it as --provider NAME=VALUE"),
        (["--rounds", "21"], "--rounds is 21, --repeats is 20", "one repeat for each round"),
    ],
)
def test_a_bad_number_is_named_with_its_fix(profile, image_bundle, args, said, hint):
    with pytest.raises(UsageError, match=said) as error:
        profile(image_bundle, *args)
    assert hint in error.value.hint
    assert error.value.exit_code == 2


def test_an_unknown_engine_gets_a_did_you_mean(profile, image_bundle):
    with pytest.raises(NotFoundError, match=r"no 'openvno' in edgegen\.runtimes") as error:
        profile(image_bundle, "--runtime", "openvno")
    assert error.value.hint == "did you mean 'openvino'?"


@pytest.mark.slow
def test_an_unknown_device_is_two_lines_and_no_file(engine, onnx_bundle, tmp_path):
    args = [onnx_bundle, "-d", "cpuu", "-o", tmp_path / "p.json", "-q"]
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no device 'cpuu'" in done.stderr
    assert done.stderr.endswith("hint:  did you mean 'cpu'?\n")
    assert not (tmp_path / "p.json").exists()


def test_several_profiles_do_not_fit_into_a_file(profile, image_bundle, tmp_path):
    (tmp_path / "p.json").write_text("old")
    with pytest.raises(UsageError, match="is a file, but there are 2 profiles"):
        profile(image_bundle, image_bundle, "-o", tmp_path / "p.json")
    with pytest.raises(UsageError, match="is a file, but there are 2 profiles"):
        profile(image_bundle, image_bundle, "-o", tmp_path / "new.json")
    (tmp_path / "in").mkdir()
    namesake = tmp_path / "in" / image_bundle.name
    namesake.symlink_to(image_bundle)
    with pytest.raises(UsageError, match="two profiles would be"):
        profile(image_bundle, namesake, "-o", tmp_path / "new")


def test_a_place_nothing_can_be_written_to_is_refused_before_the_work(profile, image_bundle):
    with pytest.raises(UsageError, match="/dev/null: neither a file nor a folder"):
        profile(image_bundle, "-o", "/dev/null")


@pytest.mark.slow
def test_a_failed_run_leaves_the_old_profile_whole(profile, image_bundle, tmp_path):
    (tmp_path / "p.json").write_text("old")
    with pytest.raises(EdgeGenError, match="no function 'toy-decoder'"):  # of another process
        profile(image_bundle, "--runtime", "callable", "-o", tmp_path / "p.json")
    assert (tmp_path / "p.json").read_text() == "old"


@pytest.mark.slow
def test_ctrl_c_leaves_the_old_profile_whole_and_no_process_behind(engine, onnx_bundle, tmp_path):
    (tmp_path / "p.json").write_text("old")
    args = [str(onnx_bundle), "--repeats", "1000000", "-o", str(tmp_path / "p.json")]
    with subprocess.Popen(
        [*COMMAND, *args], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert "toy-onnx" in process.stderr.readline()  # the measurement has begun
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest == "error: interrupted; nothing was changed under the output's name\n"
    assert (tmp_path / "p.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "toy-onnx"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


PEAKS = Peaks(
    "cpu", "a processor", 1, "2026-11-21T00:00:00+00:00",
    (Peak("fp32", 100.0, "numpy 2"),), (Bandwidth("DRAM", 10.0, 4096, 0, "numpy 2"),),
)  # fmt: skip


@pytest.mark.slow
def test_a_roofline_says_why_it_is_slow(
    profile, engine, onnx_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = peaks._key(cpu.probe()[0], 1, peaks.SIZE)
    records.write(PEAKS, tmp_path / "edgegen" / "peaks" / f"{key}.json")
    file = tmp_path / "p.json"
    profile(onnx_bundle, "--roofline", "--repeats", 2, "--threads", 1, "-o", file)
    out, err = capsys.readouterr()
    assert "roofline of toy-onnx onnxruntime cpu" in out
    assert "run: bound by overhead" in out and "MatMul" in out
    assert "predicted share of the time of run: int8 " in err
    assert "DRAM 10.0 GB/s (edgegen devices --measure)" in err
    assert profiles_on_disk.read(file).roofline.peaks == PEAKS


def test_a_roofline_of_a_gpu_is_refused_before_anything_runs(profile, onnx_bundle):
    with pytest.raises(UnsupportedError, match="measured of the CPU only"):
        profile(onnx_bundle, "--roofline", "-d", "gpu")


@pytest.mark.slow
def test_modelled_energy_is_called_so(profile, engine, onnx_bundle, capsys):
    profile(onnx_bundle, "--watts", 15, "--repeats", 2)
    err = capsys.readouterr().err
    assert re.search("energy: .*modelled by 15 W .given.", err)  # or too short for that


def test_senseless_watts_are_refused(profile, onnx_bundle):
    with pytest.raises(UsageError, match="--watts is -1"):
        profile(onnx_bundle, "--watts", -1)
