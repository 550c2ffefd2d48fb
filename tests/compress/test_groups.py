"""What hangs together is found, and removing it is the same as its being zero."""

import copy
import time

import pytest
import torch
from torch import nn

from edgegen import checkpoint
from edgegen.compress._dependency import TOLERANCE, outputs, trace, within
from edgegen.compress._groups import Group, Slice, choose, kept, shrink, silence, weights
from edgegen.errors import UnsupportedError
from edgegen.spec import ModelSpec

INPUT = "x:float32[batch,3,8,8]"
UNET = """
import torch
from torch import nn


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 8, 4, 2, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.c = nn.Conv2d(12, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 1)
        self.first = nn.Linear(6 * 64, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x):
        a = self.a(x).relu()
        d = self.norm(self.down(a)).relu()
        d = d + self.mid(d).relu()
        c = self.c(self.deep(torch.cat([a, self.up(d)], 1))).relu()
        return x + self.out(c), self.last(self.first(c.flatten(1)).relu())


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.qkv = nn.Conv2d(16, 48, 1)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).relu()
        q, k, v = self.qkv(x).reshape(-1, 3, 4, 4, 64).unbind(1)
        y = v @ (q.transpose(-1, -2) @ k).softmax(-1).transpose(-1, -2)
        return self.out(x + y.reshape(-1, 16, 8, 8))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.grouped = nn.Conv2d(3, 6, 3, padding=1)
        self.pairs = nn.Conv2d(6, 6, 3, groups=2, padding=1)
        self.out = nn.Conv2d(6, 3, 1)
        self.b = nn.Linear(12, 2)

    def forward(self, x):
        y = self.a(x.flatten(1)[:, :12]).reshape(-1, 4, 3).transpose(1, 2).reshape(-1, 12)
        return self.out(self.pairs(self.grouped(x))), self.b(y)


class Plain(nn.Module):
    def forward(self, x):
        return x + 1


def grid(size=3):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]), nn.Conv2d(4, 3, 1))
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "nets.py").write_text(UNET)

    def make(name, given=INPUT):
        torch.manual_seed(0)
        config = {"source": f"{tmp_path}/nets.py:{name}", "inputs": [given]}
        spec = ModelSpec("module", config)
        return spec, checkpoint.build(spec).eval()

    return make


def test_a_net_with_skip_concat_reshape_and_transposed_convolution_is_traced(module):
    spec, net = module("UNet")
    found = trace(spec, net)
    groups = {group.name: group for group in found.groups}
    assert set(groups) == {"a", "up", "mid", "c", "first"}
    assert groups["mid"].strata == 2
    assert not groups["mid"].exact  # the norm looks at all channels
    assert set(groups["mid"].layers) == {"mid", "down"}
    assert set(groups["up"].layers) == {"up", "deep"}
    place = {(s.tensor, s.axis): s.index for s in groups["c"].slices}
    assert place["first.weight", 1].tolist()[1] == list(range(64, 128))  # a map is 64 features
    place = {(s.tensor, s.axis): s.index for s in groups["up"].slices}
    assert place["c.weight", 1].flatten().tolist() == list(range(6, 12))  # behind those of a
    assert "output" in found.fixed["out"]
    assert "output" in found.fixed["last"]


@pytest.mark.parametrize("group", ["a", "up", "c", "first"])
def test_without_units_a_net_is_what_it_is_with_them_zero(module, group):
    spec, net = module("UNet")
    (one,) = (g for g in trace(spec, net).groups if g.name == group)
    x = torch.randn(2, 3, 8, 8)
    units = list(range(0, one.units, 2))
    small, quiet = shrink(net, [one], {group: units}), silence(net, one, units)
    with torch.no_grad():
        for now, then in zip(outputs(small, (x,)), outputs(quiet, (x,)), strict=True):
            assert torch.allclose(now, then, atol=TOLERANCE)
    lost = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in small.parameters())
    assert lost == weights(one, net.state_dict()) * len(units)


def test_all_groups_of_a_net_shrink_together(module):
    spec, net = module("UNet")
    found = trace(spec, net).groups
    small = shrink(net, found, {g.name: list(range(g.units // 2)) for g in found})
    assert (small.deep.groups, small.c.in_channels, small.up.out_channels) == (6, 6, 3)
    assert [list(out.shape) for out in small(torch.randn(2, 3, 8, 8))] == [[2, 3, 8, 8], [2, 5]]


@pytest.mark.parametrize(("family", "names"), [("vae", 4), ("gan", 2)])
def test_a_row_of_numbers_that_becomes_a_map_loses_whole_channels(family, names):
    spec = ModelSpec(family, {"image_size": 8, "width": 4, "latent": 3})
    found = trace(spec, checkpoint.build(spec).eval())
    assert len(found.groups) == names
    (first,) = (g for g in found.groups if g.name.endswith(".first"))
    rows = {s.tensor: s.index for s in first.slices}[f"{first.name}.weight"]
    assert rows.tolist()[1] == list(range(16, 32))
    assert all(g.exact for g in found.groups)


@pytest.mark.slow
# A stop that comes up while Python frees an object is dropped, with this warning, and sent again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tracing_that_does_not_end_is_stopped_with_the_reason(module):
    spec, net = module("Fused")
    with pytest.raises(UnsupportedError, match=r"graph model: tracing .* more than 1 s") as caught:
        trace(spec, net, limit_s=1)
    assert "fused queries, keys and values" in caught.value.hint


def test_what_ends_in_time_is_left_alone():
    assert within(60, lambda: 7, "seven") == 7
    with pytest.raises(UnsupportedError, match="nothing: tracing"):
        within(0.05, lambda: [None for _ in iter(time.monotonic, -1.0)], "nothing")


def test_what_swallows_the_first_stop_is_stopped_by_the_next():
    swallowed = []

    def stubborn():
        try:
            return [None for _ in iter(time.monotonic, -1.0)]
        except BaseException as error:
            swallowed.append(error)
        return [None for _ in iter(time.monotonic, -1.0)]

    with pytest.raises(UnsupportedError, match="stubborn: tracing"):
        within(0.05, stubborn, "stubborn")
    assert len(swallowed) == 1


def test_layers_that_must_stay_as_they_are_have_a_reason(module):
    found = trace(*module("Fixed"))
    assert "convolution in 2 groups" in found.fixed["grouped"]
    assert "fails" in found.fixed["a"] or "zero" in found.fixed["a"]
    grid = trace(*module("grid", "input" + INPUT[1:]))
    assert "norm over several axes" in grid.fixed["0"]
    assert trace(*module("Plain")) == ((), {})


def test_with_nothing_gone_a_net_is_copied_bit_for_bit(module):
    spec, net = module("UNet")
    same = shrink(net, trace(spec, net).groups, {})
    assert same is not net
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])


def test_the_net_that_is_traced_is_not_changed(module):
    spec, net = module("UNet")
    before = copy.deepcopy(net.state_dict())
    net.requires_grad_(False)
    trace(spec, net)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert not any(p.requires_grad for p in net.parameters())


def test_units_of_the_lowest_scores_go_as_many_from_each_stratum():
    scores = torch.tensor([1.0, 2, 3, 4, 0, 9, 9, 9])
    assert choose(scores, 2) == [0, 4]
    assert choose(scores, 2, strata=2) == [0, 4]
    assert choose(scores, 4, strata=2) == [0, 1, 4, 5]
    assert choose(scores, 0) == []


def test_two_groups_may_cut_one_tensor_on_both_axes():
    layer = nn.Linear(3, 2, bias=False)
    index = torch.arange(2)[:, None], torch.arange(3)[:, None]
    rows = Group("rows", 2, (Slice("weight", 0, index[0], True),), ())
    columns = Group("columns", 3, (Slice("weight", 1, index[1], False),), ())
    left = kept(layer.state_dict(), [rows, columns], {"rows": [0], "columns": [1]})
    assert torch.equal(left["weight"], layer.weight.detach()[1:, [0, 2]])
