"""Pruning of every family: what goes, what the model still computes, and what is refused."""

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgegen import checkpoint, rooms
from edgegen.batches import Material
from edgegen.compress import Setting, Work, prune
from edgegen.compress import _importance as importance
from edgegen.compress._decoder import groups_of as decoder_groups
from edgegen.compress._groups import silence
from edgegen.compress._prune_options import goal_of
from edgegen.compress._prune_plan import groups_of
from edgegen.compress._remove import removed
from edgegen.compress.prune import Options
from edgegen.errors import MismatchError, UnsupportedError, UsageError
from edgegen.export import export
from edgegen.spec import ModelSpec, Scheme

GPT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
GPT2 = GPT | {"style": "gpt2", "num_key_value_heads": 4}
IMAGES = {"image_size": 8, "width": 4, "latent": 3}
CONFIGS = {
    "llama": ("gpt", GPT),
    "gpt2": ("gpt", GPT2),
    "vae": ("vae", IMAGES),
    "gan": ("gan", IMAGES),
}
IDS = torch.arange(10)[None] % 7
HALF = Options(ratio=0.5, multiple=1)


def work(name, seed=0):
    torch.manual_seed(seed)
    spec = ModelSpec(*CONFIGS[name])
    net = checkpoint.build(spec).eval()
    for module in net.modules():  # fresh norms are all alike, and hide mistakes
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
    return Work(spec, net)


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
            images = rng.random((40, 1, 8, 8), np.float32) ** 2
            material = Material(images, images, config)
        return Setting(original, material if data else None, tmp_path / folder)

    return make


def answers(net, spec):
    """What every graph gives for inputs that are always the same."""
    rows = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if spec.family == "gpt":
            return [net(IDS, torch.ones_like(IDS), torch.arange(10)[None], *net.empty_cache(1))[0]]
        found = []
        for module, graph in checkpoint.graphs(spec, net).values():
            shape = [3 if isinstance(n, str) else n for n in graph.inputs[0].shape]
            out = module(torch.rand(shape, generator=rows))
            found += [out] if isinstance(out, torch.Tensor) else list(out)
        return found


def same(one, other):
    mine, theirs = one.net.state_dict(), other.net.state_dict()
    return one.spec == other.spec and all(torch.equal(mine[n], theirs[n]) for n in theirs)


def silent(one, groups, gone):
    net = one.net
    for group in groups:
        net = silence(net, group, gone.get(group.name, ()))
    return net


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_pruned_is_the_model_itself_bit_for_bit(name, setting):
    one = work(name)
    options = Options(ratios={"*": 0.0}, multiple=1)
    assert same(prune.apply(one, options, setting(one)), one)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pruned_model_computes_what_the_model_does_with_those_units_zero(name):
    one = work(name)
    parts = ("kv_groups", "mlp") if name in ("llama", "gpt2") else ()
    groups, _ = groups_of(one, parts)
    gone = {g.name: list(range(0, g.units, 2)) for g in groups}
    small = removed(one, groups, gone)
    found = answers(small.net, small.spec)
    for now, then in zip(found, answers(silent(one, groups, gone), one.spec), strict=True):
        assert torch.allclose(now, then, atol=1e-5)


def test_heads_go_from_every_shared_key_alike():
    one = work("llama")
    groups = decoder_groups(one, "heads")
    gone = {g.name: [0, 3] for g in groups}
    small = removed(one, groups, gone)
    assert small.spec.config["num_attention_heads"] == 2
    assert small.spec.config["head_dim"] == 4
    assert small.spec.config["num_key_value_heads"] == 2
    now, then = answers(small.net, small.spec), answers(silent(one, groups, gone), one.spec)
    assert torch.allclose(now[0], then[0], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "options",
    [
        HALF,
        Options(ratio=0.5, multiple=2, scope="global", importance="l1"),
        Options(ratio=0.4, multiple=1, scope="sensitivity"),
        Options(ratio=0.5, multiple=1, importance="taylor"),
        Options(ratio=0.5, multiple=1, importance="similar"),
        Options(ratio=0.5, multiple=1, rounds=2, steps=2, batch=4),
    ],
    ids=["local", "global", "sensitivity", "taylor", "similar", "gradual"],
)
def test_a_pruned_model_is_saved_and_read_back(name, options, setting, tmp_path):
    one = work(name)
    before = copy.deepcopy(one.net.state_dict())
    small = prune.apply(one, options, setting(one))
    assert all(torch.equal(before[n], t) for n, t in one.net.state_dict().items())
    was, now = small.notes["parameters"]
    assert now < was
    assert not small.net.training
    checkpoint.save(tmp_path / "small", small.spec, small.net, ())
    found = checkpoint.load(tmp_path / "small")
    assert same(Work(found.spec, found.net), small)
    for mine, theirs in zip(
        answers(found.net, found.spec), answers(small.net, small.spec), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_pruned_model_can_be_pruned_again(setting):
    for name in CONFIGS:
        one = work(name)
        small = prune.apply(one, Options(ratio=0.25, multiple=1), setting(one, f"{name}-1"))
        least = prune.apply(small, Options(ratio=0.25, multiple=1), setting(one, f"{name}-2"))
        assert least.notes["parameters"][0] == small.notes["parameters"][1]
        again = checkpoint.build(least.spec)
        again.load_state_dict(least.net.state_dict())


def test_a_generator_is_pruned_like_the_average_that_is_exported(setting):
    one = work("gan")
    small = prune.apply(one, HALF, setting(one))
    mine, theirs = small.net.generator.state_dict(), small.net.average.state_dict()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    family = rooms.load("edgegen.models", "gan")
    images = torch.rand(4, 1, 8, 8)
    for phase in ("discriminator", "generator"):
        losses = family.loss(small.net, images, phase, torch.Generator())
        assert all(torch.isfinite(value) for value in losses.values())


def test_mlps_may_end_up_of_different_widths(setting):
    one = work("llama")
    options = Options(ratios={"layers.1.mlp": 0.5}, parts=("mlp",), multiple=1)
    small = prune.apply(one, options, setting(one))
    assert small.spec.config["intermediate_size"] == 24
    assert small.spec.shapes["layers.1.mlp.down_proj.weight"] == (16, 12)
    assert len(small.spec.shapes) == 3
    assert small.notes["layers"]["layers.1.mlp"] == [24, 12]


def test_blocks_that_turn_their_input_least_go(setting):
    one = work("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            one.net.get_submodule(f"layers.1.{name}").weight.zero_()  # it does nothing now
    small = prune.apply(one, Options(ratio=0.34, parts=("blocks",)), setting(one))
    assert small.notes["blocks"]["gone"] == [1]
    assert small.spec.config["num_hidden_layers"] == 2
    now, then = answers(small.net, small.spec), answers(one.net, one.spec)
    assert torch.equal(now[0], then[0])


@pytest.mark.parametrize("parts", [("kv_groups", "mlp"), ("heads",), ("blocks",)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_pruned_decoder_decodes_with_its_cache_what_it_says_without(name, parts, setting):
    one = work(name)
    small = prune.apply(one, Options(ratio=0.5, parts=parts, multiple=1), setting(one)).net
    whole = answers(small, one.spec)[0]
    with torch.no_grad():
        cache, steps = small.empty_cache(1), []
        for n in range(10):
            mask = torch.ones(1, n + 1, dtype=torch.long)
            out, *cache = small(IDS[:, n : n + 1], mask, torch.tensor([[n]]), *cache)
            steps.append(out)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


def test_twins_are_merged_without_a_loss(setting):
    """Every second channel of an MLP, and of a convolution with its batch norm, is the first's."""
    one = work("vae")
    layers = dict(one.net.named_modules())
    with torch.no_grad():
        for name, axis in (("decoder.body.1", 1), ("decoder.body.2", 0)):
            for tensor in layers[name].state_dict().values():
                if tensor.dim():
                    rows = tensor.movedim(axis if tensor.dim() > 1 else 0, 0)
                    rows[1::2] = rows[::2].clone()
    options = Options(ratios={"decoder.body.1": 0.5}, importance="similar", multiple=1)
    small = prune.apply(one, options, setting(one))
    assert small.notes["layers"] == {"decoder.body.1": [4, 2]}
    for now, then in zip(answers(small.net, one.spec), answers(one.net, one.spec), strict=True):
        assert torch.allclose(now, then, atol=1e-5)


def test_importance_is_what_it_says_by_hand():
    one = work("gan")
    groups, _ = groups_of(one)
    (last,) = (g for g in groups if g.name == "average.body.2")
    net = one.net.average
    parts = [net.body[2].weight.movedim(1, 0), net.body[3].weight, net.body[3].bias]
    parts += [net.body[5].weight.movedim(1, 0)]
    squares = sum(p.detach().square().flatten(1 if p.dim() > 1 else 0).sum(-1)
                  if p.dim() > 1 else p.detach().square() for p in parts)  # fmt: skip
    assert torch.allclose(importance.magnitude(one.net, [last], 2)[last.name], squares.sqrt())
    scales = importance.batch_norm_scale(one.net, groups)
    assert torch.equal(scales[last.name], net.body[3].weight.detach().abs())
    found = importance.taylor(one.net, [last], [lambda m: m.average.body[3].bias.sum()])
    assert torch.allclose(found[last.name], net.body[3].bias.detach().square())
    assert not net.body[3].bias.requires_grad


def test_channels_are_rounded_to_the_multiple(setting):
    one = work("vae")
    small = prune.apply(one, Options(ratio=0.3, multiple=2), setting(one))
    assert small.notes["layers"]["decoder.first"] == [8, 6]
    assert small.notes["rounding"] == {"multiple": 2, "why": "as given"}


def test_a_few_channels_are_not_measured(setting):
    one = work("vae")
    first = Options(ratio=0.5, layers=("encoder.body.0",), multiple=1)
    small = prune.apply(one, first, setting(one, "a"))
    again = Options(ratio=0.5, layers=("encoder.body.0",))
    small = prune.apply(small, again, setting(one, "b"))
    assert small.notes["layers"] == {"encoder.body.0": [2, 1]}
    assert "has only 2 channels" in small.notes["rounding"]["why"]


def test_a_killed_run_goes_on_with_the_plan_it_had(setting):
    one = work("vae")
    place = setting(one)
    first = prune.apply(one, Options(ratio=0.5, multiple=1, steps=2, batch=4), place)
    again = prune.apply(one, Options(ratio=0.5, multiple=1, steps=2, batch=4), place)
    assert same(first, again)
    assert (place.folder / "plan.json").is_file()


def test_training_wins_back_what_was_lost(setting):
    one = work("gan")
    lost = prune.apply(one, HALF, setting(one, "a"))
    options = Options(ratio=0.5, multiple=1, steps=60, lr=1e-2, batch=32)
    won = prune.apply(one, options, setting(one, "b"))
    (recovery,) = won.notes["recovery"]
    assert recovery["loss"] == "the original's outputs on drawn inputs"
    latent = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = one.net.average(latent)
        errors = [(w.net.average(latent) - wanted).square().mean() for w in (lost, won)]
    assert errors[1] < errors[0]
    assert torch.equal(won.net.generator.first.weight, won.net.average.first.weight)
    assert not won.net.average.first.weight.requires_grad


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_unstructured_pruning_leaves_zeros_and_says_it_is_for_size_only(name, scope, setting):
    one = work(name)
    options = Options(ratio=0.5, kind="unstructured", scope=scope, rounds=2, steps=2, batch=4)
    found = prune.apply(one, options, setting(one))
    assert "not the model faster" in found.notes["says"]
    assert found.spec == one.spec
    weights = [found.net.get_parameter(n) for n in found.notes["zeros"]]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.5, abs=0.01)


def test_n_of_m_keeps_the_largest_of_every_m(setting):
    one = work("llama")
    found = prune.apply(one, Options(kind="n:m", n=1, m=4), setting(one))
    for name in found.notes["zeros"]:
        mine, was = found.net.get_parameter(name), one.net.get_parameter(name)
        groups, before = mine.reshape(len(mine), -1, 4), was.reshape(len(was), -1, 4)
        assert ((groups != 0).sum(-1) == 1).all()
        assert torch.equal(groups.abs().amax(-1), before.abs().amax(-1))


def test_layers_whose_inputs_do_not_divide_by_m_are_said(setting):
    one = work("vae")
    found = prune.apply(one, Options(kind="n:m", n=2, m=4), setting(one))
    assert found.notes["fixed"]["encoder.body.0"] == "1 channels go in, no multiple of 4"
    assert "encoder.body.2.weight" in found.notes["zeros"]
    with pytest.raises(UnsupportedError, match="divide into groups of 7"):
        prune.apply(one, Options(kind="n:m", n=1, m=7), setting(one))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "vae", "gan"])
def test_a_pruned_model_is_exported_again_and_verified(name, setting, tmp_path, toys):
    one = work(name)
    if name == "llama":
        config = GPT | {"vocab_size": 257, "intermediate_size": 24}
        torch.manual_seed(0)
        spec = ModelSpec("gpt", config)
        one = Work(spec, checkpoint.build(spec).eval(), toys.byte_tokenizer().encode())
    small = prune.apply(one, HALF, setting(one, data=False))
    path = tmp_path / "small"
    checkpoint.save(path, small.spec, small.net, (), small.tokenizer)
    (bundle,) = export(str(path), tmp_path / "bundle")
    rows = bundle.manifest.drifts
    assert {row.engine for row in rows} == {"onnxruntime", "openvino"}
    assert all(row.ok for row in rows)
    if name == "llama":
        assert bundle.manifest.loop.kv_heads == 1


def test_latency_goals_are_shares():
    assert goal_of(Options()) == 0
    assert goal_of(Options(target_latency="0.5x")) == 0.5
    assert goal_of(Options(target_latency=0.25)) == 0.25
    with pytest.raises(UsageError, match="'fast' is no share"):
        goal_of(Options(target_latency="fast"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), "neither ratio, ratios nor target_latency is given"),
        (Options(ratio=0), "ratio is 0, wanted more than 0 and less than 1"),
        (Options(ratio=1), "ratio is 1, wanted"),
        (Options(ratio=-0.5), "ratio is -0.5, wanted"),
        (Options(ratio=float("nan")), "ratio is nan, wanted"),
        (Options(target_latency="2x"), "target_latency is 2, wanted"),
        (Options(ratios={"*": 1}), r"ratios: \* is 1, wanted"),
        (Options(ratio=0.5, target_latency=0.5), "ratio and target_latency are both given"),
        (Options(ratios={"*": 0.5}, scope="global"), "ratios are for scope = 'local'"),
        (Options(kind="n:m", n=4, m=4), "n is 4, m is 4: wanted 1 <= n < m"),
        (Options(kind="n:m", n=2, m=4, ratio=0.5), "no ratio"),
        (Options(kind="unstructured", target_latency=0.5), "makes nothing faster"),
        (Options(kind="unstructured", ratio=0.5, importance="bn"), "is for structured pruning"),
        (Options(kind="unstructured", ratio=0.5, scope="sensitivity"), "for structured pruning"),
        (Options(ratio=0.5, rounds=0), "rounds is below 1"),
        (Options(ratio=0.5, rounds=3), "several rounds without training"),
        (Options(ratio=0.5, steps=-1), "steps is below 0"),
        (Options(ratio=0.5, layers=("nothing.*",), multiple=1), "'nothing.*' matches no layer"),
        (Options(ratios={"encoder.bdy.0": 0.5}, multiple=1), "'encoder.bdy.0' matches no layer"),
        (Options(ratio=0.95, multiple=1), r"a ratio of 0.95 leaves none of \d units"),
        (Options(ratio=0.95, multiple=1, scope="global"), "next to nothing of some layer"),
        (Options(ratio=0.1, multiple=4), "a ratio of 0.1 removes nothing"),
    ],
)
def test_what_cannot_be_is_refused(options, message, setting):
    one = work("vae")
    with pytest.raises(UsageError, match=message) as caught:
        prune.apply(one, options, setting(one))
    assert caught.value.hint


def test_the_nearest_names_of_a_pattern_are_shown(setting):
    one = work("vae")
    with pytest.raises(UsageError) as caught:
        prune.apply(one, Options(ratios={"encoder.bdy.0": 0.5}, multiple=1), setting(one))
    assert "encoder.body.0" in caught.value.hint


def test_a_layer_that_must_stay_is_refused_with_its_reason(setting):
    one = work("vae")
    options = Options(ratios={"decoder.body.4": 0.5}, multiple=1)
    with pytest.raises(UnsupportedError, match="its channels are an output of the model"):
        prune.apply(one, options, setting(one))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(ratio=0.5, parts=("head",)), "no 'head' in a model of text"),
        (Options(ratio=0.9, parts=("kv_groups",), multiple=1), "leaves none of 2 units"),
        (Options(ratio=0.9, parts=("heads",), multiple=1), "leaves none of 4 units in 2 groups"),
        (Options(ratio=0.9, parts=("blocks",)), "takes 3 of 3 blocks"),
        (Options(ratio=0.1, parts=("blocks",)), "takes 0 of 3 blocks"),
        (Options(ratio=0.5, parts=("heads", "kv_groups"), multiple=1), "cut the same rows"),
        (Options(ratios={"layers.0.self_attn": 0.5}, multiple=1), "go from all layers alike"),
        (Options(target_latency=0.5, parts=("blocks",)), "only ratio says how many go"),
    ],
)
def test_what_a_decoder_cannot_lose_is_refused(options, message, setting):
    one = work("llama")
    with pytest.raises(UsageError, match=message) as caught:
        prune.apply(one, options, setting(one))
    assert caught.value.hint


def test_a_single_head_cannot_be_shared_out(setting):
    spec = ModelSpec("gpt", GPT | {"num_attention_heads": 1, "num_key_value_heads": 1})
    one = Work(spec, checkpoint.build(spec).eval())
    with pytest.raises(UsageError, match="heads: there is nothing to remove"):
        prune.apply(one, Options(ratio=0.5, parts=("heads",)), setting(one))
    assert prune.apply(one, HALF, setting(one, "b")).notes["parts"] == ["mlp"]


def test_models_that_were_quantized_or_adapted_before_are_refused(setting):
    one = work("vae")
    for field, message in (("layers", "the model is quantized"), ("adapters", "adapters are")):
        value = {"encoder.head": Scheme() if field == "layers" else 2}
        other = one._replace(spec=msgspec.structs.replace(one.spec, **{field: value}))
        with pytest.raises(UnsupportedError, match=message) as caught:
            prune.apply(other, HALF, setting(one))
        assert caught.value.hint


def test_parts_of_text_make_no_sense_for_images(setting):
    one = work("gan")
    for part in ("vocabulary", "heads"):
        with pytest.raises(UnsupportedError, match="only models of text have these"):
            prune.apply(one, Options(ratio=0.5, parts=(part,)), setting(one))


def test_a_batch_norm_is_asked_for_where_there_is_none(setting):
    one = work("vae")
    options = Options(ratio=0.5, multiple=1, importance="bn")
    with pytest.raises(UnsupportedError, match="no batch norm follows"):
        prune.apply(one, options, setting(one))
    found = prune.apply(work("gan"), options, setting(work("gan"), "gan"))
    assert found.notes["layers"]["average.first"] == [8, 4]


def test_text_does_not_recover_without_data(setting):
    one = work("llama")
    options = Options(ratio=0.5, multiple=1, steps=2)
    with pytest.raises(UsageError, match="learns from text, and there is no data"):
        prune.apply(one, options, setting(one, data=False))


def test_a_loss_that_is_no_number_in_recovery_is_an_error(setting):
    one = work("vae")
    options = Options(ratio=0.5, multiple=1, steps=6, batch=4, lr=1e30)
    with pytest.raises(MismatchError, match=r"(loss is|not finite)"):
        prune.apply(one, options, setting(one))
