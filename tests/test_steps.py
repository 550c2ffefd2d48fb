import msgspec
import pytest

from edgegen import steps
from edgegen.metrics import Ratio
from edgegen.quality import Figure
from edgegen.steps import Entry, Measured, Verdict


def figure(value, error=None):
    return Figure(value, error, 64, "windows", "lower")


def entry(**fields):
    verdict = Verdict(
        "passed",
        "2.00x faster",
        target="onnxruntime 1.0 cpu, threads 0",
        before=Measured(10.0, 4.0, 80.0, {"perplexity": figure(12.0)}),
        after=Measured(5.0, 1.0, None, {"perplexity": figure(12.5, 0.25)}),
        original={"perplexity": figure(12.0)},
        ratios={"p50": Ratio(0.5, 0.4, 0.8, "faster"), "size": Ratio(0.25)},
    )
    known = {"kind": "prune", "options": {"ratio": 0.5}, "seconds": 1.0, "parameters": 10}
    return Entry(**known | {"verdict": verdict} | fields)


def test_a_measured_step_is_a_row_of_before_and_after():
    (row,) = steps.rows([entry()])
    assert dict(zip(steps.COLUMNS, row, strict=True)) == {
        "step": "prune ratio=0.5",
        "p50 ms": "10 -> 5",
        "times": "2.00x faster (1.25 to 2.50)",
        "size MB": "4.00 -> 1.00",
        "peak MB": "80 -> ?",
        "quality": "perplexity 12 -> 12.5 ± 0.25 (64 windows)",
        "gate": "passed",
        "why": "2.00x faster",
    }


def test_a_step_that_was_not_measured_says_so():
    (row,) = steps.rows([entry(verdict=Verdict("not asked", "the recipe says gate = false"))])
    assert row[1:] == ("-", "-", "-", "-", "-", "not asked", "the recipe says gate = false")


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (None, "-"),
        (Ratio(2.0, 1.5, 2.5, "slower"), "2.00x slower (1.50 to 2.50)"),
        (Ratio(0.8, None, None, "too few samples"), "1.25x faster, not sure: too few samples"),
        (Ratio(0.8, 0.5, 1.25, "no difference"), "1.25x faster (0.80 to 2.00), not sure"),
    ],
)  # fmt: skip
def test_how_a_latency_changed_in_words(ratio, said):
    assert steps.times(ratio) == said


def test_a_history_comes_back_from_json_and_leaves_other_entries_out():
    history = ({"kind": "train", "steps": 3}, msgspec.to_builtins(entry()))
    again = msgspec.json.decode(msgspec.json.encode(history))
    assert steps.steps_of(again) == [entry()]


def test_no_data_is_no_key_in_the_history():
    assert "data" not in msgspec.to_builtins(entry())
    assert msgspec.to_builtins(entry(data="digits"))["data"] == "digits"
