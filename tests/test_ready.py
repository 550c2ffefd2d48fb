"""What an export starts from: numpy where every format takes it so, torch where not."""

import subprocess
import sys

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from edgegen import checkpoint
from edgegen.bundle import open_bundle
from edgegen.errors import UsageError
from edgegen.export import export
from edgegen.models import gpt
from edgegen.models._numpy import Decoder
from edgegen.ready import opened
from edgegen.runtimes.native import built
from edgegen.spec import ModelSpec

CONFIG = gpt.Config(
    vocab_size=257, hidden_size=64, num_hidden_layers=2, intermediate_size=96, eos_token_ids=(256,)
)
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from edgegen.cli import main
sys.argv = ["edgegen", "export", *sys.argv[1:], "--to", "native", "-q"]
main()
"""


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    net = gpt.Net(CONFIG)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate([*alphabet, "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path / "poet"
    spec = ModelSpec("gpt", msgspec.to_builtins(CONFIG))
    checkpoint.save(path, spec, net, (), tokenizer.to_str().encode())
    return str(path)


def kind(source, *formats, changed=False):
    return type(opened(source, formats, (), None, changed=changed).parts["model"].module)


def test_numpy_is_taken_only_where_every_format_can(source):
    assert kind(source, "native") is kind(source, "fused", "native") is Decoder
    assert kind(source, "native", "onnx") is kind(source, "native", changed=True) is gpt.Net


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_decoder_is_exported_and_proved_without_torch(source, tmp_path, precision):
    built()
    command = [sys.executable, "-c", WITHOUT_TORCH, source, "-o", str(tmp_path / "bundle")]
    done = subprocess.run(
        [*command, "--precision", precision], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.reference == "numpy fp32"
    assert "torch" not in manifest.tools
    assert all(row.ok for row in manifest.drifts)


def test_the_file_is_the_one_that_torch_makes(source, tmp_path):
    export(source, tmp_path / "plain", formats=["native"], precisions=["int8"])
    model = opened(source, ["native"], (), None, changed=True)
    export(model, tmp_path / "torch", formats=["native"], precisions=["int8"])
    plain, torch_ = (open_bundle(tmp_path / name).manifest for name in ("plain", "torch"))
    assert (plain.reference, torch_.reference) == ("numpy fp32", "torch fp32")
    file = "model.native.safetensors"
    assert plain.files[file].bytes == torch_.files[file].bytes
    assert plain.artifacts == torch_.artifacts


def test_adapters_and_precisions_that_a_plain_model_lacks_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match="no adapters to merge"):
        export(source, tmp_path / "out", formats=["native"], merge=True)
    with pytest.raises(UsageError, match="is not quantized, so it is not w8a8"):
        export(source, tmp_path / "out", formats=["native"], precisions=["w8a8"])
