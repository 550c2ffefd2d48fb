"""torch as an engine: the reference, and a loader that runs no pickle."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from edgegen.bundle import open_bundle, read_golden
from edgegen.errors import FormatError, MismatchError, NotFoundError
from edgegen.runtimes import deploy
from edgegen.runtimes import torch as engine
from edgegen.spec import Operator, Options

pytestmark = pytest.mark.slow


def test_the_program_is_the_module_bit_for_bit(exports):
    with deploy(exports("gpt-torch"), "torch") as deployment:
        session = deployment.session("model")
        for case in read_golden(open_bundle(exports("gpt-torch"))):
            if "logits" in case.outputs:
                found = session.run(case.inputs)["logits"]
                assert np.allclose(found, case.outputs["logits"], atol=1e-5), case.name


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_takes_every_batch_whatever_it_was_traced_with(exports, batch):
    with deploy(exports("gan-torch"), "torch") as deployment:
        session = deployment.session("generator")
        out = session.run({"latent": np.zeros((batch, 16), np.float32)})
        assert out["image"].shape == (batch, 1, 8, 8)
        with pytest.raises(MismatchError):
            session.run({"latent": np.zeros((batch, 17), np.float32)})
        assert session.operators() == ()


def test_operators_are_those_of_torchs_profiler(exports):
    options = Options(profile=True, threads=1)
    threads = torch.get_num_threads()
    with deploy(exports("gan-torch"), "torch", options=options) as deployment:
        session = deployment.session("generator")
        session.run({"latent": np.zeros((2, 16), np.float32)})
        rows = session.operators()
    torch.set_num_threads(threads)
    assert any("convolution" in row.name for row in rows)
    assert {row.device for row in rows} == {"cpu"}
    assert all(row.total_ms > 0 and row.calls > 0 for row in rows)


def test_a_device_that_is_not_there_says_which_are():
    with pytest.raises(NotFoundError) as error:
        engine._place("gpu:9")
    assert "torch sees no" not in str(error.value)
    assert "sees no device 'gpu:9'; it sees: cpu" in str(error.value)
    assert engine._place("cpu").type == "cpu"
    assert engine._place("auto").type in ("cpu", "cuda")


def test_a_truncated_file_is_named(exports, tmp_path):
    whole = (exports("gan-torch") / "generator/model.pt2").read_bytes()
    file = tmp_path / "model.pt2"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError) as error:
        engine.load_program(file)
    assert str(error.value).startswith(f"{file}: torch {torch.__version__} cannot open it: ")
    assert error.value.hint == "export the bundle again"


class Evil:
    def __reduce__(self):
        return exec, ("import builtins; builtins.edgegen_was_here = True",)


def poisoned():
    """What torch.save would write, with a pickle that runs code when it is read."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            evil = name.endswith("data.pkl")
            new.writestr(name, pickle.dumps(Evil(), 2) if evil else old.read(name))
    return out.getvalue()


def test_no_pickle_in_a_program_runs_code(exports, tmp_path):
    import builtins

    source = exports("gan-torch") / "generator/model.pt2"
    file = tmp_path / "model.pt2"
    replaced = 0
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            evil = name.endswith((".pt", ".pkl"))
            replaced += evil
            new.writestr(name, poisoned() if evil else old.read(name))
    assert replaced
    with pytest.raises(FormatError):
        engine.load_program(file)
    assert not hasattr(builtins, "edgegen_was_here")


def test_the_setting_of_torch_is_left_as_it_was(exports, monkeypatch):
    import os

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    monkeypatch.setenv(name, "0")
    engine.load_program(exports("gan-torch") / "generator/model.pt2")
    assert os.environ[name] == "0"
    monkeypatch.delenv(name)
    engine.load_program(exports("gan-torch") / "generator/model.pt2")
    assert name not in os.environ


class Row:
    """A row of torch's profiler, as it is on a GPU."""

    def __init__(self, key, on, cpu_us, device_us):
        self.key, self.count = key, 2
        self.device_type = on
        self.self_cpu_time_total, self.self_device_time_total = cpu_us, device_us


def test_on_a_gpu_an_operator_takes_its_kernels_time_and_counts_once():
    host, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    rows = [
        Row("aten::mm", host, 30.0, 500.0),
        Row("sgemm_128x64", gpu, 0.0, 500.0),
        Row("aten::view", host, 5.0, 0.0),
    ]
    assert engine.summed(rows, "gpu") == (Operator("aten::mm", "aten::mm", "gpu", 2, 0.5),)
    assert [row.kind for row in engine.summed(rows, "cpu")] == ["aten::mm", "aten::view"]


def test_torch_without_a_gpu_says_what_it_sees():
    if torch.cuda.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NotFoundError, match="sees no device 'gpu'; it sees: cpu"):
        engine._place("gpu")
