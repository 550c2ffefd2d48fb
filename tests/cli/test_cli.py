"""The command line as a whole: it starts light, and ends as promised."""

import errno
import os
import subprocess
import sys

import pytest

import edgegen
from edgegen import cli
from edgegen.errors import FallbackError, FormatError, GateError, NotFoundError, ParityError

HEAVY = {
    *("torch", "onnxruntime", "openvino", "transformers", "onnx", "tokenizers", "altair"),
    *("numpy", "rich"),
}


def run(*args, code="from edgegen.cli import main; main()", **env):
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_every_command_is_in_the_help():
    done = run("--help")
    assert done.returncode == 0
    for command in cli.COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_and_all_its_options(command):
    done = run(command, "--help", NO_COLOR="1", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert f"edgegen {command}" in done.stdout.replace("-c ", "edgegen ")
    assert "Not there yet" not in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["export", "--help"]])
def test_help_loads_no_engine_and_no_torch(args):
    look = f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    code = f"import atexit, sys; atexit.register(lambda: {look})\n"
    code += "from edgegen.cli import main; main()"
    done = run(*args, code=code)
    assert done.returncode == 0
    assert done.stderr == "[]\n"


def test_the_version_is_printed_alone():
    assert run("--version").stdout == f"{edgegen.__version__}\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "edgegen", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{edgegen.__version__}\n"


def test_an_unknown_command_or_option_is_a_usage_error():
    assert run("exprot").returncode == 2
    assert run("inspect", "--nonsense").returncode == 2


FAILING = """
import sys
from edgegen import errors
from edgegen.cli import app, main

@app.command()
def fail():
    {}

sys.argv = ["edgegen", "fail"]
main()
"""


@pytest.mark.parametrize("kind", [FormatError, ParityError, GateError, FallbackError])
def test_an_error_is_two_lines_on_stderr_and_its_exit_code(kind):
    done = run(code=FAILING.format(f"raise errors.{kind.__name__}('the fault', 'the fix')"))
    assert done.returncode == kind.exit_code
    assert done.stdout == ""
    assert done.stderr == "error: the fault\nhint:  the fix\n"


def test_the_traceback_is_there_for_who_wants_it():
    code = FAILING.format("raise errors.FormatError('the fault')")
    assert "Traceback" not in run(code=code).stderr
    assert "Traceback" in run(code=code, EDGEGEN_TRACEBACK="1").stderr


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space or write elsewhere"),
        (errno.EACCES, "look at what this path is and who may use it, or give another"),
        (errno.ENOTDIR, "look at what this path is and who may use it, or give another"),
    ],
)
def test_what_the_disk_refuses_is_one_line_with_the_place(number, fix):
    done = run(code=FAILING.format(f"raise OSError({number}, {os.strerror(number)!r}, '/out')"))
    assert done.returncode == 1
    assert done.stderr == f"error: /out: {os.strerror(number)}\nhint:  {fix}\n"


def test_a_fault_of_our_own_keeps_its_traceback():
    done = run(code=FAILING.format("raise OSError(5, 'Input/output error')"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no broken pipes")
def test_a_reader_that_goes_away_is_no_error():
    code = FAILING.format("[print('x' * 1000) for _ in range(10_000)]")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


def test_the_package_offers_load_and_nothing_it_does_not_have():
    from edgegen.runtimes import deploy

    assert edgegen.load is deploy
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        edgegen.laod  # noqa: B018


def test_a_bundle_that_is_not_there_is_the_same_error_everywhere(tmp_path):
    for command in ("verify", "run"):
        done = run(command, str(tmp_path / "gone"))
        assert done.returncode == NotFoundError.exit_code
        assert "no bundle there" in done.stderr
        assert "edgegen export" in done.stderr
