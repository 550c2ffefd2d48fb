"""Scales that are moved from layer to layer change nothing in float."""

import pytest

torch = pytest.importorskip("torch", reason="layers are torch's")

from torch import nn  # noqa: E402

from edgegen.compress._probe import Probe, run_text  # noqa: E402
from edgegen.compress._replay import Replay, stages  # noqa: E402
from edgegen.compress._rounding import nearest  # noqa: E402
from edgegen.compress._smooth import (  # noqa: E402
    activation_aware,
    equalised,
    fold,
    links,
    migrated,
    seams,
    seen,
)
from edgegen.models import gpt  # noqa: E402
from edgegen.spec import Scheme  # noqa: E402


def decoder(**fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    net = gpt.Net(gpt.Config(**(sizes | fields))).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" in name:
                weight.uniform_(0.2, 3.0)
            elif name.endswith("weight"):
                weight.normal_(std=0.2)
    ids = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(1))
    return net, Probe(ids.split(2), run_text, "drawn")


SHAPES = [{}, {"style": "gpt2"}, {"num_key_value_heads": 4}, {"tie_word_embeddings": False}]


@pytest.mark.parametrize("fields", SHAPES)
def test_any_scale_at_every_seam_changes_nothing(fields):
    net, probe = decoder(**fields)
    with torch.no_grad():
        before = run_text(net, probe.batches[0])[0]
        for seam in seams(net):
            columns = net.get_submodule(seam.targets[0]).weight.shape[1]
            scale = torch.rand(columns, generator=torch.Generator().manual_seed(2)) * 3 + 0.1
            heads = scale.view(-1, seam.groups, seam.head_dim)
            if seam.groups > 1:
                scale = heads[:, :1].expand_as(heads).reshape(-1)
            fold(net, seam, scale)
        after = run_text(net, probe.batches[0])[0]
    assert torch.allclose(after, before, atol=1e-4, rtol=1e-4)
    assert len(seams(net)) == (3 if fields.get("style") else 4) * 2 + (
        "tie_word_embeddings" in fields
    )


def test_awq_and_smoothquant_choose_scales_that_change_nothing_and_help():
    net, probe = decoder()
    scheme = Scheme(3, 16, symmetric=False)
    stats = seen(Replay(net, probe), [name for seam in seams(net) for name in seam.targets])
    with torch.no_grad():
        before = run_text(net, probe.batches[0])[0]

    def rounded(name, weight, importance):
        return nearest(weight, scheme).weight

    for seam in seams(net):
        mine = stats[seam.targets[0]]
        scale, alpha = activation_aware(net, seam, mine, rounded)
        assert 0 <= alpha <= 1

        def error(by, names=seam.targets, seen=mine):
            weights = [net.get_submodule(name).weight.detach() for name in names]
            changes = [rounded("", w * by, None) / by - w for w in weights]
            return sum(float(((c @ seen.hessian) * c).sum()) for c in changes)

        assert error(scale) <= error(torch.ones_like(scale)) * (1 + 1e-5)
        fold(net, seam, scale)
    with torch.no_grad():
        assert torch.allclose(run_text(net, probe.batches[0])[0], before, atol=1e-4, rtol=1e-4)
        for seam in seams(net):
            fold(net, seam, migrated(net, seam, stats[seam.targets[0]]))
        assert torch.allclose(run_text(net, probe.batches[0])[0], before, atol=1e-4, rtol=1e-4)


def test_smoothquant_gives_inputs_and_weights_the_same_peaks():
    net, probe = decoder(num_key_value_heads=4)
    seam = seams(net)[0]
    stats = seen(Replay(net, probe), list(seam.targets))[seam.targets[0]]
    scale = migrated(net, seam, stats)
    weights = torch.stack([net.get_submodule(n).weight.abs().amax(0) for n in seam.targets])
    assert torch.allclose(stats.peak / scale, weights.amax(0) * scale, rtol=1e-4)


def conv_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, 1, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(5, 3, 3, 1, 1), nn.Sigmoid(), nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_var.uniform_(0.1, 4.0)
        net[1].running_mean.normal_()
        net[1].weight.uniform_(0.1, 2.0)
        net[1].bias.normal_()
        net[0].weight.mul_(torch.logspace(-2, 1, 6).view(1, -1, 1, 1))
    return net.eval()


def test_equalised_layers_compute_the_same_and_have_the_same_ranges():
    net = conv_net()
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(x)
        found = list(links(net))
        assert [(link.first, link.norm, link.second) for link in found] == [
            ("0", "1", "3"),
            ("3", "", "5"),
        ]
        equalised(net, found[0])
        first = net[0].weight.abs().movedim(1, 0).flatten(1).amax(1) * net[1].weight.abs()
        first = first / (net[1].running_var + net[1].eps).sqrt()
        second = net[3].weight.abs().movedim(1, 0).flatten(1).amax(1)
        assert torch.allclose(first, second, rtol=1e-4)
        equalised(net, found[1])
        assert torch.allclose(net(x), before, atol=1e-5, rtol=1e-5)


def test_stages_are_layers_that_read_the_same_tensor_in_the_order_they_run():
    net, probe = decoder()
    names = [name for seam in reversed(seams(net)) for name in seam.targets]
    order = stages(Replay(net, probe), names)
    at = "layers.0."
    assert order[0] == [f"{at}self_attn.{part}_proj" for part in "qkv"]
    assert order[1:4] == [
        [f"{at}self_attn.o_proj"],
        [f"{at}mlp.gate_proj", f"{at}mlp.up_proj"],
        [f"{at}mlp.down_proj"],
    ]


def test_replayed_blocks_give_the_same_answer_without_running():
    net, probe = decoder()
    replay = Replay(net, probe)
    assert replay.blocks == ["layers.0", "layers.1"]
    assert replay.block_of("layers.1.mlp.up_proj") == "layers.1" and not replay.block_of("norm")

    def whole(model):
        with torch.no_grad():
            return sum(float(run_text(model, ids)[0].sum()) for ids in probe.batches)

    before = whole(net)
    replay.finish("layers.0")
    calls = []
    net.layers[0].mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    assert replay.measure(whole) == before and not calls
    assert whole(net) == before and calls  # nothing is left patched
