"""The method as a whole: what it promises for each family, and what it refuses."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the methods are torch's")

from torch import nn  # noqa: E402

from edgegen import checkpoint  # noqa: E402
from edgegen.batches import Material  # noqa: E402
from edgegen.compress import Setting, Target, Work  # noqa: E402
from edgegen.compress._probe import probe  # noqa: E402
from edgegen.compress._rounding import sqnr_db  # noqa: E402
from edgegen.compress.quantize import Options, apply  # noqa: E402
from edgegen.errors import MismatchError, UnsupportedError, UsageError  # noqa: E402
from edgegen.folding import stored  # noqa: E402
from edgegen.quantized import schemes  # noqa: E402
from edgegen.spec import Scheme  # noqa: E402

SMALL = {"samples": 4, "tokens": 16}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(tiny_checkpoint):
    """`opened("gpt")`: a tiny model to work on."""

    def open_(family):
        found = checkpoint.load(tiny_checkpoint(family))
        return Work(found.spec, found.net, found.tokenizer)

    return open_


def material_of(family):
    rng = np.random.default_rng(0)
    if family == "gpt":
        # Bytes that follow one another in a pattern, with noise.
        ids = (np.arange(2000) * 7 + rng.integers(0, 3, 2000)) % 250
        return Material(ids[:1500], ids[1500:], None, 33)
    images = rng.random((40, 1, 8, 8), np.float32)
    return Material(images[:30], images[30:], None)


def setting_of(work, material=None):
    return Setting(work, material, Path("unused"))


def outputs(work, net, material=None):
    found = probe(work, setting_of(work, material), samples=8, tokens=16, drawn=material is None)
    with torch.no_grad():
        return torch.cat([o.flatten() for batch in found.batches for o in found.run(net, batch)])


WEIGHT_ONLY = [
    {"bits": 8},
    {"bits": 4, "group_size": 16},
    {"bits": 4, "group_size": 16, "clip": True, "symmetric": True},
    {"bits": 3, "method": "hqq"},
    {"bits": 4, "method": "gptq"},
    {"bits": 4, "method": "codebook"},
]


@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
@pytest.mark.parametrize("options", WEIGHT_ONLY, ids=lambda o: "-".join(map(str, o.values())))
def test_every_rounding_works_on_every_family(opened, family, options):
    work, material = opened(family), material_of(family)
    before = {n: t.clone() for n, t in work.net.state_dict().items()}
    found = apply(work, Options(**options, **SMALL), setting_of(work, material))
    assert all(torch.equal(t, before[n]) for n, t in work.net.state_dict().items())
    assert found.spec.layers == schemes(found.net) != {}
    assert set(found.notes["layers"]) == set(found.spec.layers)
    floor = {8: 30, 4: 8, 3: 3}[options["bits"]]
    data = material if family == "gpt" else None
    assert sqnr_db(outputs(work, work.net, data), outputs(work, found.net, data)) > floor
    json.dumps(found.notes)


def test_a_saved_quantized_model_comes_back_bit_for_bit(opened, tmp_path):
    work = opened("gpt")
    found = apply(work, Options(bits=4, group_size=16), setting_of(work))
    checkpoint.save(tmp_path / "q", found.spec, found.net, (), found.tokenizer)
    again = checkpoint.load(tmp_path / "q")
    assert again.spec == found.spec
    for name in found.spec.layers:
        mine, theirs = found.net.get_submodule(name), again.net.get_submodule(name)
        assert torch.equal(mine.weight, theirs.weight)
        assert np.array_equal(stored(mine).q, stored(theirs).q)


def test_the_float_weights_beside_the_integers_lie_on_the_grid(opened):
    work = opened("gpt")
    for options in WEIGHT_ONLY:
        found = apply(work, Options(**options, **SMALL), setting_of(work, material_of("gpt")))
        for name in found.spec.layers:
            layer = found.net.get_submodule(name)
            original = layer.parametrizations["weight"].original
            assert torch.allclose(layer.weight, original, atol=1e-6), (options, name)


def test_weights_of_a_coarse_float_grid_are_kept_as_they_are(opened):
    work = opened("gpt")
    layer = work.net.layers[0].mlp.up_proj  # (48, 32)
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (48, 32), generator=generator).float()
    q[:, 0], q[:, 1] = 0, 15
    with torch.no_grad():
        layer.weight.copy_(q * 0.03 - 0.2)
    name = "layers.0.mlp.up_proj"
    found = apply(work, Options(bits=4, group_size=32), setting_of(work))
    kept = found.net.get_submodule(name)
    assert torch.allclose(kept.weight, layer.weight, atol=1e-6)
    assert np.array_equal(stored(kept).q, q.numpy())
    assert "already" in found.notes["grid"][name]
    whole = apply(work, Options(bits=4, group_size=32, zero="whole"), setting_of(work))
    assert not torch.allclose(whole.net.get_submodule(name).weight, layer.weight, atol=1e-3)
    eight = apply(work, Options(bits=8), setting_of(work))
    assert "int4-g32 would lose nothing" in eight.notes["grid"][name]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_look_at_inputs_keep_outputs_nearer(opened, method):
    work, material = opened("gpt"), material_of("gpt")
    options = {"bits": 3, "group_size": 0, "samples": 16, "tokens": 32, "embedding_bits": 0}
    errors = {}
    for name in ("rtn", method):
        found = apply(work, Options(method=name, **options), setting_of(work, material))
        errors[name] = -sqnr_db(
            outputs(work, work.net, material), outputs(work, found.net, material)
        )
    assert errors[method] < errors["rtn"]


@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "entropy"])
def test_static_inputs_are_calibrated(opened, family, observer):
    work, material = opened(family), material_of(family)
    options = Options(activations="static", observer=observer, **SMALL)
    found = apply(work, options, setting_of(work, material))
    rounded = [s for s in found.spec.layers.values() if s.input_bits == 8]
    assert rounded and all(s.bits == 8 and s.group_size == 0 for s in rounded)
    data = material if family == "gpt" else None
    floor = 10 if observer == "entropy" else 15  # so few values make a ragged histogram
    assert sqnr_db(outputs(work, work.net, data), outputs(work, found.net, data)) > floor
    assert "w8a8" in found.notes["precisions"]


def test_smoothing_and_equalising_go_with_static_inputs(opened):
    work, material = opened("gpt"), material_of("gpt")
    options = Options(activations="static", smooth="smoothquant", **SMALL)
    found = apply(work, options, setting_of(work, material))
    assert set(found.notes["smoothquant alpha"].values()) == {0.5}
    assert sqnr_db(outputs(work, work.net, material), outputs(work, found.net, material)) > 15
    images = opened("vae")
    options = Options(activations="static", smooth="equalise", bias_correction=True, **SMALL)
    found = apply(images, options, setting_of(images))
    assert found.notes["equalised"] and found.notes["bias corrected"]
    assert sqnr_db(outputs(images, images.net), outputs(images, found.net)) > 15


def test_a_corrected_bias_gives_outputs_the_mean_they_had(opened):
    work = opened("gan")

    def shift(net):
        return float((outputs(work, net).mean() - outputs(work, work.net).mean()).abs())

    plain = apply(work, Options(bits=3, group_size=0), setting_of(work))
    fixed = apply(
        work, Options(bits=3, group_size=0, bias_correction=True, **SMALL), setting_of(work)
    )
    assert shift(fixed.net) < shift(plain.net)


def test_text_is_calibrated_on_what_the_model_says_itself(opened):
    work = opened("gpt")
    options = Options(bits=4, method="gptq", calibration="self", **SMALL)
    found = apply(work, options, setting_of(work))
    assert found.notes["calibration"] == "4 x 16 tokens sampled from the model itself"


def test_the_native_engine_gets_weights_without_zero_points(opened):
    work = opened("gpt")
    for runtime, symmetric in (("onnxruntime", False), ("native", True)):
        setting = setting_of(work)._replace(target=Target(runtime))
        spec = apply(work, Options(bits=4, group_size=16), setting).spec
        assert {scheme.symmetric for scheme in spec.layers.values() if scheme.bits == 4} == {
            symmetric
        }


def test_dynamic_inputs_are_left_to_the_engine_and_said(opened):
    work = opened("gpt")
    found = apply(work, Options(activations="dynamic"), setting_of(work))
    assert "at run time" in found.notes["dynamic"]
    assert all(s.input_bits == 0 for s in found.spec.layers.values())
    with pytest.raises(UnsupportedError, match="linear layers") as error:
        apply(opened("vae"), Options(activations="dynamic"), setting_of(work))
    assert "static" in error.value.hint


def test_patterns_keep_layers_and_give_them_their_own_precision(opened):
    work = opened("gpt")
    options = Options(bits=4, keep=("*.0.mlp.*",), layers={"*.v_proj": "int8"})
    found = apply(work, options, setting_of(work))
    assert "layers.0.mlp.up_proj" not in found.spec.layers
    assert found.notes["float"]["layers.0.mlp.up_proj"] == "asked to keep"
    assert found.spec.layers["layers.1.self_attn.v_proj"] == Scheme(8)
    assert found.spec.layers["layers.1.self_attn.q_proj"].bits == 4
    with pytest.raises(UsageError, match="matches no layer") as error:
        apply(work, Options(keep=("lm_hed",)), setting_of(work))
    assert "nearest" in error.value.hint
    with pytest.raises(UsageError, match="kept float"):
        apply(work, Options(keep=("*",)), setting_of(work))


def test_a_group_size_that_does_not_divide_is_made_smaller_and_said(opened):
    work = opened("gpt")
    found = apply(work, Options(bits=4, group_size=64), setting_of(work))
    sizes = {name: scheme.group_size for name, scheme in found.spec.layers.items()}
    assert sizes["layers.0.mlp.up_proj"] == 32 and sizes["layers.0.mlp.down_proj"] == 16
    note = found.notes["group size"]["layers.0.mlp.down_proj"]
    assert note == "group size 64 does not divide 48 columns: groups of 16"
    images = apply(opened("gan"), Options(bits=4, group_size=128), setting_of(opened("gan")))
    assert any(note.endswith("one scale a row") or "groups of" in note
               for note in images.notes.get("group size", {"": "groups of"}).values())  # fmt: skip


@pytest.mark.parametrize("budget", [{"average_bits": 6.5}, {"size_mb": 0.021}])
def test_mixed_precision_keeps_to_its_budget(opened, budget):
    work, material = opened("gpt"), material_of("gpt")
    options = Options(bits="mixed", choices=("int8", "int4-g16", "int4"), **budget)
    found = apply(work, options, setting_of(work, material))
    mixed = found.notes["mixed"]
    if "average_bits" in budget:
        assert mixed["average bits"] <= 6.5
    else:
        assert found.notes["weights_mb"][1] <= 0.021 < found.notes["weights_mb"][0]
    assert mixed["measure"] == "kl_nats" and mixed["ledger sum"] > 0
    with pytest.raises(UsageError, match="at least"):
        apply(work, Options(bits="mixed", average_bits=2.0), setting_of(work, material))


def test_mixed_precision_under_a_quality_budget_is_measured(opened):
    work, material = opened("gpt"), material_of("gpt")
    options = Options(bits="mixed", quality="+1%", choices=("int8", "int4"))
    found = apply(work, options, setting_of(work, material))
    assert found.notes["mixed"]["measured loss"] <= np.log1p(0.01)
    images = opened("vae")
    found = apply(images, Options(bits="mixed", quality="25dB"), setting_of(images))
    assert found.notes["mixed"]["measured loss"] <= 10**-2.5
    for other, data, quality in ((work, material, "25dB"), (images, None, "+1%")):
        with pytest.raises(UsageError, match="is no bound of"):
            apply(other, Options(bits="mixed", quality=quality), setting_of(other, data))


REFUSED = [
    ({"method": "gptq"}, "gptq needs data", "hqq"),
    ({"method": "awq"}, "awq needs data", "--data"),
    ({"smooth": "smoothquant"}, "smoothquant needs data", "self"),
    ({"activations": "static"}, "static activations needs data", "--data"),
    ({"bits": "mixed", "average_bits": 5}, "mixed precision needs data", "--data"),
    ({"bits": "mixed"}, "0 budgets", "exactly one"),
    ({"bits": "mixed", "average_bits": 5, "size_mb": 1}, "2 budgets", "exactly one"),
    ({"bits": 4, "size_mb": 1}, "is for mixed precision", "mixed"),
    ({"bits": 4, "activations": "static"}, "static activations with 4 bits", "bits = 8"),
    ({"activations": "static", "group_size": 32}, "with groups of 32", "leave group_size out"),
    ({"method": "codebook", "activations": "dynamic"}, "codebooks", "rtn"),
    ({"layers": {"*": "int9"}}, "is no precision", "int4-g32"),
]


@pytest.mark.parametrize(("options", "message", "hint"), REFUSED)
def test_what_cannot_be_is_refused_with_the_fix(opened, options, message, hint):
    work = opened("gpt")
    with pytest.raises(UsageError, match=message) as error:
        apply(work, Options(**options), setting_of(work))
    assert hint in error.value.hint


@pytest.mark.parametrize("options", [{"method": "awq"}, {"smooth": "smoothquant"}])
def test_scales_for_the_norms_of_a_decoder_are_refused_elsewhere(opened, options):
    work = opened("vae")
    with pytest.raises(UnsupportedError, match="decoder's norms") as error:
        apply(work, Options(**options), setting_of(work))
    assert "equalise" in error.value.hint
    with pytest.raises(UnsupportedError, match="equalise finds no two"):
        gpt = opened("gpt")
        apply(gpt, Options(smooth="equalise"), setting_of(gpt))


def test_a_model_that_is_quantized_or_broken_is_refused(opened):
    work = opened("gpt")
    once = apply(work, Options(), setting_of(work))
    with pytest.raises(UnsupportedError, match="quantized already"):
        apply(once, Options(), setting_of(work))
    adapted = work._replace(spec=msgspec.structs.replace(work.spec, adapters={"norm": 4}))
    with pytest.raises(UnsupportedError, match="adapters"):
        apply(adapted, Options(), setting_of(work))
    with torch.no_grad():
        work.net.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MismatchError, match=r"layers\.1\.mlp\.up_proj: its weight is not finite"):
        apply(work, Options(), setting_of(work))


def bad_materials():
    ids, images = material_of("gpt"), material_of("vae")
    yield "gpt", ids._replace(training=np.full(1500, 7)), "all tokens are 7"
    yield "gpt", ids._replace(training=np.arange(1500)), "token 1499, the model has 257"
    yield "gpt", images, "images, but the model takes text"
    yield "vae", ids, "text, but the model has none"
    yield (
        "vae",
        images._replace(training=np.zeros((8, 3, 8, 8), np.float32)),
        r"images of \[3, 8, 8\]",
    )
    yield "vae", images._replace(training=np.zeros((8, 1, 8, 8), np.float32)), "all pixels are 0"
    yield "vae", images._replace(training=np.zeros((0, 1, 8, 8), np.float32)), "empty"
    yield "vae", images._replace(training=np.full((8, 1, 8, 8), np.nan, np.float32)), "not finite"


@pytest.mark.parametrize(("family", "material", "message"), list(bad_materials()))
def test_calibration_data_that_does_not_fit_is_refused(opened, family, material, message):
    work = opened(family)
    with pytest.raises(UsageError, match=message) as error:
        apply(work, Options(method="gptq", bits=4), setting_of(work, material))
    assert error.value.hint


def test_gptq_knows_convolutions_and_says_where_it_does_not(opened):
    work = opened("vae")
    found = apply(work, Options(bits=4, method="gptq", **SMALL), setting_of(work))
    transposed = [n for n, m in found.net.named_modules() if isinstance(m, nn.ConvTranspose2d)]
    assert set(found.notes["grid"]) == set(transposed)
    assert "GPTQ is for linear layers and Conv2d" in found.notes["grid"][transposed[0]]
