import json
import signal
import subprocess
import sys

import pytest

from edgegen.cli import main

SMALL = ["--steps", "3", "--batch", "8", "--config", "width=4", "--config", "latent=3"]
VAE = ["vae", "--data", "digits", *SMALL]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `edgegen train ...`: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgegen", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_a_checkpoint_and_a_table_of_held_out_numbers(command, tmp_path):
    code, out, err = command(*VAE, "-o", tmp_path / "vae")
    assert code == 0
    assert "elbo_nats" in out and "bits_per_dim" in out
    assert "training (3)" in err and "parameters after 3 steps on cpu" in err
    assert (tmp_path / "vae" / "model.safetensors").is_file()


def test_json_is_all_there_is_on_stdout(command, tmp_path):
    code, out, err = command(*VAE, "-o", tmp_path / "vae", "--json", "--quiet", "--seed", "4")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert (record["steps"], record["seed"], record["data"]) == (3, 4, "digits")
    assert json.loads((tmp_path / "vae" / "history.json").read_text()) == [record]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["--steps", "0"], 2, "--steps 0, wanted 1 to", "use --steps 100"),
        (["--config", "widht=4"], 2, "unknown field `widht`", "did you mean 'width'?"),
        (["--config", "width"], 2, "--config width, wanted KEY=VALUE", "such as"),
        (["--data", "digit"], 1, "--data digit: no such data set", "did you mean 'digits'?"),
        (["--data", "images:/nowhere"], 1, "/nowhere: no such folder", "use --data images:"),
        (["--device", "npu"], 1, "no device 'npu' to train on", "did you mean"),
    ],
)
def test_bad_input_is_two_lines_and_leaves_nothing(
    command, tmp_path, arguments, code, message, hint
):
    found, out, err = command(*VAE, "-o", tmp_path / "vae", *arguments)
    assert (found, out) == (code, "")
    first, second = err.splitlines()[-2:]
    assert first.startswith("error: ") and message in first
    assert second.startswith("hint:  ") and hint in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_old_checkpoint_stays(command, tmp_path):
    command(*VAE, "-o", tmp_path / "vae")
    before = (tmp_path / "vae" / "model.safetensors").read_bytes()
    again = [sys.executable, "-m", "edgegen", "train", "vae", "--data", "digits", "--batch", "8"]
    again += ["--steps", "100000", "--config", "width=4", "-o", tmp_path / "vae"]
    with subprocess.Popen(again, stderr=subprocess.PIPE, text=True) as run:
        for line in run.stderr:
            if line.startswith("step 200 "):  # the state of step 100 is there
                run.send_signal(signal.SIGINT)
                break
        rest = run.stderr.read()
    assert run.returncode == 130
    assert "Traceback" not in rest
    assert "go on with --resume" in rest
    assert rest.splitlines()[-1].startswith("error: interrupted; nothing was changed")
    assert (tmp_path / "vae" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_full_disk_is_two_lines_and_leaves_nothing(tmp_path):
    train = [sys.executable, "-m", "edgegen", "train", *VAE, "-o", str(tmp_path / "vae")]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *train]  # 4 blocks of 1 kB a file
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("error: ") and "File too large" in first
    assert second == "hint:  free space or write elsewhere"
    assert list(tmp_path.iterdir()) == []
