"""`export`: a verified bundle, or an error and nothing under its name."""

import msgspec
import numpy as np
import onnx
import pytest
import torch

from edgegen import checkpoint, eight_bit_cache, rooms
from edgegen.bundle import check_files, open_bundle, read_golden
from edgegen.errors import NotFoundError, ParityError, UnsupportedError, UsageError
from edgegen.export import export
from edgegen.exporters import onnx as onnx_exporter
from edgegen.models import gpt
from edgegen.runtimes import deploy
from edgegen.seal import write_manifest
from edgegen.spec import ModelSpec, Options

FILE = """import torch


class Frozen(torch.nn.Module):
    # A tracer records one branch of the two.
    def forward(self, x):
        return x * x.shape[0] if x.sum() > 1e3 else x + float(x.flatten()[0])


class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = torch.nn.Linear(27, 32)
        self.two = torch.nn.Linear(32, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def flat(user_file):
    return f"{user_file}:Flat", {"inputs": ["x:float32[batch,27]"], "formats": ["onnx"]}


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_bundle_holds_its_graphs_its_proof_and_what_made_it(exports):
    bundle = open_bundle(exports("gpt", "int8"))
    manifest = bundle.manifest
    check_files(bundle)
    assert (manifest.precision, manifest.reference) == ("int8", "torch fp32")
    assert bundle.formats() == ["onnx", "openvino"]
    assert {d.engine for d in manifest.drifts} == {"onnxruntime", "openvino"}
    assert all(drift.ok for drift in manifest.drifts)
    assert manifest.tools.keys() >= {"python", "edgegen", "torch", "onnxruntime", "openvino"}
    assert manifest.export_peak_rss_mb > 100
    cases = {case.name for case in read_golden(bundle)}
    assert cases >= {"text", "one", "odd", "filled", "chunk", "last-position", "decode-one"}


@pytest.mark.slow
def test_every_engine_is_tried_at_every_case(exports):
    rows = open_bundle(exports("gpt")).manifest.drifts
    for engine in ("onnxruntime", "openvino"):
        assert {row.case for row in rows if row.engine == engine} == {
            *("text", "one", "odd", "filled", "chunk", "last-position"),
            *("decode-one", "decode-two"),
        }


@pytest.mark.slow
def test_the_last_position_is_exact_in_fp16(exports):
    """Rotary angles in fp16 cost half the decibels there."""
    rows = open_bundle(exports("gpt", "fp16")).manifest.drifts
    last = [r.sqnr_db for r in rows if r.case == "last-position" and r.output == "logits"]
    assert len(last) == 2
    assert min(last) > 50


@pytest.mark.slow
def test_several_precisions_are_as_many_bundles(exports):
    names = {exports("vae", precision).name for precision in ("fp32", "fp16", "int8")}
    assert names == {"vae-fp32", "vae-fp16", "vae-int8"}
    folder = exports("vae").parent
    assert not [name for name in listed(folder) if "partial" in name]


@pytest.mark.slow
def test_a_bundle_can_be_read_by_others(exports):
    assert (
        exports("vae").stat().st_mode & 0o777 == (exports("vae") / "decoder").stat().st_mode & 0o777
    )


@pytest.mark.slow
def test_what_the_file_computes_is_checked_not_what_was_asked(user_file, tmp_path, monkeypatch):
    source, options = flat(user_file)
    export(source, tmp_path / "out", **options)
    before = (tmp_path / "out/manifest.json").read_bytes()
    save = onnx_exporter.save

    def tamper(model, path):
        weight = next(w for w in model.graph.initializer if len(w.dims) == 2)
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        save(model, path)

    monkeypatch.setattr(onnx_exporter, "save", tamper)
    with pytest.raises(ParityError) as error:
        export(source, tmp_path / "out", **options)
    assert error.value.exit_code == 3
    assert "onnxruntime model one" in str(error.value)
    assert "wanted SQNR >= 80 dB" in str(error.value)
    assert set(listed(tmp_path)) - {"__pycache__"} == {"mine.py", "out"}
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    check_files(open_bundle(tmp_path / "out"))


@pytest.mark.slow
def test_a_choice_that_the_tracer_froze_is_caught(user_file, tmp_path):
    with pytest.raises(ParityError) as error:
        export(
            f"{user_file}:Frozen",
            tmp_path / "out",
            inputs=["x:float32[batch,4]"],
            formats=["openvino"],
        )
    assert "openvino model" in str(error.value)
    assert "out" not in listed(tmp_path)
    assert not [name for name in listed(tmp_path) if "partial" in name]


@pytest.mark.slow
def test_a_group_size_that_does_not_divide_is_padded_and_said(user_file, tmp_path):
    source, options = flat(user_file)
    (bundle,) = export(source, tmp_path / "out", precisions=["int8"], **options)
    (artifact,) = bundle.manifest.artifacts
    assert {layer.precision for layer in artifact.ledger} == {"int8"}
    assert any("(27): last group padded" in note for note in artifact.notes)
    (bundle,) = export(source, tmp_path / "out", precisions=["int8"], group_size=16, **options)
    assert {layer.group_size for layer in bundle.manifest.artifacts[0].ledger} == {16}


@pytest.mark.slow
def test_fixed_text_is_the_text_of_the_free_bundle_on_both_engines(
    tiny_checkpoint, exports, tmp_path
):
    (fixed,) = export(str(tiny_checkpoint("gpt")), tmp_path / "out", static={"batch": 1, "seq": 32})
    assert fixed.graph("model").inputs[0].shape == (1, 32)
    for engine in ("onnxruntime", "openvino"):
        with deploy(fixed.path, engine) as window, deploy(exports("gpt"), engine) as free:
            options = {"max_new_tokens": 16}
            assert window.generate("the sea", **options) == free.generate("the sea", **options)


@pytest.mark.slow
def test_a_fixed_image_bundle_runs_at_its_batch_only(tiny_checkpoint, tmp_path):
    source = str(tiny_checkpoint("gan"))
    (bundle,) = export(source, tmp_path / "out", static={"batch": 1}, formats=["onnx"])
    assert bundle.graph("generator").inputs[0].shape == (1, 16)
    with deploy(bundle.path, "onnxruntime") as deployment:
        assert deployment.generate(num=1).shape == (1, 1, 8, 8)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_the_next_does_not_clear(user_file, tmp_path):
    source, options = flat(user_file)
    left = tmp_path / "out.graphs.partial-abc-999999999"
    left.mkdir()
    export(source, tmp_path / "out", **options)
    assert not left.exists()


@pytest.mark.slow
def test_a_foreign_file_is_proved_against_itself(exports, tmp_path):
    source = str(exports("gan") / "generator/model.onnx")
    (bundle,) = export(source, tmp_path / "out", precisions=["int8"], formats=["onnx"])
    assert bundle.manifest.reference == "onnxruntime on the source file, fp32, unoptimised"
    found = [layer.precision for layer in bundle.manifest.artifacts[0].ledger]
    assert found == ["int8", "int8", "fp32"]  # the last convolution gives the image


@pytest.mark.parametrize(
    ("options", "kind", "message", "hint"),
    [
        ({"precisions": ["int88"]}, UsageError, "no precision 'int88'", "did you mean 'int8'?"),
        ({"precisions": []}, UsageError, "no precision to export at", "pass --precision fp32,int8"),
        ({"formats": ["onx"]}, NotFoundError, "no format 'onx'", "did you mean 'onnx'?"),
        ({"formats": []}, UsageError, "no format to export to", "pass --to onnx,openvino"),
        ({"group_size": 24}, UsageError, "group size 24", "take a power of two from 16: "),
        ({"group_size": -32}, UsageError, "group size -32", "take a power of two from 16: "),
        ({"group_size": 8}, UsageError, "group size 8", "take a power of two from 16: "),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(tmp_path, options, kind, message, hint):
    with pytest.raises(kind) as error:
        export("not read", tmp_path / "out", **options)
    assert str(error.value) == message
    assert error.value.hint.startswith(hint)


def test_a_folder_with_other_things_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="a folder with other things in it"):
        export("not read", tmp_path)


@pytest.mark.slow
def test_torch_is_refused_at_another_precision_than_its_own(user_file, tmp_path):
    source, options = flat(user_file)
    with pytest.raises(UnsupportedError, match="the reference runs in fp32, not in int8"):
        export(source, tmp_path / "out", **options | {"formats": ["torch"]}, precisions=["int8"])


@pytest.mark.slow
def test_openvino_genai_reads_a_text_bundle_as_it_is(exports):
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    import openvino as ov

    prompt = [5, 6, 7, 8]
    pipeline = genai.LLMPipeline(str(exports("gpt")), "CPU", INFERENCE_PRECISION_HINT="f32")
    config = genai.GenerationConfig(max_new_tokens=16, do_sample=False, ignore_eos=True)
    ids = ov.Tensor(np.array([prompt]))
    found = pipeline.generate(
        genai.TokenizedInputs(ids, ov.Tensor(np.ones((1, 4), np.int64))), config
    )
    net = torch.tensor([prompt])
    with deploy(exports("gpt"), "openvino") as deployment:
        from edgegen.verify import greedy

        forward = deployment.session("model").cached()
        want = greedy(forward, net.numpy(), np.ones((1, 4), np.int64), 16)
    assert found.tokens[0] == want[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_genai_reads_a_text_bundle_as_it_is(exports, precision):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

    prompt = [5, 6, 7, 8]
    model = genai.Model(str(exports("gpt", precision)))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 16, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    with deploy(exports("gpt", precision), "onnxruntime") as deployment:
        from edgegen.verify import greedy

        forward = deployment.session("model").cached()
        want = greedy(forward, np.array([prompt]), np.ones((1, 4), np.int64), len(found))
    assert len(found) >= 1
    assert found == want[0].tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # optimum's and transformers' own deprecations
def test_optimum_reads_a_text_bundle_as_it_is(exports):
    reason = "optimum-onnx is not installed, or not beside this transformers"
    peer = pytest.importorskip("optimum.onnxruntime", reason=reason, exc_type=ImportError)

    prompt = torch.tensor([[5, 6, 7, 8]])
    model = peer.ORTModelForCausalLM.from_pretrained(exports("gpt"))
    mask = torch.ones_like(prompt)
    found = model.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False)
    with deploy(exports("gpt"), "onnxruntime") as deployment:
        from edgegen.verify import greedy

        forward = deployment.session("model").cached()
        want = greedy(forward, prompt.numpy(), mask.numpy(), found.shape[1] - 4)
    assert found.shape[1] > 4
    assert found[0, 4:].tolist() == want[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "vae"])
def test_bf16_is_stored_and_computed_on_openvino(tiny_checkpoint, tmp_path, family):
    from edgegen.runtimes import openvino
    from edgegen.spec import Options

    capable = "BF16" in openvino.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if not capable:
        pytest.skip("this CPU has no bf16")
    source = str(tiny_checkpoint(family))
    (bundle,) = export(source, tmp_path / "b", formats=["openvino"], precisions=["bf16"])
    (plain,) = export(source, tmp_path / "f", formats=["openvino"])
    assert bundle.manifest.precision == "bf16"
    assert all(
        {layer.precision for layer in a.ledger} == {"bf16"} for a in bundle.manifest.artifacts
    )
    assert any("computed in bf16" in n for a in bundle.manifest.artifacts for n in a.notes)
    assert bundle.size_mb("openvino") < plain.size_mb("openvino")
    decibels = [d.sqnr_db for d in bundle.manifest.drifts if d.sqnr_db is not None]
    assert min(decibels) >= 30
    artifact = bundle.manifest.artifacts[0]
    model = openvino.core().read_model(bundle.path / artifact.path)
    config = openvino._config("CPU", Options(precision="bf16"))
    compiled = openvino.core().compile_model(model, "CPU", config)
    ran = {
        op.get_rt_info()["layerType"].astype(str): op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
    }
    assert {ran[kind] for kind in ("FullyConnected", "Convolution") if kind in ran} == {"bf16"}


@pytest.mark.parametrize("formats", [["onnx", "openvino"], ["onnx"]])
def test_bf16_is_refused_where_there_are_no_operators_for_it(tmp_path, formats):
    with pytest.raises(UnsupportedError, match="onnx: bf16: ONNX Runtime has no bf16") as error:
        export("nothing", tmp_path / "b", formats=formats, precisions=["bf16"])
    assert "--to openvino" in error.value.hint


@pytest.fixture(scope="module")
def cached_in_8_bits(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    loaded = checkpoint.load(tiny_checkpoint("gpt"))
    config = loaded.net.config  # heads of the size that fills the native engine's lanes
    config = msgspec.structs.replace(config, num_attention_heads=2, num_key_value_heads=2)
    torch.manual_seed(0)
    net = gpt.Net(config).eval()
    torch.nn.init.normal_(net.embed_tokens.weight, std=0.3)
    source = str(folder / "checkpoint")
    spec = ModelSpec("gpt", msgspec.to_builtins(config))
    checkpoint.save(source, spec, net, (), loaded.tokenizer)
    (bundle,) = export(source, folder / "out", formats=["openvino", "native"], kv_cache="int8")
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "native"])
def test_a_cache_in_8_bits_is_kept_so_and_verified(cached_in_8_bits, engine):
    from edgegen.verify import verify

    bundle = open_bundle(cached_in_8_bits.path)
    assert (bundle.manifest.kv_cache, bundle.manifest.precision) == ("int8", "fp32")
    artifact = bundle.artifact("model", engine)
    assert artifact.tolerance == "kv-int8"
    assert any("key/value cache in 8 bits" in note and "dB" in note for note in artifact.notes)
    rows = verify(bundle, engine)
    assert all(row.ok for row in rows)
    by_case = {(row.case, row.output): row.sqnr_db for row in rows}
    assert by_case["filled", "logits"] < 90  # an fp32 cache gives more than 100


@pytest.mark.slow
def test_the_native_engine_opens_such_a_bundle_with_the_small_cache(cached_in_8_bits):
    head_dim = 16

    def size(**provider):
        options = Options(threads=1, provider=provider)
        with deploy(cached_in_8_bits.path, "native", options=options) as deployment:
            return deployment.session("model").ready(1).cache_bytes

    assert size() == size(cache="int8")
    assert size() * 4 * head_dim == size(cache="fp32") * (head_dim + 4)


def test_the_formats_that_keep_a_cache_are_those_that_the_refusal_names():
    have = [
        name
        for name in rooms.names("edgegen.exporters")
        if hasattr(rooms.load("edgegen.exporters", name), "KV_CACHES")
    ]
    assert tuple(have) == eight_bit_cache.KEEPERS


@pytest.mark.slow
def test_an_engine_that_keeps_fp32_all_the_same_is_found_out(cached_in_8_bits, monkeypatch):
    from edgegen.runtimes import openvino

    bundle = open_bundle(cached_in_8_bits.path)
    monkeypatch.setitem(openvino.CACHES, "int8", "f32")
    before = (bundle.path / "manifest.json").read_bytes()
    try:
        with pytest.raises(UnsupportedError, match="does not keep the cache of this model in int8"):
            eight_bit_cache.settled(
                bundle.path,
                bundle.manifest,
                "int8",
                read_golden(bundle),
                lambda m: write_manifest(bundle.path, m, []),
            )
    finally:
        (bundle.path / "manifest.json").write_bytes(before)


@pytest.mark.parametrize(
    ("options", "kind", "message", "hint"),
    [
        ({"kv_cache": "int3"}, UsageError, "no key/value cache in 'int3'", "--kv-cache int8"),
        (
            {"kv_cache": "int8"},
            UnsupportedError,
            "onnx: a bundle cannot ask for an int8 key/value cache: only .* native and openvino",
            "--to native,openvino",
        ),
        (
            {"kv_cache": "int8", "formats": ["openvino", "torch"]},
            UnsupportedError,
            "torch: a bundle cannot ask for",
            "--to native,openvino",
        ),
    ],
)
def test_a_cache_that_no_engine_keeps_is_refused_at_once(tmp_path, options, kind, message, hint):
    with pytest.raises(kind, match=message) as error:
        export("not read", tmp_path / "out", **options)
    assert hint in error.value.hint


def test_what_has_no_cache_has_none_in_8_bits(tiny_checkpoint, tmp_path):
    with pytest.raises(UsageError, match="has no key/value cache"):
        export(str(tiny_checkpoint("vae")), tmp_path / "o", formats=["openvino"], kv_cache="int8")
