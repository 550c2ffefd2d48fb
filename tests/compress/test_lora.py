"""Adapters trained on every family, on quantized and on NF4 bases; merged and beside the model."""

import copy
import json

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgegen import adapters, checkpoint, nf4, quantized, rooms
from edgegen.adapter_files import CONFIG, read_peft
from edgegen.batches import Material
from edgegen.compress import Setting, Work, lora
from edgegen.compress import _inside as inside
from edgegen.compress.lora import Options
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.spec import ModelSpec, Scheme

GPT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
IMAGES = {"image_size": 8, "width": 4, "latent": 3}
CONFIG_OF = {"gpt": GPT, "vae": IMAGES, "gan": IMAGES}
QUICK = {"steps": 6, "batch": 4, "lr": 3e-2, "every": 3, "rank": 2}
LONGER = QUICK | {"steps": 60, "every": 10}
LATENT = torch.randn(16, 3, generator=torch.Generator().manual_seed(9))
IDS = torch.arange(12)[None] % 7


def work(family, seed=0):
    torch.manual_seed(seed)
    spec = ModelSpec(family, CONFIG_OF[family])
    return Work(spec, checkpoint.build(spec).eval())


@pytest.fixture
def setting(tmp_path):
    def make(original, folder="step", data=True):
        config = rooms.load("edgegen.models", original.spec.family).Config
        config = msgspec.convert(original.spec.config, config)
        rng = np.random.default_rng(0)
        if original.spec.family == "gpt":
            tokens = np.arange(2000) % 7 + rng.integers(0, 2, 2000)
            material = Material(tokens, tokens, config, 17)
        else:
            images = np.tile(rng.random((1, 1, 8, 8), np.float32), (40, 1, 1, 1)) ** 2
            images = images * rng.uniform(0.5, 1, (40, 1, 1, 1)).astype(np.float32)
            material = Material(images, images, config)
        return Setting(original, material if data else None, tmp_path / folder)

    return make


@torch.no_grad()
def answer(found):
    """What the exported net says."""
    if found.spec.family == "gpt":
        rest = torch.ones_like(IDS), torch.arange(12)[None], *found.net.empty_cache(1)
        return found.net(IDS, *rest)[0]
    return (found.net.average if found.spec.family == "gan" else found.net.decoder)(LATENT)


def rebuilt(found):
    """As it comes back from a checkpoint."""
    net = checkpoint.build(found.spec)
    checkpoint.fill(net, found.net.state_dict(), "here")
    return found._replace(net=net.eval())


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_adapters_learn_and_the_checkpoint_says_where_they_are(setting, family, merge):
    before = work(family)
    held = {n: t.clone() for n, t in before.net.state_dict().items()}
    after = lora.apply(before, Options(merge=merge, **LONGER), setting(before))
    curve = after.notes["curve"]
    if family != "gan":  # whose two players pull at the figure from both sides
        assert curve[-1]["loss"] < curve[0]["loss"]
    assert (after.spec.adapters == {}) == merge
    assert (after.spec == before.spec) == merge
    assert after.notes["adapters"] == ("merged" if merge else "beside the model")
    assert not torch.equal(answer(after), answer(before))
    assert torch.equal(answer(rebuilt(after)), answer(after))
    assert all(torch.equal(t, held[n]) for n, t in before.net.state_dict().items())
    flags = {n: p.requires_grad for n, p in before.net.named_parameters()}
    assert flags == {n: p.requires_grad for n, p in after.net.named_parameters() if n in flags}


@pytest.mark.parametrize("family", ["gpt", "vae", "gan"])
def test_merged_equals_beside(setting, family):
    before = work(family)
    beside = lora.apply(before, Options(merge=False, **QUICK), setting(before, "a"))
    merged = lora.apply(before, Options(merge=True, **QUICK), setting(before, "b"))
    torch.testing.assert_close(answer(merged), answer(beside), rtol=1e-4, atol=1e-5)


def test_only_the_exported_generator_is_adapted(setting):
    before = work("gan")
    after = lora.apply(before, Options(merge=False, **QUICK), setting(before))
    assert all(name.startswith("average.") for name in after.spec.adapters)
    assert adapters.adapted(after.net).keys() == after.spec.adapters.keys()
    merged = lora.apply(before, Options(**QUICK), setting(before, "merged"))
    assert torch.equal(merged.net.generator(LATENT), merged.net.average(LATENT))


def test_layers_too_small_for_the_rank_are_left_out_and_said(setting):
    before = work("gan")
    after = lora.apply(before, Options(rank=4, steps=1), setting(before))
    assert after.notes["left out: they are smaller than the rank"] == [
        "average.first",
        "average.body.5",
    ]
    with pytest.raises(UsageError, match=r"average.first: rank 4, wanted 1 to 3"):
        lora.apply(before, Options(rank=4, layers=("*.first",)), setting(before))


def quantize(found, bits=3):
    """To nearest, the MLPs only, with a zero point a channel."""
    layers = {n: Scheme(bits) for n in adapters.adaptable(found.net) if "mlp" in n}
    net = copy.deepcopy(found.net)
    quantized.attach(net, layers)
    for name in layers:
        layer = net.get_submodule(name)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        exact = layer.weight.detach().clone()
        quantized.set_weight(layer, scale)
        layer.weight = layer.weight.detach()  # on the grid, as every method leaves it
        assert not torch.equal(layer.weight, exact)
    return found._replace(spec=msgspec.structs.replace(found.spec, layers=layers), net=net)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A GPT that says what its data says."""
    from edgegen.models import gpt

    found = work("gpt")
    config = msgspec.convert(GPT, gpt.Config)
    tokens = np.arange(4000) % 7
    material = Material(tokens, tokens, config, 17)
    optimizer = torch.optim.Adam(found.net.parameters(), 1e-2)
    rng = np.random.default_rng(0)
    for _ in range(60):
        starts = rng.integers(0, 3000, 8)
        batch = torch.from_numpy(np.stack([tokens[s : s + 17] for s in starts]))
        optimizer.zero_grad()
        gpt.loss(found.net, batch, "net", None)["loss"].backward()
        optimizer.step()
    return found, material


@pytest.mark.slow
def test_inside_the_rounding_the_gap_of_a_quantized_model_closes(learnt, tmp_path):
    original, material = learnt
    hurt = quantize(original, bits=2)
    options = Options(**LONGER, data=0, output=1)
    after = lora.apply(hurt, options, Setting(original, material, tmp_path))

    def gap(found):
        return (answer(found) - answer(original)).square().mean().item()

    assert gap(after) < 0.5 * gap(hurt)
    # As small as it was: the same schemes, no adapters, and every weight on its grid.
    assert after.spec == hurt.spec
    assert after.notes["adapters"] == "merged inside the rounding of 6 quantized layers"
    for name in after.spec.layers:
        layer, before = after.net.get_submodule(name), hurt.net.get_submodule(name)
        assert len(layer.parametrizations["weight"]) == 1
        original_weight = layer.parametrizations["weight"].original
        assert torch.equal(original_weight, layer.weight)
        step = quantized.quantizer_of(layer)
        assert torch.equal(step.scale, quantized.quantizer_of(before).scale)
    assert torch.equal(answer(rebuilt(after)), answer(after))


@pytest.mark.slow
def test_beside_a_quantized_base_the_base_stays(learnt, tmp_path):
    original, material = learnt
    hurt = quantize(original, bits=2)
    options = Options(**LONGER, merge=False, layers=("*.mlp.*",), data=0, output=1)
    after = lora.apply(hurt, options, Setting(original, material, tmp_path))
    assert after.spec.layers == hurt.spec.layers
    for name in after.spec.layers:
        mine, before = after.net.get_submodule(name), hurt.net.get_submodule(name)
        assert torch.equal(mine.weight, before.weight)
    assert after.notes["curve"][-1]["loss"] < after.notes["curve"][0]["loss"]
    assert torch.equal(answer(rebuilt(after)), answer(after))


def test_a_new_adapter_inside_the_rounding_changes_nothing_nor_does_remembering(learnt):
    original, _ = learnt
    hurt = quantize(original)
    before = answer(hurt)
    for name in hurt.spec.layers:
        layer = hurt.net.get_submodule(name)
        inside.remember(layer, original.net.get_submodule(name).weight.detach())
        inside.insert(layer, 2, 1.0)
    assert torch.equal(answer(hurt), before)
    for name in hurt.spec.layers:
        layer = hurt.net.get_submodule(name)
        # To nearest, every exact weight lies in the cell of its grid point.
        held = layer.parametrizations["weight"].original
        exact = original.net.get_submodule(name).weight
        torch.testing.assert_close(held, exact, rtol=0, atol=0.01)
        inside.settle(layer)
    assert torch.equal(answer(hurt), before)


@pytest.mark.slow
def test_nf4_learns_beside_rounded_weights_and_says_that_they_stay_so(setting):
    before = work("gpt")
    after = lora.apply(before, Options(base="nf4", merge=False, **LONGER), setting(before))
    assert "NF4" in after.notes["base"]
    for name in after.spec.adapters:
        weight = before.net.get_submodule(name).weight
        rounded = nf4.decode(*nf4.encode(weight), tuple(weight.shape))
        assert torch.equal(after.net.get_submodule(name).weight, rounded)
    assert after.notes["curve"][-1]["loss"] < after.notes["curve"][0]["loss"]
    merged = lora.apply(before, Options(base="nf4", **LONGER), setting(before, "merged"))
    torch.testing.assert_close(answer(merged), answer(after), rtol=1e-4, atol=1e-5)
    assert set(merged.net.state_dict()) == set(before.net.state_dict())


def test_nf4_on_a_quantized_weight_is_refused(learnt, tmp_path):
    original, material = learnt
    with pytest.raises(UnsupportedError, match="is quantized already") as error:
        lora.apply(
            quantize(original),
            Options(base="nf4", layers=("*.mlp.*",)),
            Setting(original, material, tmp_path),
        )
    assert 'base = "as it is"' in error.value.hint


def test_adapters_are_written_and_read_as_peft_does(setting, tmp_path):
    before = work("gpt")
    folder = tmp_path / "adapter"
    options = Options(merge=False, save=str(folder), **QUICK)
    beside = lora.apply(before, options, setting(before))
    assert beside.notes["saved"] == str(folder)
    assert json.loads((folder / CONFIG).read_text())["r"] == 2
    again = lora.apply(before, Options(adapter=str(folder), steps=0, merge=False), setting(before))
    assert torch.equal(answer(again), answer(beside))
    merged = lora.apply(before, Options(adapter=str(folder), steps=0), setting(before))
    torch.testing.assert_close(answer(merged), answer(beside), rtol=1e-4, atol=1e-5)
    further = lora.apply(
        before,
        Options(adapter=str(folder), merge=False, **(QUICK | {"steps": 1})),
        setting(before, "more"),
    )
    assert further.spec.adapters == beside.spec.adapters
    assert set(read_peft(folder)) == set(beside.spec.adapters)


def test_adapters_that_are_there_are_merged_with_the_new_ones(setting):
    before = work("vae")
    options = Options(merge=False, layers=("decoder.first",), **QUICK)
    first = lora.apply(before, options, setting(before))
    with pytest.raises(UsageError, match=r"decoder.first has an adapter already"):
        lora.apply(first, options, setting(before, "again"))
    options = Options(merge=False, layers=("encoder.head",), **QUICK)
    second = lora.apply(first, options, setting(before, "second"))
    assert second.spec.adapters == {"decoder.first": 2, "encoder.head": 2}
    options = Options(layers=("decoder.body.1",), **QUICK)
    third = lora.apply(second, options, setting(before, "third"))
    assert third.spec.adapters == {}
    assert not adapters.adapted(third.net)


def test_auto_gives_the_layers_that_matter_most_more_of_the_same_budget():
    layers = {"a": nn.Linear(40, 60), "b": nn.Linear(40, 60), "c": nn.Linear(40, 60)}
    ranks = lora.spread({"a": 3.0, "b": 1.0, "c": 0.001}, layers, mean=4)
    assert ranks == {"a": 9, "b": 3}
    assert lora.spread({"a": 1.0, "b": 0.0, "c": 0.0}, layers, mean=4) == {"a": 12}
    assert lora.spread(dict.fromkeys(layers, 0.0), layers, mean=4) == dict.fromkeys(layers, 4)
    small = {"a": nn.Linear(40, 2), "b": nn.Linear(40, 60)}
    assert lora.spread({"a": 9.0, "b": 1.0}, small, mean=4)["a"] == 2


def test_auto_measures_what_each_layer_is_worth(setting, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = work("gpt")
    options = Options(rank="auto", mean_rank=2, merge=False, steps=1)
    after = lora.apply(before, options, setting(before))
    assert len(set(after.spec.adapters.values())) > 1
    hurt = quantize(before)
    of_rounded = lora.apply(hurt, options, setting(before, "rounded"))
    assert of_rounded.spec.adapters != after.spec.adapters


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"rank": 0}, "rank is 0", "1 or more"),
        ({"rank": 17, "layers": ("*.mlp.*",)}, "rank 17, wanted 1 to 16", "at most 16"),
        ({"layers": ("*.nlp.*",)}, r"layers: '\*.nlp.\*' matches no layer", "nearest"),
        ({"alpha": 0.0}, "alpha is 0", "above 0"),
        ({"dropout": 1.0}, "dropout is 1", "below 1"),
        ({"steps": 0}, "steps is 0", "1 or more"),
        ({"data": 0.0}, "nothing is compared", "output = 1"),
        ({"lr": -1.0}, "lr is -1", "above 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(setting, options, said, hint):
    before = work("gpt")
    with pytest.raises(UsageError, match=said) as error:
        lora.apply(before, Options(**({"steps": 1} | options)), setting(before))
    assert hint in error.value.hint


def test_without_data_the_familys_loss_is_refused_and_likeness_is_not(setting):
    before = work("gan")
    with pytest.raises(UsageError, match="data: a loss on data") as error:
        lora.apply(before, Options(), setting(before, data=False))
    assert "output = 1" in error.value.hint
    options = Options(data=0, output=1, **(QUICK | {"steps": 2}))
    assert lora.apply(before, options, setting(before, data=False)).notes["learns from"]


@pytest.mark.parametrize("option", [{"save": "there"}, {"dropout": 0.1}])
def test_inside_the_rounding_there_is_nothing_to_save_and_no_dropout(learnt, tmp_path, option):
    original, material = learnt
    with pytest.raises(UsageError, match=f"there is no {next(iter(option))}") as error:
        lora.apply(quantize(original), Options(**option), Setting(original, material, tmp_path))
    assert "merge = false" in error.value.hint


def test_an_adapter_of_another_model_is_refused(setting, tmp_path):
    before = work("gpt")
    options = Options(merge=False, save=str(tmp_path / "a"), **(QUICK | {"steps": 1}))
    lora.apply(before, options, setting(before))
    with pytest.raises(MismatchError, match="which this model does not have"):
        other = work("vae")
        lora.apply(other, Options(adapter=str(tmp_path / "a")), setting(other))


def test_a_loss_that_is_no_number_is_an_error(setting):
    before = work("gpt")
    with pytest.raises(MismatchError, match=r"(loss is|not finite)"):
        lora.apply(before, Options(**(QUICK | {"lr": 1e30})), setting(before))


def test_a_killed_step_goes_on_as_if_nothing_had_happened(setting):
    before = work("gpt")
    options = Options(merge=False, **(QUICK | {"dropout": 0.1, "steps": 20, "every": 5}))
    wanted = lora.apply(before, options, setting(before, "a"))

    def kill(what, done, total):
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lora.apply(before, options, setting(before, "b")._replace(report=kill))
    torch.manual_seed(77)
    found = lora.apply(before, options, setting(before, "b"))
    assert torch.equal(answer(found), answer(wanted))
    assert found.notes == wanted.notes


def test_an_adapter_beside_a_rounded_input_is_refused_before_anything_is_trained(setting):
    one = work("vae")
    layers = {"decoder.first": Scheme(input_bits=8)}
    quantized.attach(one.net, layers)
    one = one._replace(spec=msgspec.structs.replace(one.spec, layers=layers))
    options = Options(**QUICK | {"layers": ("decoder.first",), "merge": False})
    with pytest.raises(UnsupportedError, match="first: its input is rounded to 8 bits") as error:
        lora.apply(one, options, setting(one))
    assert "merge = true" in error.value.hint


def test_a_rank_that_no_layer_has_room_for_is_refused(setting):
    one = work("gpt")
    with pytest.raises(UsageError, match="rank 99: no layer is left to adapt") as error:
        lora.apply(one, Options(**QUICK | {"rank": 99}), setting(one))
    assert "at most 24" in error.value.hint or "at most 16" in error.value.hint


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_adapters_that_a_model_has_are_merged_without_a_step(family, setting):
    before = work(family)
    beside = lora.apply(before, Options(merge=False, **QUICK), setting(before))
    after = lora.apply(beside, Options(steps=0), setting(before, "b"))
    assert after.spec.adapters == {} and not adapters.adapted(after.net)
    assert beside.spec.adapters and adapters.adapted(beside.net)
    torch.testing.assert_close(answer(after), answer(beside), rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(rebuilt(after)), answer(after))
