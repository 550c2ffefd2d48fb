"""ONNX Runtime as an engine: numbers, caches, devices, what it refuses."""

import numpy as np
import onnxruntime as ort
import pytest

from edgegen.bundle import open_bundle, read_golden
from edgegen.errors import FallbackError, FormatError, MismatchError, NotFoundError
from edgegen.runtimes import deploy, onnxruntime
from edgegen.runtimes.loops.autoregressive import PastForward
from edgegen.spec import Options
from edgegen.verify import greedy

pytestmark = pytest.mark.slow
PROMPT = np.array([[5, 6, 7, 8], [0, 6, 7, 8]])
MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 1]])


@pytest.fixture
def session(exports):
    with deploy(exports("gpt"), "onnxruntime") as deployment:
        yield deployment.session("model")


def test_every_golden_case_is_what_torch_computed(session, exports):
    cases = [c for c in read_golden(open_bundle(exports("gpt"))) if "input_ids" in c.inputs]
    full = [c for c in cases if "logits" in c.outputs]
    assert {len(c.inputs["input_ids"]) for c in full} == {1, 2}
    for case in full:
        assert np.allclose(session.run(case.inputs)["logits"], case.outputs["logits"], atol=1e-4)


def test_its_own_cache_gives_the_tokens_of_the_plain_loop(session):
    own = greedy(session.cached(), PROMPT, MASK, 20)
    assert np.array_equal(own, greedy(PastForward(session), PROMPT, MASK, 20))


def test_a_fresh_call_forgets_what_was_before(session):
    cache = session.cached()
    first = greedy(cache, PROMPT, MASK, 5)
    greedy(cache, PROMPT[:1] + 9, MASK[:1], 3)
    assert np.array_equal(greedy(cache, PROMPT, MASK, 5), first)


def test_inputs_that_do_not_fit_are_refused_before_the_engine_sees_them(session):
    with pytest.raises(MismatchError, match="missing inputs"):
        session.run({"input_ids": PROMPT})


def test_operators_are_named_timed_and_placed(exports):
    with deploy(exports("gan"), "onnxruntime", options=Options(profile=True)) as deployment:
        session = deployment.session("generator")
        for _ in range(3):
            session.run({"latent": np.zeros((2, 16), np.float32)})
        rows = session.operators()
        assert session.operators() == ()
    assert {"Conv"} <= {kind.removeprefix("Fused") for kind in (row.kind for row in rows)}
    assert {row.calls for row in rows} == {3}
    assert {row.device for row in rows} == {"cpu"}
    assert all(row.total_ms >= 0 for row in rows)
    assert len({row.name for row in rows}) == len(rows)


def test_without_profiling_no_operator_is_listed(session):
    assert session.operators() == ()


def test_the_cpu_is_always_there():
    assert onnxruntime.devices()[0] == "cpu"
    assert onnxruntime.version() == ort.__version__
    assert onnxruntime._provider("cpu") == (onnxruntime.CPU, "")


@pytest.mark.parametrize("device", ["gpu", "npu", "gpu:1", "cuda", "qnn", "tensorrt"])
def test_a_device_without_a_provider_says_which_there_are(exports, device):
    if device.partition(":")[0] in onnxruntime.devices():
        pytest.skip(f"this machine has {device}")
    with pytest.raises(NotFoundError) as error:
        onnxruntime.open_graph(exports("gan"), None, device, Options())
    assert f"has no device {device!r}; its providers: " in str(error.value)
    assert error.value.hint


def test_a_misspelt_device_is_guessed():
    with pytest.raises(NotFoundError) as error:
        onnxruntime._provider("cpuu")
    assert error.value.hint == "did you mean 'cpu'?"


def test_a_provider_can_be_asked_for_by_its_own_name_and_auto_takes_what_is_there():
    name = ort.get_available_providers()[-1]
    assert onnxruntime._provider(name.removesuffix("ExecutionProvider").lower()) == (name, "")
    if "gpu" not in onnxruntime.devices():
        assert onnxruntime._provider("auto")[0] == onnxruntime.CPU


class Placed:
    """What ONNX Runtime would say of a session on an accelerator."""

    def __init__(self, providers, **nodes):
        self._providers, self._nodes = providers, nodes

    def get_providers(self):
        return self._providers

    def get_provider_graph_assignment_info(self):
        return [Part(f"{name}ExecutionProvider", kinds) for name, kinds in self._nodes.items()]


class Part:
    def __init__(self, name, kinds):
        self.ep_name, self._kinds = name, kinds

    def get_nodes(self):
        return [type("Node", (), {"op_type": kind}) for kind in self._kinds]


CUDA = "CUDAExecutionProvider"


def test_operators_that_ran_elsewhere_are_listed_by_number_and_kind():
    placed = Placed([CUDA, onnxruntime.CPU], CUDA=["Conv"], CPU=["Gather", "Conv", "Gather"])
    with pytest.raises(FallbackError) as error:
        onnxruntime._check_placement(placed, CUDA, "gpu")
    assert str(error.value) == (
        "asked for gpu (CUDA), but these ran elsewhere: 2 x Gather on CPU, 1 x Conv on CPU"
    )
    assert error.value.exit_code == 5
    assert "--allow-fallback" in error.value.hint


def test_a_provider_that_did_not_start_is_no_silent_cpu():
    with pytest.raises(FallbackError, match="could not start CUDAExecutionProvider"):
        onnxruntime._check_placement(Placed([onnxruntime.CPU]), CUDA, "gpu")


def test_all_operators_where_they_should_be_is_no_error():
    onnxruntime._check_placement(Placed([CUDA], CUDA=["Conv"]), CUDA, "gpu")


def test_a_file_that_is_no_model_is_named(tmp_path, toys):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"nothing")
    with pytest.raises(FormatError) as error:
        onnxruntime.open_graph(file, toys.DECODER, "cpu", Options())
    assert str(error.value).startswith(f"{file}: onnxruntime {ort.__version__} cannot open it: ")


def test_what_the_engine_does_not_implement_is_not_called_a_broken_file(tmp_path):
    error = onnxruntime._explain(
        RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find Conv(11)"),
        tmp_path,
        "cpu",
    )
    assert "cannot run this on cpu" in str(error)
    assert "another engine" in error.hint
