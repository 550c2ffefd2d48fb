"""Bundles whose adapters are switched at run time: each is torch's, and none is the base."""

import copy
import shutil

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgegen import adapters, bundle, checkpoint, measure, timing
from edgegen.adapter_files import Factors, fitted, save_peft
from edgegen.compress import Setting, Work, quantize
from edgegen.errors import (
    FormatError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.export import export
from edgegen.exporters import _adapters
from edgegen.proof import prove
from edgegen.quality.subject import of_deployment
from edgegen.runtimes import _adapters as files
from edgegen.runtimes import deploy
from edgegen.sources.checkpoint import model_of
from edgegen.spec import Options
from edgegen.verify import sqnr_db


def adapt(source, folder, pattern, rank, seed=0, scale=0.5):
    """Write a PEFT folder of random adapters on layers of a checkpoint."""
    net = checkpoint.load(source).net
    layers = {n: each for n, each in adapters.adaptable(net).items() if pattern in n}
    torch.manual_seed(seed)
    ranks = {n: min(rank, adapters.largest_rank(each)) for n, each in layers.items()}
    adapters.attach(net, ranks, scale=scale)
    for adapter in adapters.adapted(net).values():
        nn.init.normal_(adapter.B)
    save_peft(net, folder)
    return net.eval()


@pytest.fixture(scope="module")
def text(tmp_path_factory, tiny_checkpoint):
    """(bundle with two adapters, the adapted nets by name, the folder of all)."""
    folder = tmp_path_factory.mktemp("switched")
    source = tiny_checkpoint("gpt")
    nets = {"french": adapt(source, folder / "french", "o_proj", 2, scale=4.0)}
    nets["german"] = adapt(source, folder / "german", "mlp", 5, seed=1, scale=4.0)
    given = {name: folder / name for name in nets}
    export(str(source), folder / "b", formats=("onnx", "openvino", "torch"), adapters=given)
    export(str(source), folder / "plain", formats=("onnx", "openvino", "torch"))
    return folder / "b", nets, folder


def feed(rng=None):
    rng = rng or np.random.default_rng(0)
    return {
        "input_ids": rng.integers(0, 256, (2, 5)),
        "attention_mask": np.ones((2, 5), np.int64),
        "position_ids": np.tile(np.arange(5), (2, 1)),
    }


def run(deployment):
    session = deployment.session("model")
    pasts = {
        s.name: np.zeros((2, s.shape[1], 0, s.shape[3]), np.float32)
        for s in session.graph.inputs
        if s.name.startswith("past")
    }
    return session.run(feed() | pasts)["logits"]


@torch.no_grad()
def answer(net):
    rest = {n: torch.from_numpy(a) for n, a in feed().items()}
    return net(*rest.values(), *net.empty_cache(2))[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_each_adapter_is_torchs_and_without_one_it_is_the_base_to_the_last_bit(text, engine):
    path, nets, folder = text
    with deploy(path, engine) as deployment, deploy(folder / "plain", engine) as plain:
        base = run(plain)
        assert np.array_equal(run(deployment), base)
        for name in ("french", "german", "french"):
            deployment.use(name)
            found = run(deployment)
            np.testing.assert_allclose(found, answer(nets[name]), rtol=1e-3, atol=1e-3)
            assert np.abs(found - base).max() > 0.1
        deployment.use(None)
        assert np.array_equal(run(deployment), base)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_text_is_generated_with_the_adapter_in_use(text, engine):
    path, _, folder = text
    with deploy(path, engine) as deployment, deploy(folder / "plain", engine) as plain:
        base = plain.generate("hello", max_new_tokens=12)
        assert deployment.generate("hello", max_new_tokens=12) == base
        deployment.use("german")
        other = deployment.generate("hello", max_new_tokens=12)
        assert other != base
    with deploy(path, engine, options=Options(adapter="german")) as opened:
        assert opened.generate("hello", max_new_tokens=12) == other


@pytest.mark.slow
def test_the_golden_data_prove_every_adapter_on_every_engine(text):
    path, _, _ = text
    found = prove(path)
    assert all(row.ok for row in found.drifts)
    for engine in ("onnxruntime", "openvino", "torch"):
        cases = {row.case for row in found.drifts if row.engine == engine}
        assert {"odd", "odd@french", "odd@german", "decode-one@german"} <= cases
    manifest = bundle.open_bundle(path).manifest
    assert list(manifest.adapters) == ["base", "french", "german"]
    assert set(manifest.adapters.values()) <= set(manifest.files)


@pytest.mark.slow
def test_an_adapter_is_a_file_that_numpy_reads(text):
    path, nets, _ = text
    with np.load(path / "adapters/french.npz") as file:
        a = file["model/adapter.layers.0.self_attn.o_proj.A"]
        b = file["model/adapter.layers.0.self_attn.o_proj.B"]
        # Of layers that it leaves alone, zeros of the same rank.
        assert not file["model/adapter.layers.1.mlp.up_proj.B"].any()
    mine = adapters.adapted(nets["french"])["layers.0.self_attn.o_proj"]
    np.testing.assert_array_equal(a, mine.A.detach().numpy())
    np.testing.assert_allclose(b, 4 * mine.B.detach().numpy())


@pytest.mark.slow
def test_an_adapter_that_is_not_in_the_bundle_is_named_with_its_nearest(text):
    path, _, folder = text
    with deploy(path, "onnxruntime") as deployment:
        with pytest.raises(NotFoundError, match="no adapter 'frensh' in it") as error:
            deployment.use("frensh")
        assert error.value.hint == "did you mean 'french'?"
        with pytest.raises(NotFoundError, match="no adapter 'base' in it"):
            deployment.use("base")
    with deploy(folder / "plain", "onnxruntime") as plain:
        plain.use(None)
        with pytest.raises(NotFoundError) as error:
            plain.use("french")
    assert "--adapter NAME=FOLDER" in error.value.hint


@pytest.mark.slow
def test_an_altered_adapter_is_not_used(text, tmp_path):
    path = tmp_path / "b"
    shutil.copytree(text[0], path)
    file = path / "adapters/french.npz"
    file.write_bytes(file.read_bytes()[:-9])
    with deploy(path, "onnxruntime") as deployment:
        with pytest.raises(FormatError, match="altered or truncated"):
            deployment.use("french")
        deployment.use("german")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_rounded_base_takes_adapters_in_fp32(tiny_checkpoint, text, tmp_path, precision):
    given = {"french": text[2] / "french"}
    export(str(tiny_checkpoint("gpt")), tmp_path / "b", precisions=[precision], adapters=given)
    for engine in ("onnxruntime", "openvino"):
        with deploy(tmp_path / "b", engine) as deployment:
            base = run(deployment)
            deployment.use("french")
            assert np.abs(run(deployment) - base).max() > 0.1


def adapted_checkpoint(source, folder, pattern, rank=3):
    """A checkpoint whose adapters were not merged: its path, its net, and the net merged."""
    found = checkpoint.load(source)
    net = copy.deepcopy(found.net)
    layers = {n: each for n, each in adapters.adaptable(net).items() if pattern in n}
    ranks = {n: min(rank, adapters.largest_rank(each)) for n, each in layers.items()}
    torch.manual_seed(3)
    adapters.attach(net, ranks, scale=2.0)
    for adapter in adapters.adapted(net).values():
        nn.init.normal_(adapter.B)
    spec = msgspec.structs.replace(found.spec, adapters=ranks)
    checkpoint.save(folder, spec, net, (), found.tokenizer)
    whole = copy.deepcopy(net)
    adapters.merge(whole)
    return str(folder), found.net.eval(), whole.eval()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("family", "graph", "given"), [("gan", "generator", "latent"), ("vae", "encoder", "image")]
)
def test_a_checkpoint_with_adapters_of_any_layer_is_merged_when_on_and_the_base_when_off(
    tiny_checkpoint, tmp_path, family, graph, given, engine
):
    pattern = {"gan": "average", "vae": "encoder"}[family]
    path, base, whole = adapted_checkpoint(tiny_checkpoint(family), tmp_path / "styled", pattern)
    kind = {"onnxruntime": "onnx"}.get(engine, engine)
    (made,) = export(path, tmp_path / "b", formats=(kind,))
    assert list(made.manifest.adapters) == ["base", "styled"]
    assert made.manifest.adapter == "styled"
    plain = checkpoint.load(tiny_checkpoint(family))
    parts = checkpoint.graphs(plain.spec, plain.net)
    assert made.manifest.parameters == sum(
        p.numel() for module, _ in parts.values() for p in module.parameters()
    )
    assert any("styled (in use unless told)" in line for line in made.manifest.artifacts[0].notes)
    spec = made.graph(graph).inputs[0]
    x = torch.rand(3, *spec.shape[1:], generator=torch.Generator().manual_seed(0))
    with deploy(tmp_path / "b", engine) as deployment, torch.no_grad():
        assert deployment.adapter == "styled"
        session = deployment.session(graph)
        for name, net in (("styled", whole), (None, base), ("styled", whole)):
            deployment.use(name)
            found = session.run({given: x.numpy()})
            module, described = checkpoint.graphs(plain.spec, net)[graph]
            wanted = module(x)
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            for output, want in zip(described.outputs, wanted, strict=True):
                assert sqnr_db(want.numpy(), found[output.name]) > 80
    with deploy(tmp_path / "b", engine, options=Options(adapter="none")) as off:
        assert off.adapter == ""


@pytest.mark.slow
def test_adapters_of_a_text_checkpoint_are_switched_or_merged(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("gpt")
    path, base, whole = adapted_checkpoint(source, tmp_path / "french", "mlp")
    export(path, tmp_path / "b", formats=("onnx",))
    export(path, tmp_path / "m", formats=("onnx",), merge=True)
    merged = bundle.open_bundle(tmp_path / "m").manifest
    assert (merged.adapters, merged.adapter) == ({}, "")
    assert len(merged.graphs[0].inputs) == 3 + 2 * merged.loop.layers
    on, off = answer(whole), answer(base)
    assert np.abs(on - off).max() > 0.1
    with deploy(tmp_path / "m") as m, deploy(tmp_path / "b") as b:
        assert sqnr_db(on, run(m)) > 80
        assert sqnr_db(on, run(b)) > 80
        assert m.generate("hello", max_new_tokens=9) == b.generate("hello", max_new_tokens=9)
        b.use(None)
        assert sqnr_db(off, run(b)) > 80


@pytest.mark.slow
def test_an_adapter_of_a_folder_is_merged_too(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("vae")
    net = adapt(source, tmp_path / "a", "decoder", 3)
    given = {"a": tmp_path / "a"}
    export(str(source), tmp_path / "b", formats=("onnx",), adapters=given, merge=True)
    latent = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with deploy(tmp_path / "b", "onnxruntime") as deployment:
        found = deployment.session("decoder").run({"latent": latent.numpy()})["image"]
    assert sqnr_db(net.decoder(latent).detach().numpy(), found) > 80
    with pytest.raises(UsageError, match="--merge: 2 adapters: a, b"):
        export(str(source), tmp_path / "c", adapters=given | {"b": tmp_path / "a"}, merge=True)
    with pytest.raises(UsageError, match="vae: no adapters to merge") as error:
        export(str(source), tmp_path / "c", merge=True)
    assert "--adapter NAME=FOLDER" in error.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_beside_quantized_weights_are_switched(tiny_checkpoint, tmp_path, bits):
    found = checkpoint.load(tiny_checkpoint("gpt"))
    work = Work(found.spec, found.net, found.tokenizer)
    step = Setting(work, None, tmp_path / "step")
    work = quantize.apply(work, quantize.Options(bits=bits), step)
    ranks = {"layers.0.self_attn.o_proj": 2, "layers.1.mlp.down_proj": 3}
    adapters.attach(work.net, ranks, scale=4.0)
    torch.manual_seed(0)
    for adapter in adapters.adapted(work.net).values():
        nn.init.normal_(adapter.B)
    spec = msgspec.structs.replace(work.spec, adapters=ranks)
    checkpoint.save(tmp_path / "q", spec, work.net, (), work.tokenizer)
    export(str(tmp_path / "q"), tmp_path / "b")
    for engine in ("onnxruntime", "openvino"):
        with deploy(tmp_path / "b", engine) as deployment:
            on = run(deployment)
            assert sqnr_db(answer(work.net.eval()), on) > 25
            deployment.use(None)
            assert np.abs(run(deployment) - on).max() > 0.1
    with pytest.raises(UnsupportedError, match="its weight is computed from another"):
        export(str(tmp_path / "q"), tmp_path / "c", merge=True)


@pytest.mark.slow
def test_adapters_beside_rounded_inputs_are_refused(tiny_checkpoint, tmp_path):
    found = checkpoint.load(tiny_checkpoint("vae"))
    work = Work(found.spec, found.net)
    step = Setting(work, None, tmp_path / "step")
    work = quantize.apply(work, quantize.Options(bits=8, activations="static"), step)
    adapters.attach(work.net, {"decoder.first": 2})
    spec = msgspec.structs.replace(work.spec, adapters={"decoder.first": 2})
    checkpoint.save(tmp_path / "q", spec, work.net, ())
    with pytest.raises(UnsupportedError, match="first: its input is rounded to 8 bits") as error:
        export(str(tmp_path / "q"), tmp_path / "b")
    assert "leave the inputs in float" in error.value.hint


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        nn.Conv2d(5, 7, (3, 2), padding=1),
        nn.Conv2d(5, 7, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"),
        nn.Conv2d(5, 7, 3, padding="same"),
        nn.ConvTranspose2d(5, 7, (4, 3), stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(5, 7, 3, dilation=2),
    ],
)
def test_a_convolution_of_ones_and_zeros_adds_up_what_the_adapter_does(layer):
    torch.manual_seed(0)
    x = torch.randn((2, 5) if isinstance(layer, nn.Linear) else (2, 5, 9, 8))
    a, b = map(torch.randn, adapters.shapes(layer, 3))
    want = adapters.low_rank(layer, x, a, b)
    torch.testing.assert_close(_adapters.in_places(layer, x, a, b, layer(x)), want)


@pytest.mark.slow
def test_the_parts_of_a_vae_are_adapted_by_their_names(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint("vae")
    net = adapt(source, tmp_path / "a", "decoder.first", 3)
    export(str(source), tmp_path / "b", adapters={"a": tmp_path / "a"})
    latent = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for engine in ("onnxruntime", "openvino"):
        with deploy(tmp_path / "b", engine, options=Options(adapter="a")) as deployment:
            found = deployment.session("decoder").run({"latent": latent.numpy()})["image"]
        np.testing.assert_allclose(
            found, net.decoder(latent).detach().numpy(), rtol=1e-3, atol=1e-4
        )


@pytest.mark.slow
def test_a_checkpoint_with_adapters_beside_it_is_an_adapter_too(tiny_checkpoint, tmp_path):
    source = checkpoint.load(tiny_checkpoint("vae"))
    net = copy.deepcopy(source.net)
    adapters.attach(net, {"decoder.first": 2}, scale=2.0)
    nn.init.normal_(adapters.adapted(net)["decoder.first"].B)
    spec = msgspec.structs.replace(source.spec, adapters={"decoder.first": 2})
    checkpoint.save(tmp_path / "adapted", spec, net, ())
    given = {"a": tmp_path / "adapted"}
    export(str(source.path), tmp_path / "b", formats=("onnx",), adapters=given)
    with pytest.raises(UsageError, match="a checkpoint without adapters"):
        export(str(source.path), tmp_path / "c", adapters={"a": source.path})


def test_what_cannot_be_is_refused_before_anything_is_traced(tiny_checkpoint, tmp_path):
    gpt, vae = str(tiny_checkpoint("gpt")), str(tiny_checkpoint("vae"))
    adapt(gpt, tmp_path / "a", "q_proj", 2)
    given = {"a": tmp_path / "a"}
    with pytest.raises(MismatchError, match=r"an adapter of layers\.0\.self_attn\.q_proj, which"):
        export(vae, tmp_path / "b", adapters=given)
    with pytest.raises(NotFoundError, match=r"adapter_config\.json"):
        export(gpt, tmp_path / "b", adapters={"a": tmp_path / "nothing"})
    for name in ("base", "none", "a/b", "", "a@b"):
        with pytest.raises(UsageError, match="cannot be an adapter's name"):
            export(gpt, tmp_path / "b", adapters={name: tmp_path / "a"})
    with pytest.raises(UsageError, match="--static and --adapter exclude each other") as error:
        export(gpt, tmp_path / "b", adapters=given, static={"batch": 1, "seq": 8})
    assert "merge" in error.value.hint
    for kind in ("native", "fused"):
        said = f"{kind}: adapters cannot be switched in it"
        with pytest.raises(UnsupportedError, match=said) as refused:
            export(gpt, tmp_path / "b", formats=(kind,), adapters=given)
        assert "--merge" in refused.value.hint
    assert not (tmp_path / "b").exists()


def test_the_models_own_adapter_goes_by_its_name_where_that_can_be_one(tiny_checkpoint):
    found = checkpoint.load(tiny_checkpoint("vae"))
    adapters.attach(found.net, {"decoder.first": 2})
    parts, own = _adapters.taken_off(model_of(found.path, found.spec, found.net).parts)
    assert list(own) == ["decoder"]
    assert not adapters.adapted(parts["decoder"].module)
    assert adapters.adapted(found.net)  # what came in is left alone
    for name, called in (("french", "french"), ("none", "adapter"), ("with space", "adapter")):
        assert _adapters.named(parts, {}, own, name) == ({called: own}, called)
    with pytest.raises(UsageError, match="the model's own adapter has that name"):
        _adapters.named(parts, {"french": "somewhere"}, own, "french")


def test_an_adapter_that_does_not_fit_is_refused_with_both_shapes(tiny_checkpoint, tmp_path):
    net = checkpoint.load(tiny_checkpoint("vae")).net
    right = Factors(torch.zeros(2, 16), torch.zeros(net.decoder.first.out_features, 2), 1.0)
    wrong = right._replace(b=torch.zeros(net.decoder.first.out_features, 3))
    with pytest.raises(MismatchError, match=r"A \[2, 16\] and B \[\d+, 3\], wanted A \[2, 16\]"):
        fitted(net, {"decoder.first": wrong}, "there")
    wide = Factors(torch.zeros(17, 16), torch.zeros(net.decoder.first.out_features, 17), 1.0)
    with pytest.raises(MismatchError, match="rank 17, the layer's smaller side is 16"):
        fitted(net, {"decoder.first": wide}, "there")


@pytest.mark.slow
def test_profiles_and_judgements_say_which_adapter_was_in_use(text):
    path, _, _ = text
    for name, called in (("french", "b+french onnxruntime cpu"), ("none", "b onnxruntime cpu")):
        few = measure.job(path, runtime="onnxruntime", repeats=1, warmup=0, adapter=name)
        found = timing.measure(msgspec.structs.replace(few, operators=False))
        assert found.name() == called
    with deploy(path, "onnxruntime", options=Options(adapter="german")) as deployment:
        assert of_deployment(deployment).name == "b+german"
    with pytest.raises(NotFoundError, match="no adapter 'frensh' in it"):
        deploy(path, "onnxruntime", options=Options(adapter="frensh"))


def test_an_engine_that_cannot_switch_says_so(image_bundle):
    with (
        deploy(image_bundle, "callable") as deployment,
        pytest.raises(UnsupportedError, match="callable cannot switch adapters") as error,
    ):
        files.feed(deployment.session("decoder"), "callable", {})
    assert "onnxruntime or openvino" in error.value.hint


def test_ranks_are_brought_to_the_largest_and_scales_into_b():
    net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.ConvTranspose2d(2, 3, 2)})
    torch.manual_seed(0)
    found = {
        "a": Factors(torch.randn(1, 4), torch.randn(3, 1), 2.0),
        "b": Factors(torch.randn(3, 2), torch.randn(3, 3, 2, 2), 0.5),
    }
    feed = _adapters.arrays(net, ["a", "b"], found)
    assert [array.shape for array in feed.values()] == [(3, 4), (3, 3), (3, 2), (3, 3, 2, 2)]
    np.testing.assert_allclose(
        feed["adapter.a.B"] @ feed["adapter.a.A"],
        2 * (found["a"].b @ found["a"].a).numpy(),
        rtol=1e-6,
    )
    assert not feed["adapter.a.A"][1:].any()
    zeros = _adapters.arrays(net, ["a", "b"], {})
    assert [array.shape for array in zeros.values()] == [(1, 4), (3, 1), (1, 2), (1, 3, 2, 2)]
    assert not any(array.any() for array in zeros.values())


def test_an_onnx_file_takes_no_adapters(tmp_path):
    part = (tmp_path / "model.onnx", None)
    with pytest.raises(UnsupportedError, match="not on an ONNX file"):
        _adapters.place({"model": part}, {}, tmp_path)
