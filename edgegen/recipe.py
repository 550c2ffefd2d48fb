"""A recipe: the steps that make a model small, in order, and what each of them must achieve.

about = "Half the channels, then int8"
families = ["vae", "gan"]

[gate]
faster = "5%"                     # a step must be that much faster, surely,
smaller = "5%"                    # or that much smaller
require = ["p50<=+20%"]           # and hold to these against the step before
quality = { perplexity = "+3%" }  # and to these against the original model

[[steps]]
kind = "prune"
options = { ratio = 0.5 }

[[steps]]
kind = "lora"
gate = false                      # not measured by itself: it prepares a later step
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from edgegen import gates, records, rooms
from edgegen.errors import EdgeGenError, NotFoundError, UsageError

T = TypeVar("T")
FOLDER = Path(__file__).parent / "recipes"
QUANTIZE, MERGE = ("quantize", "qat"), "merge"
LEARNS = ("distil", "lora", "qat")  # steps that may help by making the model better

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


class Gate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What each step must achieve: faster or smaller by a share, and the budgets it must keep.

    A step that learns (distil, lora, qat) may be better instead than the step before, by the
    share `better` of the first figure that has a budget, or else of the family's own.
    `quality` holds bounds by figure: "+3%" is at most 3 % more than the original model has, "-1%"
    at most 1 % less, "<=0.02" and ">=25" are numbers in the figure's own unit. `require` are
    gates as `edgegen compare` takes them, against the step before. `repeats` in `rounds` fresh
    processes are what latencies are measured by; `num` is how much of the data quality is
    measured on, the quality command's own default where it is None.
    """

    faster: str = "2%"
    smaller: str = "2%"
    better: str = "1%"
    require: tuple[str, ...] = ()
    quality: dict[str, str] = {}
    repeats: int = 20
    rounds: int = 5
    num: int | None = None

    def margins(self) -> tuple[float, float, float]:
        """The shares of `faster`, `smaller` and `better`."""
        texts = {"faster": self.faster, "smaller": self.smaller, "better": self.better}
        faster, smaller, better = (_share(name, text) for name, text in texts.items())
        return faster, smaller, better

    def budgets(self) -> dict[str, gates.Gate]:
        """The bound of each quality figure."""
        return {name: _budget(name, bound) for name, bound in self.quality.items()}


class Step(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One method with its options. Without `gate` it is not measured by itself."""

    kind: str
    options: dict[str, Any] = {}
    gate: bool = True


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Steps in order. `families` are those it is meant for, any where it is empty."""

    steps: tuple[Step, ...]
    gate: Gate = Gate()
    about: str = ""
    families: tuple[str, ...] = ()


def read(name: str | Path) -> Recipe:
    """The recipe in a TOML file, or the shipped one of that name.

    Raises:
        NotFoundError: neither; the hint is the nearest of those that are shipped.
        FormatError: not a recipe; an unknown field ("did you mean").
        UsageError: as `check`.
    """
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        have = shipped()
        if str(name) not in have:
            raise NotFoundError(f"{name}: no such file, and no recipe of that name is shipped",
                                rooms.nearest(str(name), have))  # fmt: skip
        path = FOLDER / f"{name}.toml"
    recipe = records.read(Recipe, path)
    check(recipe, str(path))
    return recipe


# What a precision on the command line means to `quantize`; int2 to int8 are bits.
PRECISIONS: dict[str, dict[str, Any]] = {f"int{bits}": {"bits": bits} for bits in range(2, 9)}
PRECISIONS |= {
    "dynamic": {"bits": 8, "activations": "dynamic"},
    "w8a8": {"bits": 8, "activations": "static"},
    "mixed": {"bits": "mixed"},
}
UNTRAINED = ("dynamic", "mixed")  # qat has none of its own: it goes on with what quantize chose


def alone(kind: str, value: str, options: dict[str, Any]) -> Recipe:
    """A recipe of one step; `value` is what stands behind its own name on the command line:
    --prune RATIO, --quantize PRECISION, --qat PRECISION, --lora RANK.

    Raises:
        UsageError: an unknown precision, or an option that stands in `options` as well.
    """
    meant: dict[str, Any] = {}
    if kind in QUANTIZE and value:
        known = [name for name in PRECISIONS if kind == "quantize" or name not in UNTRAINED]
        if value not in known:
            raise UsageError(f"--{kind} {value}", rooms.nearest(value, known))
        meant = PRECISIONS[value]
    elif value:
        meant = {{"prune": "ratio", "lora": "rank"}[kind]: value}
    for name in meant:
        if name in options:
            raise UsageError(f"--{kind} {value} and --set {name}={options[name]}", "give one")
    return Recipe((Step(kind, meant | options),))


def shipped() -> list[str]:
    """The names of the recipes that come with EdgeGen."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def check(recipe: Recipe, place: str = "recipe") -> None:
    """Raise `UsageError` unless the gate can be read and the steps are in a possible order."""
    if not recipe.steps:
        raise UsageError(f"{place}: no steps", 'add one: [[steps]]  kind = "quantize"')
    gate = recipe.gate
    gate.margins(), gate.budgets()
    for text in gate.require:
        gates.parse(text)
    if not 1 <= gate.rounds <= gate.repeats:
        raise UsageError(
            f"{place}: rounds is {gate.rounds}, repeats is {gate.repeats}",
            "give at least one round and one repeat for each round",
        )
    check_order(recipe.steps, (), place)


def check_order(steps: Iterable[Step], done: Collection[str], place: str = "recipe") -> None:
    """Raise `UsageError` at the first step that cannot come where it stands, with the reason.

    `done` are the kinds of steps whose traces the model carries already: "quantize" where it has
    quantized layers, "lora" where it has adapters, any kind where it differs from the original.
    """
    state = set(done)
    for number, step in enumerate(steps, start=1):
        found = _impossible(step, state)
        if found:
            reason, fix = found
            raise UsageError(f"{place}: step {number}, {step.kind}: {reason}", fix)
        state.add(step.kind)
        if step.options.get(MERGE, step.kind == "lora" and MERGE not in step.options):
            state.discard("lora")


def options_of(step: Step, kind: type[T], place: str = "recipe") -> T:
    """The step's options as the method's own `Options`.

    Raises:
        UsageError: an unknown option ("did you mean"), or a value of the wrong type or range.
    """
    where = f"{place}: {step.kind}"
    try:
        return records.convert(kind, step.options, where, strict=False)
    except EdgeGenError as error:
        have = ", ".join(getattr(kind, "__struct_fields__", ()))
        if "Expected `array`" in str(error):
            error.hint = 'write a list, such as ["layers.0.*"]; of one, too'
        raise UsageError(str(error), error.hint or f"{step.kind} has: {have}") from error


def _impossible(step: Step, state: set[str]) -> tuple[str, str] | None:
    """Why a step cannot follow on what is in `state`, and what to do; None where it can."""
    quantized, adapted = not state.isdisjoint(QUANTIZE), "lora" in state
    if step.kind == "prune" and quantized:
        return (
            "the model is quantized, and its scales belong to the channels it has",
            "prune first, then quantize",
        )
    if step.kind == "quantize" and quantized:
        return "the model is already quantized", "leave one of the two steps out"
    if step.kind in ("prune", *QUANTIZE) and adapted and not (step.kind == "qat" and quantized):
        return (
            "adapters are attached that belong to the layers as they are",
            "merge them first (a checkpoint's: edgegen compress CHECKPOINT --method lora "
            "--set steps=0), or put this step before them",
        )
    if step.kind == "distil" and not state and not step.options.get("student"):
        return (
            "there is nothing to learn: the student is still the teacher itself",
            "put it after a step that changes the model (prune), or give a student of another size",
        )
    return None


def _share(name: str, text: str) -> float:
    found = _SHARE.fullmatch(text.strip())
    if not found or not 0 <= float(found[1]) < 100:
        raise UsageError(f"gate: {name} = {text!r} is no percentage", f'write {name} = "5%"')
    return float(found[1]) / 100


def _budget(name: str, text: str) -> gates.Gate:
    text = text.replace(" ", "")
    relation = "" if text.startswith(("<=", ">=")) else "<=" if text.startswith("+") else ">="
    if not text.startswith(("<=", ">=", "+", "-")):
        raise UsageError(
            f"gate: quality: {name} = {text!r} is not understood",
            'write "+3%" or "-1%" of what the original has, or "<=0.02", ">=25"',
        )
    return gates.parse(f"quality.{name}{relation}{text}")
