"""Distances between answers, by hand."""

import math

import pytest
import torch

from edgegen.compress._divergence import (
    kl,
    kl_of_top,
    relation_error,
    relations,
    relative_error,
    top_of,
)

LOGITS = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)) * 3
OTHERS = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_of_two_classes_by_hand(temperature):
    """Logits (T ln 3, 0) and (0, 0) soften to (3/4, 1/4) and (1/2, 1/2) at any T."""
    teacher = torch.tensor([[temperature * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl(teacher, student, temperature).item() == pytest.approx(temperature**2 * wanted)


def test_equal_answers_are_no_distance_at_all():
    assert kl(LOGITS, LOGITS, 2.0).item() == 0
    assert relative_error(LOGITS, LOGITS).item() == 0
    assert relation_error(LOGITS[..., :8], LOGITS[..., :8], 4).item() == 0
    assert abs(kl_of_top(top_of(LOGITS, 4, 2.0), LOGITS, 2.0).item()) < 1e-6


def test_of_the_top_k_and_the_rest_kl_is_never_more_and_grows_to_the_whole():
    whole = kl(LOGITS, OTHERS, 2.0).item()
    cut = [kl_of_top(top_of(LOGITS, k, 2.0), OTHERS, 2.0).item() for k in (1, 3, 6, 10)]
    assert cut == sorted(cut)
    assert 0 < cut[0] < whole
    assert cut[-1] == pytest.approx(whole, rel=1e-3)  # ten and "the rest", which is the eleventh


def test_the_top_one_and_the_rest_by_hand():
    teacher = torch.tensor([[math.log(2), 0.0, 0.0]])  # 1/2, 1/4, 1/4
    student = torch.zeros(1, 3)  # 1/3, 1/3, 1/3
    wanted = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    assert kl_of_top(top_of(teacher, 1, 1.0), student).item() == pytest.approx(wanted, rel=1e-5)


def test_the_relative_error_has_no_unit():
    error = relative_error(LOGITS, OTHERS)
    torch.testing.assert_close(relative_error(1000 * LOGITS, 1000 * OTHERS), error)
    assert relative_error(LOGITS, torch.zeros_like(LOGITS)).item() == pytest.approx(1)
    assert math.isfinite(relative_error(torch.zeros(2), torch.ones(2)).item())


def test_relations_look_at_what_came_before_and_widths_may_differ():
    narrow = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    wide = torch.cat([narrow, torch.zeros(2, 6, 8)], dim=-1)
    scores = relations(narrow, 2)
    assert scores.shape == (2, 2, 6, 6)
    assert torch.equal(
        scores.isinf(), torch.ones(6, 6, dtype=torch.bool).triu(1).expand(2, 2, 6, 6)
    )
    assert relation_error(wide, narrow, 2).item() > 0
    changed = narrow.clone()
    changed[:, -1] += 1  # the last position concerns its own relations alone
    assert torch.equal(relations(changed, 2)[:, :, :-1], scores[:, :, :-1])
