import pytest

from edgegen.compress._names import select
from edgegen.errors import UsageError

NAMES = ["first", "layers.0.mlp.up_proj", "layers.0.mlp.down_proj", "layers.1.mlp.up_proj"]


def test_patterns_choose_in_the_order_of_the_model():
    assert select(NAMES, ["*.up_proj", "first"]) == ["first", NAMES[1], NAMES[3]]


def test_no_pattern_chooses_nothing():
    assert select(NAMES, []) == []


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(UsageError, match=r"skip: 'layers\.0\.mlp\.upproj' matches no layer") as e:
        select(NAMES, ["first", "layers.0.mlp.upproj"], "skip")
    assert e.value.hint.startswith("nearest: layers.0.mlp.up_proj, ")


def test_a_model_without_layers_says_so():
    with pytest.raises(UsageError) as error:
        select([], ["*"])
    assert error.value.hint == "this model has no layer that could be meant"
