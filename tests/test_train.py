import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import torch

from edgegen import checkpoint, resume
from edgegen.errors import MismatchError, NotFoundError, UsageError
from edgegen.models import vae
from edgegen.train import Options, train
from edgegen.trainer import check_finite, learning_rate

SMALL = {"width": 4, "latent": 3}
QUICK = Options(steps=6, batch=8, every=2, config=SMALL)


def change(options=QUICK, **fields):
    return msgspec.structs.replace(options, **fields)


def weights(path):
    return (path / "model.safetensors").read_bytes()


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 60)
    return f"text:{path}"


def test_the_rate_warms_up_and_ends_at_a_hundredth():
    assert learning_rate(1.0, step=0, done=0.0) == pytest.approx(0.02)
    assert learning_rate(1.0, step=49, done=0.0) == 1.0
    assert learning_rate(2.0, step=99, done=0.5) == pytest.approx(2 * 0.505)
    assert learning_rate(1.0, step=99, done=1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_run_leaves_a_checkpoint_its_numbers_and_its_pictures(tmp_path, family):
    told, lines = [], []
    run = train(
        family,
        "digits",
        tmp_path / "out",
        QUICK,
        report=lambda *news: told.append(news),
        note=lines.append,
    )
    found = checkpoint.load(tmp_path / "out")
    assert found.history == (json.loads(msgspec.json.encode(run)),)
    assert (run.steps, run.items, run.held_out, run.device) == (6, 1618, 179, "cpu")
    assert told[-1] == ("training", 6, 6)
    assert [line.split("  ")[0] for line in lines] == ["step 2", "step 4", "step 6"]
    pictures = sorted(p.name for p in (tmp_path / "out" / "samples").iterdir())
    assert pictures == ["000002.png", "000004.png", "000006.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_validation_is_the_elbo_of_the_held_out_images(tmp_path):
    run = train("vae", "digits", tmp_path / "out", QUICK)
    nats, bits = run.validation["elbo_nats"], run.validation["bits_per_dim"]
    assert bits == pytest.approx(float(vae.bits_per_dim(torch.tensor(nats), 64)))
    assert run.validation["loss"] == pytest.approx(-nats)


def test_training_makes_the_held_out_images_more_likely(tmp_path):
    one = train("vae", "digits", tmp_path / "one", change(steps=1))
    many = train("vae", "digits", tmp_path / "many", change(steps=80, batch=64))
    assert many.validation["elbo_nats"] > one.validation["elbo_nats"] + 5


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, family):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(family, "digits", tmp_path / name, change(seed=seed))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_training_does_not_touch_the_callers_random_numbers(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train("vae", "digits", tmp_path / "out", QUICK)
    assert torch.equal(torch.rand(3), wanted)


def test_small_steps_keep_to_one_thread_and_the_callers_number_comes_back(tmp_path):
    before = torch.get_num_threads()
    assert train("vae", "digits", tmp_path / "out", QUICK).threads == 1
    assert torch.get_num_threads() == before


def test_text_is_trained_by_the_same_loop(tmp_path, book):
    config = {
        "vocab_size": 300,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    run = train("gpt", book, tmp_path / "out", change(steps=30, config=config, lr=1e-2))
    found = checkpoint.load(tmp_path / "out")
    assert b"<|endoftext|>" in found.tokenizer
    assert run.validation["loss"] < 5.0  # ln 300 = 5.7 nats before training
    assert not (tmp_path / "out" / "samples").exists()


def test_a_time_limit_ends_a_run_without_a_step_limit(tmp_path):
    told = []
    run = train(
        "vae",
        "digits",
        tmp_path / "out",
        change(steps=None, minutes=0.005),
        report=lambda *news: told.append(news),
    )
    assert run.steps >= 1
    assert run.seconds >= 0.3
    assert told[-1][0] == "training, seconds"


class KilledError(Exception):
    pass


def stop_after(step):
    """A `report` that ends the run after so many steps, as a crash would."""

    def report(what, done, total):
        if what == "training" and done == step:
            raise KilledError

    return report


@pytest.mark.parametrize("family", ["vae", "gan"])
@pytest.mark.parametrize("step", [3, 5])
def test_a_run_taken_up_again_ends_in_the_same_bytes(tmp_path, family, step):
    train(family, "digits", tmp_path / "whole", QUICK)
    with pytest.raises(KilledError):
        train(family, "digits", tmp_path / "cut", QUICK, report=stop_after(step))
    assert not (tmp_path / "cut").exists()
    lines = []
    run = train(family, "digits", tmp_path / "cut", change(resume=True), note=lines.append)
    assert lines[0] == f"resuming after step {step // 2 * 2}"
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert [point["step"] for point in run.curve] == [2, 4, 6]


def test_text_taken_up_again_ends_in_the_same_bytes(tmp_path, book):
    small = {"vocab_size": 300, "max_position_embeddings": 16, "hidden_size": 16}
    options = change(config={**small, "num_hidden_layers": 1})
    train("gpt", book, tmp_path / "whole", options)
    with pytest.raises(KilledError):
        train("gpt", book, tmp_path / "cut", options, report=stop_after(3))
    train("gpt", book, tmp_path / "cut", change(options, resume=True))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_run_that_stopped_before_its_first_state_leaves_nothing(tmp_path):
    with pytest.raises(KilledError):
        train("vae", "digits", tmp_path / "out", QUICK, report=stop_after(1))
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_walked_over(tmp_path):
    with pytest.raises(KilledError):
        train("vae", "digits", tmp_path / "out", QUICK, report=stop_after(3))
    with pytest.raises(UsageError, match=r"out\.training: an unfinished run is there") as error:
        train("vae", "digits", tmp_path / "out", QUICK)
    assert error.value.hint.startswith("add --resume to go on with it")


@pytest.mark.parametrize("field", ["batch", "lr", "seed", "steps", "config"])
def test_a_run_goes_on_only_as_it_began(tmp_path, field):
    with pytest.raises(KilledError):
        train("vae", "digits", tmp_path / "out", QUICK, report=stop_after(3))
    other = {"config": {**SMALL, "beta": 2.0}}.get(field, 9 if field != "lr" else 0.5)
    with pytest.raises(UsageError, match=f"the unfinished run has {field}") as error:
        train("vae", "digits", tmp_path / "out", change(resume=True, **{field: other}))
    assert "give the same options as before" in error.value.hint


def test_nothing_to_resume_starts_from_the_beginning_and_says_so(tmp_path):
    lines = []
    train("vae", "digits", tmp_path / "out", change(resume=True), note=lines.append)
    assert "nothing to resume" in lines[0]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_state_left_in_the_middle_of_a_swap_is_found_again(tmp_path):
    with pytest.raises(KilledError):
        train("vae", "digits", tmp_path / "out", QUICK, report=stop_after(3))
    state = resume.folder(tmp_path / "out") / "state"
    state.rename(state.with_name("state.partial-old-999999999"))
    assert resume.begun(tmp_path / "out")


def test_an_old_checkpoint_stays_until_the_new_one_is_whole(tmp_path):
    train("vae", "digits", tmp_path / "out", QUICK)
    before = weights(tmp_path / "out")
    with pytest.raises(KilledError):
        train("vae", "digits", tmp_path / "out", change(seed=3), report=stop_after(5))
    assert weights(tmp_path / "out") == before


def test_another_kind_of_folder_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists and is not a checkpoint"):
        train("vae", "digits", tmp_path, QUICK)
    assert (tmp_path / "notes.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "--steps 0, wanted 1 to 1000000000"),
        ({"steps": -5}, "--steps -5, wanted 1"),
        ({"steps": 10**12}, "--steps 1000000000000, wanted 1"),
        ({"batch": 0}, "--batch 0, wanted 1"),
        ({"batch": 5000}, "--batch 5000 in 1 process.*1618 items"),
        ({"minutes": 0.0}, "--minutes 0.0, wanted above 0"),
        ({"minutes": float("nan")}, "--minutes nan, wanted above 0"),
        ({"lr": 0.0}, "--lr 0.0, wanted above 0"),
        ({"lr": float("inf")}, "--lr inf, wanted above 0"),
        ({"seed": -1}, "--seed -1, wanted 0"),
        ({"every": 0}, "--every 0, wanted 1"),
    ],
)
def test_silly_values_are_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(UsageError, match=message) as error:
        train("vae", "digits", tmp_path / "out", change(**fields))
    assert error.value.hint.startswith("use --")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(MismatchError, match="elbo is nan after step 7") as error:
        check_finite({"loss": 1.0, "elbo": float("nan")}, step=7)
    assert error.value.hint == "train with a smaller --lr"


def test_an_unknown_device_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no device 'npu' to train on"):
        train("vae", "digits", tmp_path / "out", change(device="npu"))


COMMAND = ["train", "gan", "--data", "digits", "--steps", "220", "--batch", "8"]
COMMAND = [sys.executable, "-m", "edgegen", *COMMAND, "--config", "width=4", "--seed", "3"]


@pytest.mark.slow
def test_a_run_killed_by_sigkill_and_resumed_ends_in_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*COMMAND, "-o", whole], check=True, capture_output=True)
    with subprocess.Popen([*COMMAND, "-o", cut], stderr=subprocess.PIPE, text=True) as victim:
        for line in victim.stderr:
            if line.startswith("step 100"):
                while not (tmp_path / "cut.training" / "state" / "progress.json").exists():
                    time.sleep(0.001)
                os.kill(victim.pid, signal.SIGKILL)
                break
    assert victim.returncode == -signal.SIGKILL
    assert not cut.exists()
    resumed = subprocess.run(
        [*COMMAND, "-o", cut, "--resume"], check=True, capture_output=True, text=True
    )
    assert "resuming after step" in resumed.stderr
    assert weights(cut) == weights(whole)
    assert json.loads((cut / "history.json").read_text())[0]["steps"] == 220


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"]
    command = [*COMMAND[2:], "-o", tmp_path / "out", "--device", "cpu"]
    command[command.index("220")] = "20"
    done = subprocess.run([*launch, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (entry,) = checkpoint.load(tmp_path / "out").history
    assert (entry["processes"], entry["steps"]) == (2, 20)
