"""Grids that are exact where they can be, and never worse than what they improve on."""

import pytest

torch = pytest.importorskip("torch", reason="weights are tensors")

from edgegen.compress._rounding import (  # noqa: E402
    codebook,
    hqq,
    levels,
    nearest,
    recovered,
    snap,
    span,
    split,
    sqnr_db,
)
from edgegen.compress._rounding_gptq import gptq  # noqa: E402
from edgegen.errors import MismatchError  # noqa: E402
from edgegen.spec import Scheme  # noqa: E402

SCHEMES = [
    Scheme(8),
    Scheme(4, 16),
    Scheme(4, 16, symmetric=False),
    Scheme(3, 0, symmetric=False),
    Scheme(8, -1),
]


def drawn(rows=6, columns=32, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clip", [False, True])
def test_weights_on_the_grid_stay_as_they_are(scheme, clip):
    once = nearest(drawn(), scheme, clip=clip)
    zero = torch.zeros_like(once.scale) if once.zero is None else once.zero
    again = snap(split(once.weight, scheme), once.scale, zero, scheme)
    assert torch.equal(again.reshape(once.weight.shape), once.weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_integers_follow_exactly_and_fit_the_bits(scheme):
    grid = nearest(drawn(), scheme)
    zero = 0 if grid.zero is None else grid.zero[..., None]
    q = split(grid.weight, scheme) / grid.scale[..., None] + zero
    low, high = levels(scheme)
    assert (q - q.round()).abs().max() < 1e-4
    assert low <= q.min().round() and q.max().round() <= high


def test_integers_are_rounded_to_themselves():
    weight = torch.arange(-7.0, 8.0).repeat(3, 1)
    assert torch.equal(nearest(weight, Scheme(4)).weight, weight)


@pytest.mark.parametrize("scheme", [Scheme(4, 16), Scheme(3, 16, symmetric=False)])
def test_a_searched_clip_never_errs_more_in_any_group(scheme):
    weight = drawn().pow(3)  # heavy tails
    errors = [
        (split(nearest(weight, scheme, clip=clip).weight - weight, scheme)).square().sum(-1)
        for clip in (True, False)
    ]
    assert (errors[0] <= errors[1]).all() and errors[0].sum() < errors[1].sum()


def test_a_group_of_zeros_and_one_of_a_constant_are_exact():
    weight = torch.cat((torch.zeros(1, 16), torch.full((1, 16), 0.3), torch.full((1, 16), -2.0)))
    for scheme in (Scheme(4, 16), Scheme(4, 16, symmetric=False)):
        found = nearest(weight, scheme)
        assert torch.allclose(found.weight, weight, atol=1e-7) and (found.scale > 0).all()


def test_a_grid_that_another_quantizer_chose_is_found_again():
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 16, (8, 2, 32), generator=generator).float()
    q[..., 0], q[..., 1] = 0, 15  # a minimum and a step: GGUF's Q4_1
    step, low = torch.rand(2, 8, 2, 1, generator=generator) + 0.1
    weight = (q * step - low).reshape(8, 64)
    scheme = Scheme(4, 32, symmetric=False)
    found = recovered(weight, scheme)
    assert found is not None and torch.allclose(found.weight, weight, atol=1e-6)
    assert not torch.equal(found.zero, found.zero.round())
    assert sqnr_db(weight, nearest(weight, scheme).weight) < 30
    assert recovered(drawn(8, 64), scheme) is None


def test_a_grid_whose_ends_are_unused_is_found_again():
    q = torch.randint(2, 13, (8, 64), generator=torch.Generator().manual_seed(2)).float()
    q[:, ::16], q[:, 1::16] = 2, 12
    weight = (q - 7.25) * 0.37
    found = recovered(weight, Scheme(4, 16, symmetric=False))
    assert found is not None and torch.allclose(found.weight, weight, atol=1e-5)


def test_a_grid_of_8_bits_about_zero_is_found_again_by_one_with_zero_points():
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-127, 128, (8, 2, 32), generator=generator).float()
    q[..., 0] = 127  # GGUF's Q8_0: the largest is always used, the smallest seldom
    weight = (q * (torch.rand(8, 2, 1, generator=generator) + 0.1)).reshape(8, 64)
    scheme = Scheme(8, 32, symmetric=False)
    found = recovered(weight, scheme)
    assert found is not None and torch.allclose(found.weight, weight, atol=1e-4)
    assert (found.zero == 128).all()
    assert sqnr_db(weight, nearest(weight, scheme).weight) < 60
    assert recovered(drawn(8, 64), scheme) is None


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("scheme", [Scheme(4, 16), Scheme(3, 16, symmetric=False)])
def test_hqq_errs_no_more_than_rounding_by_its_own_measure(scheme, whole):
    weight = drawn().pow(3)

    def error(grid):
        return split(grid.weight - weight, scheme).abs().pow(0.7).sum(-1)

    mine, theirs = hqq(weight, scheme, whole=whole), nearest(weight, scheme, whole=whole)
    assert (error(mine) <= error(theirs) + 1e-4).all()
    assert error(mine).sum() < error(theirs).sum()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES[:4])
def test_gptq_without_correlations_is_round_to_nearest(scheme, act_order):
    weight = drawn()
    fit = lambda groups: span(groups, scheme)  # noqa: E731
    found = gptq(weight, torch.eye(32), scheme, fit, act_order=act_order)
    wanted = nearest(weight, scheme)
    assert torch.allclose(found.weight, wanted.weight, atol=1e-6)
    assert torch.equal(found.scale, wanted.scale)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [0, 16, 64])
def test_gptq_keeps_the_outputs_nearer_on_correlated_inputs(act_order, group):
    weight, scheme = drawn(16, 192), Scheme(3, group, symmetric=False)
    x = drawn(400, 192, seed=1) @ drawn(192, 192, seed=2)  # more columns than one block
    found = gptq(weight, x.T @ x, scheme, lambda g: span(g, scheme), act_order=act_order)

    def error(grid):
        return float(((grid.weight - weight) @ x.T).square().sum())

    assert error(found) < 0.8 * error(nearest(weight, scheme))
    zero = found.zero
    again = snap(split(found.weight, scheme), found.scale, zero, scheme)
    assert torch.allclose(again.reshape(found.weight.shape), found.weight, atol=1e-5)


def test_gptq_refuses_inputs_that_are_no_numbers_and_survives_dead_columns():
    weight, scheme = drawn(), Scheme(4, 16)
    fit = lambda groups: span(groups, scheme)  # noqa: E731
    with pytest.raises(MismatchError, match="not finite"):
        gptq(weight, torch.full((32, 32), float("nan")), scheme, fit)
    assert torch.allclose(
        gptq(weight, torch.zeros(32, 32), scheme, fit).weight, nearest(weight, scheme).weight
    )
    with pytest.raises(MismatchError, match="cannot be inverted") as error:
        gptq(weight, -torch.eye(32), scheme, fit)
    assert "damping" in error.value.hint


def test_a_codebook_with_as_many_entries_as_values_is_exact():
    values = torch.tensor([-3.0, -0.1, 0.0, 0.7, 5.0])
    weight = values[torch.randint(0, 5, (4, 32), generator=torch.Generator().manual_seed(3))]
    found = codebook(weight, Scheme(3, 16, codebook=True))
    assert torch.equal(found.weight, weight)
    assert found.table.shape == (8,) and (found.table.diff() >= 0).all()


def test_a_codebook_fits_bell_shaped_weights_better_than_even_steps():
    weight = drawn(32, 64)
    mine = codebook(weight, Scheme(3, 16, codebook=True))
    assert sqnr_db(weight, mine.weight) > sqnr_db(weight, nearest(weight, Scheme(3, 16)).weight)
    middles, scale = (mine.table[1:] + mine.table[:-1]) / 2, mine.scale[..., None]
    entries = mine.table[torch.bucketize(split(weight, Scheme(3, 16)) / scale, middles)]
    assert torch.equal((entries * scale).reshape(32, 64), mine.weight)


def test_a_codebook_of_mostly_one_value_still_has_all_its_entries():
    weight = torch.zeros(4, 64)
    weight[:, :20] = drawn(4, 20)
    found = codebook(weight, Scheme(4, 0, codebook=True))
    assert found.table.shape == (16,) and sqnr_db(weight, found.weight) > 15
