"""Fresh processes: the whole way with a real engine, and every way one can end."""

import io
import signal
import subprocess
import sys

import msgspec
import pytest

from edgegen import bootstrap, measure
from edgegen.errors import EdgeGenError, FormatError, NotFoundError, UsageError
from edgegen.measure import Done, Failure, Progress


def lines(data):
    return [msgspec.json.decode(line, type=measure.Line) for line in data.splitlines()]


def serve(job):
    out = io.BytesIO()
    code = measure._serve(io.BytesIO(msgspec.json.encode(job)), out)
    return code, lines(out.getvalue())


def test_the_process_says_its_progress_and_at_last_the_profile(image_bundle):
    job = measure.job(image_bundle, runtime="callable", warmup=1, repeats=2)
    code, said = serve(job)
    assert code == 0
    assert said[0] == Progress("toy-vae callable cpu", 0, 3)
    assert isinstance(said[-1], Done)
    assert said[-1].profile.repeats == 2


def test_the_process_says_the_error_with_its_kind_and_hint(image_bundle):
    (image_bundle / "decoder/model.callable").write_text("{}")
    code, said = serve(measure.job(image_bundle, runtime="callable"))
    assert code == 1
    (failure,) = said
    assert isinstance(failure, Failure)
    assert failure.kind == "FormatError"
    assert "altered or truncated" in failure.message


@pytest.mark.slow
def test_a_real_engine_is_measured_in_its_own_process(onnx_bundle):
    pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    said = []
    found = measure.profile(
        onnx_bundle, warmup=1, repeats=12, report=lambda *line: said.append(line)
    )
    assert (found.engine, found.format, found.repeats, found.rounds) == (
        "onnxruntime",
        "onnx",
        12,
        1,
    )
    assert len(found.first_ms) == 12
    assert min(found.first_ms) > 0
    assert {o.kind for o in found.operators} >= {"MatMul"}
    assert found.quality == {"elbo_nats": 31.5}
    assert found.flags[0] == "few samples: 12; p90 needs 64, p99 needs 662"
    assert said[-1] == ("operators", 1, 1)


@pytest.mark.slow
def test_several_take_turns_in_one_block(onnx_bundle):
    pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    said = []
    jobs = [measure.job(onnx_bundle, threads=n, warmup=0, repeats=11) for n in (1, 2)]
    one, two = measure.interleave(jobs, rounds=5, report=lambda *line: said.append(line[0]))
    assert one.block == two.block != ""
    assert (one.rounds, one.repeats, len(one.first_ms)) == (5, 11, 11)
    assert (one.threads, two.threads) == (1, 2)
    assert bootstrap.paired(one, two)
    assert one.operators and two.operators
    turns = [what.partition(":")[0] for what in dict.fromkeys(said) if "operators" not in what]
    assert turns == [f"round {n} of 5" for n in range(1, 6)]


@pytest.mark.slow
def test_what_the_process_refuses_is_raised_here_as_it_was(onnx_bundle):
    pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    with pytest.raises(NotFoundError, match="has no device 'cpuu'") as error:
        measure.profile(onnx_bundle, device="cpuu")
    assert error.value.hint == "did you mean 'cpu'?"
    (onnx_bundle / "decoder/model.onnx").write_bytes(b"\x08")
    with pytest.raises(FormatError, match="altered or truncated"):
        measure.profile(onnx_bundle)


@pytest.mark.slow
def test_a_hang_is_called_a_time_out(onnx_bundle):
    with pytest.raises(EdgeGenError, match=r"time-out, not done after 0\.01 s") as error:
        measure.profile(onnx_bundle, timeout_s=0.01)
    assert "--timeout" in error.value.hint


def ended(code, stderr=b""):
    job = measure.Job("b", "onnxruntime", "cpu", measure.Request(), measure.Options(), 1, 1)
    return measure._error(job, Progress("x", 1, 2), code, 0, io.BytesIO(stderr))


def test_a_crash_is_called_by_its_signal():
    killed, crashed = ended(-signal.SIGKILL), ended(-signal.SIGSEGV)
    assert str(killed) == "b on onnxruntime cpu: the measuring process was ended by SIGKILL"
    assert "memory" in killed.hint
    assert "SIGSEGV" in str(crashed)


def test_an_unforeseen_end_shows_the_last_line_of_the_process():
    assert "exit code 1: ValueError: odd" in str(ended(1, b"Traceback\nValueError: odd\n"))
    assert "exit code 1: it said nothing" in str(ended(1))


def test_the_time_out_says_how_far_it_came():
    job = measure.Job("b", None, "cpu", measure.Request(), measure.Options(), 1, 1)
    error = measure._error(job, Progress("toy", 3, 20), -9, 5, io.BytesIO())
    assert (
        str(error) == "b on its engine cpu: time-out, not done after 5 s; it had come to: toy 3/20"
    )


@pytest.mark.parametrize("rounds", [0, -1, 21])
def test_every_round_needs_a_repeat(image_bundle, rounds):
    job = measure.job(image_bundle, runtime="callable")
    with pytest.raises(UsageError, match=f"--rounds is {rounds}, --repeats is 20"):
        measure.interleave([job], rounds=rounds)


def test_no_repeats_are_a_usage_error(image_bundle):
    with pytest.raises(UsageError, match="--repeats is 0"):
        measure.profile(image_bundle, repeats=0)


def test_the_repeats_are_shared_out_without_loss(image_bundle):
    job = measure.job(image_bundle, repeats=11)
    shares = [measure._share(job, turn, 3) for turn in range(3)]
    assert [(s.first, s.repeats) for s in shares] == [(0, 4), (4, 4), (8, 3)]
    assert [s.operators for s in shares] == [False, False, True]


def test_rounds_are_joined_in_order(make_profile):
    parts = [
        make_profile(n, repeats=2, load_ms=load, peak_rss_mb=peak)
        for n, (load, peak) in enumerate([(30.0, 5.0), (10.0, 9.0), (20.0, None)])
    ]
    whole = measure._join(parts, "block")
    assert whole.first_ms == tuple(ms for part in parts for ms in part.first_ms)
    assert (whole.repeats, whole.rounds, whole.block) == (6, 3, "block")
    assert (whole.load_ms, whole.peak_rss_mb) == (20.0, 9.0)


@pytest.mark.slow
def test_the_process_needs_no_torch_and_takes_nothing_from_the_working_directory(
    onnx_bundle, tmp_path, monkeypatch
):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not numpy')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    pytest.importorskip("onnxruntime", reason="needs the onnxruntime extra")
    assert measure.profile(onnx_bundle, warmup=0, repeats=1).repeats == 1


def test_a_job_that_makes_no_sense_ends_the_process_with_a_cause():
    done = subprocess.run(
        [sys.executable, "-m", "edgegen.measure"], input=b"{}", capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"ValidationError" in done.stderr


def test_energy_of_rounds_is_their_mean_and_none_where_one_has_none(make_profile):
    parts = [
        make_profile(repeats=1, energy_j=2.0, energy_source="measured by a test"),
        make_profile(repeats=3, energy_j=4.0, energy_source="measured by a test"),
    ]
    assert measure._join(parts, "").energy_j == 3.5
    short = make_profile(repeats=3, energy_source="not measured: too short")
    found = measure._join([*parts, short], "")
    assert (found.energy_j, found.energy_source) == (None, "not measured: too short")


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_refused_with_what_is(onnx_bundle):
    engine = pytest.importorskip("edgegen.runtimes.onnxruntime", reason="needs onnxruntime")
    if "gpu" in engine.devices():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NotFoundError, match="device 'gpu'; its providers: ") as error:
        measure.profile(onnx_bundle, runtime="onnxruntime", device="gpu")
    assert "use --device cpu" in error.value.hint
