"""OpenVINO as an engine: exact settings, caches, devices, what it refuses."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13

from edgegen.bundle import open_bundle, read_golden
from edgegen.errors import (
    EdgeGenError,
    FallbackError,
    FormatError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from edgegen.runtimes import _openvino_text, deploy, openvino
from edgegen.runtimes.loops.autoregressive import PastForward
from edgegen.spec import Options
from edgegen.verify import greedy

pytestmark = pytest.mark.slow
PROMPT = np.array([[5, 6, 7, 8], [0, 6, 7, 8]])
MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 1]])


@pytest.fixture
def session(exports):
    with deploy(exports("gpt"), "openvino") as deployment:
        yield deployment.session("model")


def open_generator(exports, device="cpu", **options):
    bundle = open_bundle(exports("gan"))
    path = bundle.path / bundle.artifact("generator", "openvino").path
    return openvino.open_graph(path, bundle.graph("generator"), device, Options(**options))


def test_with_past_inputs_it_is_the_same_graph_as_in_onnx_runtime(session, exports):
    with deploy(exports("gpt"), "onnxruntime") as other:
        for case in read_golden(open_bundle(exports("gpt"))):
            if "logits" in case.outputs:
                found, want = session.run(case.inputs), other.session("model").run(case.inputs)
                assert found.keys() == want.keys()
                for name in want:
                    assert np.allclose(found[name], want[name], atol=1e-4), (case.name, name)


def test_its_own_cache_gives_the_tokens_of_the_plain_loop(session):
    own = greedy(session.cached(), PROMPT, MASK, 20)
    assert np.array_equal(own, greedy(PastForward(session), PROMPT, MASK, 20))


def test_of_a_prompt_the_head_computes_the_last_position_alone(session):
    found = session.cached()(PROMPT, MASK, np.maximum(MASK.cumsum(1) - 1, 0), fresh=True)
    assert session._request.get_tensor("logits").shape == [2, 1, found.shape[1]]


def test_the_models_own_attention_is_left_and_its_masks_are_added(exports):
    path = exports("gpt") / "openvino_model.xml"
    models = [openvino.core().read_model(path) for _ in range(2)]
    _openvino_text.ready(models[0])
    kinds = []
    for model in models:
        nodes = [n for n in model.get_ops() if n.get_type_name() == "ScaledDotProductAttention"]
        kinds.append({n.input(3).get_source_output().get_element_type() for n in nodes})
    assert kinds == [{ov.Type.f32}, {ov.Type.boolean}]


def test_logits_that_are_no_product_are_all_computed(exports):
    model = openvino.core().read_model(exports("gpt") / "openvino_model.xml")
    logits = next(port for port in model.outputs if "logits" in port.names).node
    doubled = opset13.multiply(logits.input(0).get_source_output(), np.float32(2))
    doubled.output(0).get_tensor().set_names({"logits"})
    logits.input(0).get_source_output().get_tensor().set_names(set())
    logits.input(0).replace_source_output(doubled.output(0))
    _openvino_text.ready(model)
    assert "rows" not in {name for port in model.inputs for name in port.names}


def test_the_batch_may_change_from_call_to_call(session):
    cache = session.cached()
    first = greedy(cache, PROMPT, MASK, 5)
    assert np.array_equal(greedy(cache, PROMPT[:1], MASK[:1], 5), first[:1])
    assert np.array_equal(greedy(cache, PROMPT, MASK, 5), first)


def test_a_graph_without_state_has_no_cache_of_its_own(exports):
    with pytest.raises(EdgeGenError, match="graph generator keeps no state"):
        open_generator(exports).cached()


def test_it_computes_in_fp32_and_says_so_when_asked(exports):
    model = openvino.core().read_model(exports("gpt") / "openvino_model.xml")
    compiled = openvino.core().compile_model(model, "CPU", openvino._config("CPU", Options()))
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.f32
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0


def test_settings_of_the_caller_come_last():
    config = openvino._config("CPU", Options(threads=2, provider={"KV_CACHE_PRECISION": "u8"}))
    assert config["INFERENCE_NUM_THREADS"] == 2
    assert config["KV_CACHE_PRECISION"] == "u8"
    assert openvino._config("GPU", Options(precision="fp16"))["INFERENCE_PRECISION_HINT"] == "f16"
    assert openvino._config("GPU.1", Options())["INFERENCE_PRECISION_HINT"] == "f32"
    assert openvino._config("AUTO", Options())["EXECUTION_MODE_HINT"] == "ACCURACY"


def test_bf16_is_obeyed_or_refused_never_replaced(exports):
    bf16 = {"INFERENCE_PRECISION_HINT": "bf16"}
    latent = {"latent": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)}
    want = open_generator(exports).run(latent)["image"]
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(MismatchError, match="was told to compute in bf16 but runs in f32"):
            open_generator(exports, provider=bf16)
        return
    found = open_generator(exports, provider=bf16).run(latent)["image"]
    assert 1e-5 < np.abs(found - want).max() < 0.1


def test_a_property_that_openvino_does_not_know_is_named(exports):
    with pytest.raises(EdgeGenError, match="NO_SUCH_KEY"):
        open_generator(exports, provider={"NO_SUCH_KEY": "1"})


@pytest.mark.parametrize("device", ["auto", "auto:cpu", "hetero:cpu"])
def test_auto_and_hetero_compute_the_same_and_say_where(exports, device):
    latent = {"latent": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)}
    want = open_generator(exports).run(latent)["image"]
    session = open_generator(exports, device, profile=True)
    assert np.allclose(session.run(latent)["image"], want, atol=1e-4)
    assert {row.device for row in session.operators()} == {"cpu"}


@pytest.mark.parametrize("device", ["cpuu", "gpu:7", "tpu"])
def test_a_device_that_is_not_there_says_which_are(exports, device):
    with pytest.raises(NotFoundError) as error:
        open_generator(exports, device)
    assert f"sees no device {device!r}; it sees: CPU" in str(error.value)
    assert error.value.hint.startswith(("did you mean", "have: "))


class Compiled:
    """What OpenVINO would say of a compiled model."""

    def __init__(self, **properties):
        self.get_property = properties.__getitem__


def test_a_device_that_hands_the_work_on_is_found_out():
    with pytest.raises(FallbackError) as error:
        openvino._check_device(Compiled(EXECUTION_DEVICES=["CPU"]), "GPU", "gpu")
    assert str(error.value) == "asked for gpu, but openvino runs the graph on CPU"
    assert error.value.exit_code == 5
    openvino._check_device(Compiled(EXECUTION_DEVICES=["GPU.0"]), "GPU", "gpu")
    openvino._check_device(Compiled(EXECUTION_DEVICES=["CPU"]), "AUTO", "auto")


@pytest.mark.parametrize(
    ("name", "does"),
    [("INFERENCE_PRECISION_HINT", "compute"), ("KV_CACHE_PRECISION", "keep its cache")],
)
def test_another_precision_than_told_is_found_out(name, does):
    compiled = Compiled(**{name: "bf16"})
    openvino._check_precision(compiled, {name: "bf16"}, name, does)
    with pytest.raises(MismatchError) as error:
        openvino._check_precision(compiled, {name: "f32"}, name, does)
    assert str(error.value) == f"openvino was told to {does} in f32 but runs in bf16"


def test_names_of_devices_are_openvinos_own():
    assert openvino._target("cpu") == "CPU"
    assert openvino._target("hetero:cpu") == "HETERO:CPU"
    assert openvino.devices()[0] == "cpu"
    assert openvino.version() == ov.__version__.partition("-")[0]


def test_operators_are_summed_over_the_runs(exports):
    session = open_generator(exports, profile=True)
    for _ in range(3):
        session.run({"latent": np.zeros((2, 16), np.float32)})
    rows = session.operators()
    assert {row.calls for row in rows} == {3}
    assert {row.device for row in rows} == {"cpu"}
    assert sum(row.total_ms for row in rows) > 0
    assert "Convolution" in {row.kind for row in rows}
    assert open_generator(exports).operators() == ()


def test_operators_of_one_long_run_are_not_counted_again_in_short_ones(exports):
    session = open_generator(exports, profile=True)
    session.run({"latent": np.zeros((2048, 16), np.float32)})
    first = sum(row.total_ms for row in session.operators())
    for _ in range(50):
        session.run({"latent": np.zeros((1, 16), np.float32)})
    # Summing the counters, means since the start, would give 4.5 of the first.
    assert sum(row.total_ms for row in session.operators()) < 2.5 * first


def test_a_file_that_is_no_model_is_named(tmp_path, toys):
    file = tmp_path / "openvino_model.xml"
    file.write_text("<net")
    with pytest.raises(FormatError) as error:
        openvino.open_graph(file, toys.DECODER, "cpu", Options())
    assert str(error.value).startswith(f"{file}: openvino {openvino.version()} cannot open it")
    assert "edgegen verify" in error.value.hint


def test_importing_edgegen_keeps_openvino_from_reporting_home():
    import sys

    import edgegen

    assert edgegen and sys.modules["openvino_telemetry"] is None


def test_bf16_where_there_is_none_is_refused_unless_another_will_do():
    with pytest.raises(UnsupportedError, match="has no bf16 on gpu") as error:
        openvino._check_bf16("GPU", "gpu", Options(precision="bf16"))
    assert "--allow-fallback" in error.value.hint
    allowed = Options(precision="bf16", allow_fallback=True)
    openvino._check_bf16("GPU", "gpu", allowed)
    assert openvino._config("CPU", Options())["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_cache_in_8_bits_is_for_the_cpu(exports):
    bundle = open_bundle(exports("gpt"))
    path = bundle.path / bundle.artifact("model", "openvino").path
    with pytest.raises(UnsupportedError, match="a cache in int8 is for the CPU of openvino"):
        openvino.open_graph(path, bundle.graph("model"), "auto", Options(kv_cache="int8"))
