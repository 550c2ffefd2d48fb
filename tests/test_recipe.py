import msgspec
import pytest

from edgegen import recipe
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.recipe import Gate, Recipe, Step, check, check_order, options_of

TEXT = """
about = "Half the channels, then int8"
families = ["vae"]

[gate]
faster = "5%"
require = ["p50<=+20%"]
quality = { perplexity = "+3%" }

[[steps]]
kind = "prune"
options = { ratio = 0.5 }

[[steps]]
kind = "lora"
gate = false
"""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ratio: float = 0.5


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_from_toml(tmp_path):
    found = recipe.read(written(tmp_path, TEXT))
    assert found.steps == (Step("prune", {"ratio": 0.5}), Step("lora", gate=False))
    assert found.gate.margins() == (0.05, 0.02, 0.01)
    assert found.families == ("vae",)


def test_the_recipe_in_the_docstring_is_one(tmp_path):
    found = recipe.read(written(tmp_path, recipe.__doc__.partition("\n\n")[2]))
    assert [step.kind for step in found.steps] == ["prune", "lora"]


def test_every_shipped_recipe_is_sound():
    assert recipe.shipped()
    for name in recipe.shipped():
        found = recipe.read(name)
        assert found.about and found.families, name


def test_a_name_that_is_nearly_a_shipped_recipe_is_suggested():
    near = recipe.shipped()[0]
    with pytest.raises(NotFoundError, match="no recipe of that name") as error:
        recipe.read(near[:-1])
    assert error.value.hint == f"did you mean {near!r}?"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.toml: no such file"):
        recipe.read(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[[steps]]\nkindd = "prune"', "unknown field `kindd`", "did you mean 'kind'?"),
        ("steps = 3", "Expected `array`", ""),
        ("steps = [", "not valid TOML", ""),
    ],
)
def test_a_file_that_is_no_recipe_says_where(tmp_path, text, message, hint):
    with pytest.raises(FormatError, match=message) as error:
        recipe.read(written(tmp_path, text))
    assert error.value.hint == hint


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(faster="five"), "faster = 'five' is no percentage"),
        (Gate(smaller="120%"), "smaller = '120%' is no percentage"),
        (Gate(quality={"kid": "3%"}), "kid = '3%' is not understood"),
        (Gate(require=("p50<5",)), "is not understood"),
        (Gate(repeats=2, rounds=3), "rounds is 3, repeats is 2"),
    ],
)
def test_a_gate_that_cannot_be_read_is_refused_before_anything_runs(gate, message):
    with pytest.raises(UsageError, match=message):
        check(Recipe((Step("prune"),), gate))


def test_a_recipe_without_steps_is_refused():
    with pytest.raises(UsageError, match="recipe: no steps"):
        check(Recipe(()))


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        ("+3%", 0.029, True),
        ("+3%", 0.031, False),
        ("-1%", -0.009, True),
        ("-1%", -0.011, False),
        ("<=12", 12.0, True),
        (">= 25", 24.9, False),
    ],
)
def test_a_budget_says_how_much_worse(bound, value, met):
    assert Gate(quality={"figure": bound}).budgets()["figure"].met(value) is met


@pytest.mark.parametrize(
    ("kinds", "number", "reason", "fix"),
    [
        ("quantize prune", 2, "its scales belong to the channels", "prune first"),
        ("qat prune", 2, "its scales belong to the channels", "prune first"),
        ("quantize quantize", 2, "already quantized", "leave one of the two"),
        ("qat quantize", 2, "already quantized", "leave one of the two"),
        ("distil prune", 1, "nothing to learn", "put it after a step"),
    ],
)
def test_an_impossible_order_is_refused_with_the_reason(kinds, number, reason, fix):
    steps = tuple(Step(kind) for kind in kinds.split())
    with pytest.raises(UsageError, match=rf"step {number}, .*{reason}") as error:
        check(Recipe(steps))
    assert fix in error.value.hint


@pytest.mark.parametrize("kind", ["prune", "quantize", "qat"])
def test_nothing_comes_after_adapters_that_are_not_merged(kind):
    with pytest.raises(UsageError, match="adapters are attached") as error:
        check_order([Step("lora", {"merge": False}), Step(kind)], ())
    assert "merge them first" in error.value.hint


def test_what_is_done_to_the_model_counts_as_steps():
    with pytest.raises(UsageError, match="step 1, quantize: the model is already quantized"):
        check_order([Step("quantize")], {"quantize"})
    check_order([Step("distil")], {"prune"})


def test_good_orders_pass():
    check_order([Step("prune"), Step("distil"), Step("lora"), Step("quantize")], ())
    check_order([Step("distil", {"student": {"width": 8}}), Step("prune"), Step("quantize")], ())
    check_order([Step("quantize"), Step("lora")], ())
    check_order([Step("quantize"), Step("qat"), Step("lora", {"merge": False}), Step("qat")], ())


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="unknown field `ration`") as error:
        options_of(Step("prune", {"ration": 0.5}), Options)
    assert error.value.hint == "did you mean 'ratio'?"


def test_an_option_of_the_wrong_type_lists_what_there_is():
    with pytest.raises(UsageError, match="recipe: prune: Expected `float`") as error:
        options_of(Step("prune", {"ratio": "half"}), Options)
    assert error.value.hint == "prune has: ratio"


def test_options_may_be_written_as_text():
    assert options_of(Step("prune", {"ratio": "0.25"}), Options).ratio == 0.25


def test_one_method_alone_is_a_recipe_of_one_step():
    found = recipe.alone("prune", "0.5", {"schedule": 3})
    assert found.steps == (Step("prune", {"ratio": "0.5", "schedule": 3}),)
    assert recipe.alone("distil", "", {}).steps == (Step("distil"),)
    assert recipe.alone("quantize", "int4", {}).steps == (Step("quantize", {"bits": 4}),)
    w8a8 = {"bits": 8, "activations": "static"}
    assert recipe.alone("qat", "w8a8", {}).steps == (Step("qat", w8a8),)
    with pytest.raises(UsageError, match="--qat mixed"):
        recipe.alone("qat", "mixed", {})
    with pytest.raises(UsageError, match="--quantize int9") as error:
        recipe.alone("quantize", "int9", {})
    assert error.value.hint == "did you mean 'int8'?"
    with pytest.raises(UsageError, match=r"--prune 0\.5 and --set ratio=0\.4"):
        recipe.alone("prune", "0.5", {"ratio": 0.4})


def test_a_word_where_a_list_is_wanted_is_told_how_to_be_one():
    from edgegen.compress.prune import Options

    with pytest.raises(UsageError, match="Expected `array`, got `str`") as error:
        options_of(Step("prune", {"layers": "layers.0"}), Options)
    assert error.value.hint.startswith("write a list")
