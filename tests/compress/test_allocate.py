"""How many units go, by numbers that can be worked out by hand; and tables that were measured."""

import math

import pytest
import torch

from edgegen import checkpoint, records
from edgegen.compress import Setting, Work, prune
from edgegen.compress import _latency as latency
from edgegen.compress._allocate import (
    Lane,
    allocate,
    by_importance,
    by_loss,
    counts_of,
    level,
    lost,
    share,
    step_of,
)
from edgegen.compress._groups import Group
from edgegen.compress.prune import Options
from edgegen.errors import GateError, UsageError
from edgegen.spec import ModelSpec

A, B = Group("a", 8, (), ("a",)), Group("b", 8, (), ("b",))
HEADS = Group("h", 8, (), ("q",), strata=2, tie="heads", kernel=False)


def test_what_stays_is_rounded_to_the_multiple():
    assert share(A, 0.5, 1) == 4
    assert share(A, 0.3, 4) == 4
    assert share(A, 0.2, 4) == 0
    assert share(A, 0.9, 4) == 4  # 4 channels are the fewest of a multiple of 4
    assert share(A, 0.0, 4) == 0
    assert share(A, 0.5, 16) == 4  # there are not that many
    with pytest.raises(UsageError, match=r"a ratio of 0.95 leaves none of 8 units"):
        share(A, 0.95, 1)


def test_heads_care_for_their_shared_keys_and_not_for_kernels():
    assert step_of(HEADS, 3) == 2
    assert step_of(A._replace(strata=2), 3) == 6
    assert share(HEADS, 0.6, 4) == 4
    assert level(HEADS, 0.9) == 6
    assert level(A, 1.0) == 7


def test_counts_leave_a_tenth_of_a_layer():
    assert counts_of([Group("c", 40, (), ())], 8) == [0, 8, 16, 24, 32]
    assert counts_of([A], 1) == list(range(8))


def test_what_is_lost_is_a_share_of_all_importance():
    scores = {"a": torch.tensor([4.0, 3, 2, 1, 0, 0, 0, 0])}
    assert lost([A], [0, 4, 5, 8], scores) == pytest.approx([0, 0, 0.1, 1])


def test_the_cheapest_gain_goes_first():
    cheap = Lane((A,), [0, 1, 2], [0, 1, 2], [0, 1, 2])
    dear = Lane((B,), [0, 1, 2], [0, 5, 10], [0, 1, 2])
    assert allocate([cheap, dear], 2) == {"a": 2, "b": 0}
    assert allocate([cheap, dear], 3) == {"a": 2, "b": 1}
    assert allocate([cheap, dear], 5) is None
    assert allocate([cheap], 0) == {"a": 0}
    noisy = Lane((A,), [0, 1, 2], [0, 1, 2], [0, -1, 1])  # a width that is slower is skipped
    assert allocate([noisy], 1) == {"a": 2}


def test_less_important_layers_lose_more():
    scores = {"a": torch.tensor([0.1] * 4 + [1.0] * 4), "b": torch.ones(8)}
    assert by_importance([A, B], 0.25, 1, scores) == {"a": 4, "b": 0}
    with pytest.raises(UsageError, match="next to nothing of some layer"):
        by_importance([A, B], 0.95, 1, scores)


def test_layers_whose_loss_is_small_lose_more_but_never_more_than_was_tried():
    losses = {"a": {0.5: 0.1, 0.75: 0.2}, "b": {0.5: 5.0, 0.75: 9.0}}
    assert by_loss([A, B], 0.25, 1, losses) == {"a": 4, "b": 0}
    found = by_loss([A, B], 0.5, 1, losses)
    assert found == {"a": 6, "b": 2}


def vae():
    torch.manual_seed(0)
    spec = ModelSpec("vae", {"image_size": 8, "width": 4, "latent": 3})
    return Work(spec, checkpoint.build(spec).eval())


class Clock:
    """Times by arithmetic instead of by an engine: milliseconds are the numbers of weights."""

    def __init__(self, monkeypatch, tmp_path, floor=0):
        self.calls, self.floor = 0, floor
        monkeypatch.setattr(latency, "times", self.times)
        monkeypatch.setattr(latency, "maker", lambda work, target: work)
        monkeypatch.setattr(latency, "_make", lambda prune, counts, target: prune(counts))
        monkeypatch.setattr(latency, "partial", lambda make, *rest: make(*rest))
        monkeypatch.setattr(latency, "cache_folder", lambda: tmp_path / "cache")

    def times(self, makers, setting):
        self.calls += 1
        return {
            name: float(self.floor + sum(p.numel() for p in work.net.parameters()))
            for name, work in makers.items()
        }


def test_widths_reach_a_latency_and_the_table_is_kept(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path)
    one = vae()
    options = Options(target_latency="0.6x", multiple=1)
    small = prune.apply(one, options, Setting(one, None, tmp_path / "a"))
    note = small.notes["latency"]
    assert note["tries"][-1]["measured"] <= 0.6 + latency.SLACK
    assert note["ms"]["after"] / note["ms"]["before"] == pytest.approx(
        note["tries"][-1]["measured"], abs=1e-4
    )
    assert not note["from_disk"]
    assert 0 < note["tries"][0]["predicted"] <= 0.6
    before = clock.calls
    again = prune.apply(one, options, Setting(one, None, tmp_path / "b"))
    assert again.notes["latency"]["from_disk"]
    assert clock.calls - before == len(note["tries"])  # the table itself was not taken again
    (file,) = (tmp_path / "cache").iterdir()
    kept = records.read(latency.Table, file)
    assert kept.ms["as it is"] > min(kept.ms.values())


def test_a_latency_out_of_reach_is_refused_with_what_could_be_reached(monkeypatch, tmp_path):
    Clock(monkeypatch, tmp_path, floor=1_000_000)
    one = vae()
    options = Options(target_latency=0.5, multiple=1)
    with pytest.raises(UsageError, match=r"0.5x is out of reach: .* take about 1.00x"):
        prune.apply(one, options, Setting(one, None, tmp_path / "a"))


def test_plans_that_fall_short_are_refused_with_all_that_was_measured(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path)
    honest = clock.times
    one = vae()

    def slow(makers, setting):
        found = honest(makers, setting)
        return {n: max(found.values()) for n in found} if "before" in makers else found

    monkeypatch.setattr(latency, "times", slow)
    with pytest.raises(GateError, match=r"was not reached; predicted and measured: 0\.\d+x -> 1"):
        prune.apply(
            one, Options(target_latency=0.7, multiple=1), Setting(one, None, tmp_path / "a")
        )


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_layers_are_measured_in_their_own_kind(name):
    conv = torch.nn.ConvTranspose2d(4, 8, 4, 2, 1, bias=False)
    alike = latency._alike(conv if name == "conv" else torch.nn.Linear(3, 5), 6)
    shape = (1, 4, 3, 3) if name == "conv" else (1, 3)
    assert alike(torch.zeros(shape)).shape[1] == 6


@pytest.mark.slow
def test_the_favourite_multiple_is_measured_on_the_target(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(latency, "MULTIPLES", (1, 2))
    monkeypatch.setattr(latency, "REPEATS", 2)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    one = vae()
    options = Options(ratio=0.5, layers=("decoder.first",))
    small = prune.apply(one, options, Setting(one, None, tmp_path / "a"))
    rounding = small.notes["rounding"]
    assert rounding["multiple"] in (1, 2)
    assert set(rounding["ns_a_channel"]) == {"3", "4"}
    assert all(math.isfinite(ns) and ns > 0 for ns in rounding["ns_a_channel"].values())
    assert "onnxruntime" in rounding["target"]


@pytest.mark.slow
def test_the_favourite_multiple_of_a_decoder_is_measured_on_a_token(
    monkeypatch, tmp_path, tiny_checkpoint
):
    monkeypatch.setattr(latency, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(latency, "MULTIPLES", (1, 2))
    monkeypatch.setattr(latency, "REPEATS", 2)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    found = checkpoint.load(tiny_checkpoint("gpt"))
    one = Work(found.spec, found.net, found.tokenizer)
    options = Options(ratio=0.4, parts=("mlp",))
    rounding = prune.apply(one, options, Setting(one, None, tmp_path / "a")).notes["rounding"]
    assert rounding["layer"] == "layers.0.mlp.gate_proj"
    assert set(rounding["ns_a_channel"]) == {"29", "30"}
