"""Records on disk; and outputs that are whole or not there, whatever happens meanwhile."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec import Struct

from edgegen import records
from edgegen.errors import FormatError, NotFoundError, UsageError

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signals and mounts")


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    group_size: int = 32


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    precision: str
    steps: tuple[Inner, ...] = ()


RECIPE = Recipe("int8", (Inner(64), Inner(16)))


def test_what_is_written_is_read_back(tmp_path):
    records.write(RECIPE, tmp_path / "new" / "recipe.json")
    assert records.read(Recipe, tmp_path / "new" / "recipe.json") == RECIPE
    (tmp_path / "recipe.toml").write_text('precision = "int8"\n[[steps]]\ngroup_size = 64\n')
    assert records.read(Recipe, tmp_path / "recipe.toml") == Recipe("int8", (Inner(64),))


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        ("a.json", '{"precison":"int8"}', "unknown field `precison`", "did you mean 'precision'?"),
        ("a.toml", 'precison = "int8"', "unknown field `precison`", "did you mean 'precision'?"),
        (
            "a.json",
            '{"precision":"int8","steps":[{"groupsize":1}]}',
            "unknown field `groupsize`",
            "did you mean 'group_size'?",
        ),
        ("a.json", '{"precision":8}', r"Expected `str`, got `int` - at `\$.precision`", ""),
        ("a.json", '{"precision":', "not valid JSON", "restore the file"),
        ("a.toml", "precision = ", "not valid TOML", ""),
    ],
)
def test_a_broken_record_is_refused_with_place_fault_and_fix(tmp_path, name, text, message, hint):
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=message) as error:
        records.read(Recipe, tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert error.value.hint == hint


def test_values_from_elsewhere_are_checked_alike():
    assert records.convert(Inner, {"group_size": "64"}, "--set", strict=False) == Inner(64)
    with pytest.raises(FormatError, match="--set: Expected `int`"):
        records.convert(Inner, {"group_size": "64"}, "--set")


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.json: no such file"):
        records.read(Recipe, tmp_path / "gone.json")


def put(path, text):
    """Write a file, or a folder as bundles and checkpoints are."""
    with records.whole(path) as part:
        if path.suffix:
            part.write_text(text)
        else:
            part.mkdir()
            (part / "manifest.json").write_text(text)


def got(path):
    return (path if path.suffix else path / "manifest.json").read_text()


@pytest.fixture(params=["out.txt", "bundle", "odd [1].txt"])
def output(request, tmp_path):
    return tmp_path / "in" / request.param


def test_an_output_appears_in_full_and_replaces_the_old_one(output):
    put(output, "old")
    put(output, "new")
    assert got(output) == "new"
    assert os.listdir(output.parent) == [output.name]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_output_and_nothing_else(output, fault):
    put(output, "old")
    with pytest.raises(fault), records.whole(output) as part:
        part.write_text("half")
        raise fault
    assert got(output) == "old"
    assert os.listdir(output.parent) == [output.name]


@pytest.mark.parametrize(("name", "kind"), [("bundle", "a folder"), ("out.txt", "a file")])
def test_a_file_never_replaces_a_folder_nor_the_other_way_round(tmp_path, name, kind):
    put(tmp_path / name, "old")
    wrong = pytest.raises(UsageError, match=f"{kind} of that name is there")
    with wrong as error, records.whole(tmp_path / name) as part:
        part.touch() if kind == "a folder" else part.mkdir()
    assert error.value.hint == "give a name that is not taken"
    assert got(tmp_path / name) == "old"
    assert os.listdir(tmp_path) == [name]


def test_a_folder_of_other_things_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path, ".", "../" + tmp_path.name):
        with pytest.raises(UsageError, match="other things in it, which would be lost") as error:
            put(Path(name), "")
        assert "not taken" in error.value.hint
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "bundle").mkdir()
    put(tmp_path / "bundle", "new")
    assert got(tmp_path / "bundle") == "new"


@linux
def test_a_device_file_is_never_replaced():
    with pytest.raises(UsageError, match="/dev/null: neither a file nor a folder"):
        put(Path("/dev/null"), "")


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    put(tmp_path / "real.txt", "old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    put(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert got(tmp_path / "real.txt") == "new"


WAIT = """
import sys, typer
from edgegen import records
from edgegen.cli import app, main

@app.command()
def wait(path: str):
    with records.whole(path) as part:
        if path.endswith(".txt"):
            part.write_text("half")
        else:
            part.mkdir()
            (part / "manifest.json").write_text("half")
        print("ready", flush=True)
        sys.stdin.read()

sys.argv = ["edgegen", "wait", sys.argv[1]]
main()
"""


def halfway(path):
    """A command that has written half of its output, and will not end by itself."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WAIT, str(path)], text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@linux
def test_ctrl_c_leaves_the_old_output_no_half_one_and_one_line_on_the_terminal(output):
    put(output, "old")
    process = halfway(output)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["error: interrupted; nothing was changed under the output's name"]
    assert got(output) == "old"
    assert os.listdir(output.parent) == [output.name]


@linux
def test_what_a_killed_command_left_is_swept_by_the_next(output):
    put(output, "old")
    process = halfway(output)
    process.kill()
    process.communicate(timeout=60)
    assert got(output) == "old"
    assert len(os.listdir(output.parent)) == 2
    put(output, "new")
    assert got(output) == "new"
    assert os.listdir(output.parent) == [output.name]


@linux
def test_what_a_command_that_still_runs_is_writing_is_left_alone(output):
    process = halfway(output)
    put(output, "new")
    assert len(os.listdir(output.parent)) == 2
    process.kill()
    process.communicate(timeout=60)


def test_an_old_folder_that_a_killed_command_had_moved_aside_comes_back(tmp_path):
    put(tmp_path / "bundle", "old")
    # Killed between the two renames. The same process id: containers give it again and again.
    (tmp_path / "bundle").rename(tmp_path / f"bundle.partial-old-{os.getpid()}")
    (tmp_path / f"bundle.partial-{os.getpid()}").mkdir()
    records.recover(tmp_path / "bundle")
    assert got(tmp_path / "bundle") == "old"
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this system does not let root mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["out.txt", "bundle"])
def test_a_full_disk_leaves_the_old_output_whole(small_disk, name):
    put(small_disk / name, "old")
    with pytest.raises(OSError, match="No space left on device") as error:
        put(small_disk / name, "new" * 200_000)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(small_disk / name)
    assert got(small_disk / name) == "old"
    assert os.listdir(small_disk) == [name]


def test_a_full_disk_is_named_even_where_a_library_calls_it_something_else(small_disk):
    """As C++ streams do: they write what fits, and complain in words of their own."""
    full = pytest.raises(OSError, match="No space left on device")
    with full as error, records.whole(small_disk / "out.bin") as part:
        with suppress(OSError):
            part.write_bytes(bytes(300_000))
        raise RuntimeError("Check 'stream.good()' failed")
    assert isinstance(error.value.__cause__, RuntimeError)
    assert os.listdir(small_disk) == []


def test_a_full_disk_is_one_line_and_a_hint_on_the_terminal(small_disk):
    code = WAIT.replace('"half"', '"x" * 300_000')
    target = small_disk / "out.txt"
    command = [sys.executable, "-c", code, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {target}: No space left on device",
        "hint:  free space or write elsewhere",
    ]
