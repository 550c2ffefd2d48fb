"""What runs a recipe, on methods that are as small as they can be."""

import json
import os
import signal
import subprocess
import sys

import msgspec
import pytest
import torch

from edgegen import checkpoint
from edgegen.bundle import open_bundle
from edgegen.compress import Target, compress
from edgegen.errors import (
    EdgeGenError,
    GateError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.export import export
from edgegen.recipe import Gate, Recipe, Step
from edgegen.sources import open_source
from edgegen.spec import ModelSpec
from edgegen.steps import Entry

pytestmark = pytest.mark.usefixtures("methods")

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40
QUICK = Gate(repeats=1, rounds=1)


@pytest.fixture
def prose(tmp_path):
    """`--data` of a text file."""
    (tmp_path / "prose.txt").write_text(TEXT)
    return f"text:{tmp_path / 'prose.txt'}"


def recipe(*steps, gate=QUICK):
    made = (Step(*step) if isinstance(step, tuple) else step for step in steps)
    return Recipe(tuple(Step(s) if isinstance(s, str) else s for s in made), gate)


def slim(**options):
    return Step("slim", options)


def test_a_step_is_applied_and_stands_in_the_history(tmp_path, tiny_checkpoint):
    source = tiny_checkpoint("gpt")
    (entry,) = compress(source, recipe(slim(ratio=0.25)), tmp_path / "out", measure=False)
    found = checkpoint.load(tmp_path / "out")
    assert found.spec.config["intermediate_size"] == 36
    assert (entry.kind, entry.notes) == ("slim", {"hidden": [48, 36]})
    assert entry.verdict.outcome == "not measured"
    assert entry.verdict.reason == "run with --no-measure"
    assert msgspec.convert(found.history[-1], Entry) == entry
    assert found.tokenizer == checkpoint.load(source).tokenizer
    assert not (tmp_path / "out.compressing").exists()


def test_the_chat_template_travels_along(tmp_path, tiny_checkpoint):
    found = checkpoint.load(tiny_checkpoint("gpt"))
    checkpoint.save(tmp_path / "chat", found.spec, found.net, (), found.tokenizer, "{{ messages }}")
    compress(tmp_path / "chat", recipe(slim()), tmp_path / "out", measure=False)
    assert checkpoint.load(tmp_path / "out").chat_template == "{{ messages }}"
    model = open_source(str(tmp_path / "out"))
    assert model.loop.chat_template == "{{ messages }}"
    assert [entry["kind"] for entry in model.history] == ["slim"]


@pytest.mark.slow
def test_a_step_that_helps_passes_the_gate_with_its_numbers(tmp_path, tiny_checkpoint):
    steps = recipe(slim(), Step("slim", {"ratio": 0.1}, gate=False), gate=QUICK)
    shown = []
    first, second = compress(tiny_checkpoint("gpt"), steps, tmp_path / "out", show=shown.append)
    verdict = first.verdict
    assert (verdict.outcome, shown) == ("passed", [first, second])
    assert verdict.after.size_mb < verdict.before.size_mb
    assert verdict.ratios["size"].value == verdict.after.size_mb / verdict.before.size_mb
    assert "x smaller" in verdict.reason
    assert verdict.target.startswith("onnxruntime")
    assert verdict.before.p50_ms > 0 and verdict.after.peak_rss_mb > 0
    assert second.verdict.outcome == "not asked"
    assert second.verdict.reason == "the recipe says gate = false"


@pytest.mark.slow
def test_a_step_that_does_not_help_is_refused_and_kept_only_when_asked(tmp_path, tiny_checkpoint):
    source, output = tiny_checkpoint("gpt"), tmp_path / "out"
    steps = recipe(slim(ratio=0.1), gate=Gate(repeats=1, rounds=1, smaller="50%", faster="99%"))
    shown = []
    with pytest.raises(GateError, match="step 1, slim, is refused: neither faster") as error:
        compress(source, steps, output, show=shown.append)
    assert error.value.exit_code == 4
    assert "--keep-anyway" in error.value.hint
    assert not output.exists()
    assert shown[0].verdict.outcome == "refused" and shown[0].verdict.after.size_mb > 0
    (entry,) = compress(source, steps, output, resume=True, keep_anyway=True)
    kept = msgspec.structs.replace(shown[0].verdict, outcome="kept anyway")
    assert entry.verdict == kept
    assert checkpoint.load(output).history[-1]["verdict"]["outcome"] == "kept anyway"


@pytest.mark.slow
def test_adapters_beside_the_model_go_through_the_gate_and_stay(tmp_path, tiny_checkpoint, prose):
    options = {"rank": 2, "steps": 10, "batch": 4, "lr": 1e-2, "merge": False}
    gate = msgspec.structs.replace(QUICK, num=4, quality={"perplexity": "+0%"})
    steps = recipe(("lora", options), gate=gate)
    (entry,) = compress(tiny_checkpoint("gpt"), steps, tmp_path / "out", data=prose)
    verdict = entry.verdict
    assert verdict.outcome == "passed"
    was, now = verdict.original["perplexity"].value, verdict.after.quality["perplexity"].value
    assert now < was and verdict.reason.startswith("better: perplexity")
    assert verdict.ratios["size"].value > 1  # the adapters are in the bundle that was measured
    assert set(checkpoint.load(tmp_path / "out").spec.adapters.values()) == {2}
    merged = recipe(("lora", {"steps": 0}))
    compress(tmp_path / "out", merged, tmp_path / "merged", data=prose, measure=False)
    assert not checkpoint.load(tmp_path / "merged").spec.adapters


def test_adapters_that_the_engine_has_no_place_for_are_refused_before_the_model_is_read(tmp_path):
    target, beside = Target("native"), {"merge": False}
    with pytest.raises(UnsupportedError, match="beside the model, and native has no") as error:
        compress(tmp_path / "no", recipe(Step("lora", beside)), tmp_path / "out", target=target)
    assert "merge = true" in error.value.hint
    for step in (Step("lora"), Step("lora", beside, gate=False)):
        with pytest.raises(NotFoundError):  # the model, which is what is read next
            compress(tmp_path / "no", recipe(step), tmp_path / "out", target=target)


def test_a_folder_of_an_unfinished_run_is_not_walked_over(tmp_path, tiny_checkpoint):
    source, output = tiny_checkpoint("gpt"), tmp_path / "out"
    with pytest.raises(MismatchError):
        compress(source, recipe(slim(), slim(broken=True)), output, measure=False)
    with pytest.raises(UsageError, match="an unfinished run is there") as error:
        compress(source, recipe(slim()), output, measure=False)
    assert "--resume" in error.value.hint and "rm -r" in error.value.hint
    with pytest.raises(UsageError, match="the unfinished run has steps"):
        compress(source, recipe(slim()), output, measure=False, resume=True)


def test_a_first_step_that_was_asked_for_wrongly_leaves_nothing_in_the_way(
    tmp_path, tiny_checkpoint
):
    source, output = tiny_checkpoint("gpt"), tmp_path / "out"
    steps = recipe(Step("lora", {"rank": 99, "steps": 1}))
    for _ in range(2):
        with pytest.raises(UsageError, match="rank 99: no layer is left to adapt"):
            compress(source, steps, output, measure=False)
    assert not output.with_name("out.compressing").exists()


def test_nothing_to_resume_is_said(tmp_path, tiny_checkpoint):
    notes = []
    compress(
        tiny_checkpoint("gpt"),
        recipe(slim()),
        tmp_path / "out",
        measure=False,
        resume=True,
        note=notes.append,
    )
    assert "nothing to resume" in notes[0]


def test_weights_that_are_no_numbers_are_refused_at_the_start(tmp_path, tiny_checkpoint):
    found = checkpoint.load(tiny_checkpoint("gpt"))
    with torch.no_grad():
        found.net.norm.weight[3] = float("nan")
    checkpoint.save(tmp_path / "bad", found.spec, found.net, (), found.tokenizer)
    with pytest.raises(MismatchError, match=r"norm\.weight: 1 of 32 weights are not finite"):
        compress(tmp_path / "bad", recipe(slim()), tmp_path / "out", measure=False)
    assert not (tmp_path / "out.compressing").exists()


def test_a_step_that_breaks_the_weights_leaves_the_last_good_checkpoint(tmp_path, tiny_checkpoint):
    with pytest.raises(MismatchError, match=r"step 2, slim: .*not finite") as error:
        compress(
            tiny_checkpoint("gpt"),
            recipe(slim(), slim(broken=True)),
            tmp_path / "out",
            measure=False,
        )
    good = tmp_path / "out.compressing" / "step-1"
    assert f"the last good checkpoint is {good}" in error.value.hint
    assert checkpoint.load(good).spec.config["intermediate_size"] == 24


def test_a_loss_that_is_no_number_leaves_the_source_as_the_last_good(
    tmp_path, tiny_checkpoint, prose
):
    source = tiny_checkpoint("gpt")
    with pytest.raises(MismatchError, match="loss is nan after step 8") as error:
        compress(
            source,
            recipe(("learn", {"spoil": 6})),
            tmp_path / "out",
            data=prose,
            measure=False,
        )
    assert f"the last good checkpoint is {source}" in error.value.hint


KILLED = """
import sys
import edgegen.compress as compress
from edgegen.recipe import Gate, Recipe, Step
compress.__path__.append(sys.argv[1])
steps = (Step("slim"), Step("learn", {"kill": 6}))
compress.compress(sys.argv[2], Recipe(steps), sys.argv[3], data=sys.argv[4], measure=False,
                  resume="KILL_ME" not in __import__("os").environ, note=print)
"""


def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_weights(
    tmp_path, tiny_checkpoint, prose, methods
):
    source = tiny_checkpoint("gpt")
    command = [sys.executable, "-c", KILLED, methods, source, tmp_path / "killed", prose]
    dead = subprocess.run(command, env=os.environ | {"KILL_ME": "1"}, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert {path.name for path in (tmp_path / "killed.compressing").iterdir()} >= {
        "step-1",
        "work-2",
    }
    alive = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on with step 2, learn" in alive.stdout
    steps = recipe("slim", ("learn", {"kill": 6}))
    compress(source, steps, tmp_path / "whole", data=prose, measure=False)
    weights = [(tmp_path / name / checkpoint.WEIGHTS).read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    resumed, whole = (
        json.loads((tmp_path / name / "history.json").read_text())[-1]
        for name in ("killed", "whole")
    )
    assert resumed["resumed"] and "resumed" not in whole


@pytest.mark.slow
def test_a_run_killed_at_the_gate_goes_on_there_and_keeps_the_step(
    tmp_path, tiny_checkpoint, prose
):
    source, output = tiny_checkpoint("gpt"), tmp_path / "out"
    steps = recipe(slim(), gate=QUICK)

    def kill(what, done, total):
        if (output.with_name("out.compressing") / "step-1").is_dir():
            raise KeyboardInterrupt  # the step is written, and nothing is measured yet

    with pytest.raises(KeyboardInterrupt):
        compress(source, steps, output, data=prose, report=kill)
    history = output.with_name("out.compressing") / "step-1" / "history.json"
    left = json.loads(history.read_text())[-1]
    assert left["verdict"]["reason"] == "the run was stopped before the gate"
    (entry,) = compress(source, steps, output, data=prose, resume=True)
    assert entry.verdict.outcome == "passed" and entry.verdict.after.quality
    assert entry.seconds == left["seconds"] and not entry.resumed  # not done a second time


def test_a_model_that_is_already_quantized_is_refused(tmp_path, tiny_checkpoint):
    found = checkpoint.load(tiny_checkpoint("gpt"))
    history = ({"kind": "quantize", "verdict": {}},)
    checkpoint.save(tmp_path / "small", found.spec, found.net, history, found.tokenizer)
    with pytest.raises(UsageError, match="the model is already quantized"):
        compress(tmp_path / "small", recipe("quantize"), tmp_path / "out")


@pytest.mark.parametrize(
    ("step", "message", "hint"),
    [
        (Step("slin"), "no 'slin' in edgegen.compress", "did you mean 'slim'?"),
        (slim(ration=0.5), "unknown field `ration`", "did you mean 'ratio'?"),
        (slim(ratio=1.5), "Expected `float` < 1.0", "slim has: ratio, broken"),
        (slim(ratio=0), "Expected `float` > 0.0", "slim has: ratio, broken"),
    ],
)
def test_a_step_that_cannot_be_is_refused_before_the_model_is_read(tmp_path, step, message, hint):
    with pytest.raises(EdgeGenError, match=message) as error:
        compress(tmp_path / "not-there", recipe(step), tmp_path / "out")
    assert error.value.hint == hint


def test_a_budget_without_data_is_refused(tmp_path, tiny_checkpoint):
    steps = recipe(slim(), gate=Gate(quality={"perplexity": "+3%"}))
    with pytest.raises(UsageError, match="budget for perplexity, and no data") as error:
        compress(tiny_checkpoint("gpt"), steps, tmp_path / "out")
    assert "--no-measure" in error.value.hint


def test_a_recipe_for_another_family_names_those_that_fit(tmp_path, tiny_checkpoint):
    with pytest.raises(UsageError, match="for vae, the model is of family gpt") as error:
        compress(tiny_checkpoint("gpt"), "vae-int8", tmp_path / "out")
    assert "gpt-int4" in error.value.hint


def test_an_engine_nothing_is_exported_for_is_refused(tmp_path, tiny_checkpoint):
    with pytest.raises(UnsupportedError, match="callable reads callable"):
        compress(
            tiny_checkpoint("gpt"), recipe(slim()), tmp_path / "out", target=Target("callable")
        )


def test_a_folder_with_other_things_is_not_written_over(tmp_path, tiny_checkpoint):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists and is not a checkpoint"):
        compress(tiny_checkpoint("gpt"), recipe(slim()), tmp_path / "mine")


MODULE = """
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x)
"""


def test_any_module_becomes_a_checkpoint_that_is_exported_again(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    source, inputs = f"{tmp_path / 'mine.py'}:Small", ("x:float32[batch,4]",)
    steps = recipe(("same", {}))
    compress(source, steps, tmp_path / "out", inputs=inputs, measure=False)
    found = checkpoint.load(tmp_path / "out")
    assert found.spec.family == "module"
    assert found.spec.config == {"source": source, "inputs": list(inputs)}
    (bundle,) = export(str(tmp_path / "out"), tmp_path / "bundle", formats=["torch"])
    assert bundle.manifest.config == {"source": "mine.py:Small", "inputs": list(inputs)}
    assert open_bundle(tmp_path / "bundle").manifest.history[-1]["kind"] == "same"
    again = compress(tmp_path / "out", steps, tmp_path / "twice", measure=False)
    assert [entry.kind for entry in again] == ["same"]
    (tmp_path / "mine.py").unlink()
    with pytest.raises(NotFoundError, match=r"mine\.py: no such file, and this checkpoint"):
        checkpoint.load(tmp_path / "out")


def test_an_onnx_file_has_nothing_to_compress(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="a finished graph"):
        compress(tmp_path / "graph.onnx", recipe(slim()), tmp_path / "out")


def test_a_spec_says_what_was_done_to_a_model(tiny_checkpoint):
    from edgegen.compress import Work
    from edgegen.compress._open import traces
    from edgegen.spec import Scheme

    spec = ModelSpec("gpt", {}, shapes={"a": (1,)}, layers={"b": Scheme()}, adapters={"c": 2})
    assert traces(Work(spec, torch.nn.Identity())) == {"prune", "quantize", "lora"}
