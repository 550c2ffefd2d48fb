"""Decoders read into numpy: the same as in torch, or None where only torch can."""

import json

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen import checkpoint
from edgegen.errors import FormatError, MismatchError, NotFoundError
from edgegen.models._numpy import Decoder
from edgegen.sources import open_plain, open_source
from edgegen.spec import ModelSpec

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 262,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}


def alike(source):
    """What both ways read is one model; returns the one in numpy."""
    plain, model = open_plain(source), open_source(source)
    decoder, net = plain.parts["model"].module, model.parts["model"].module
    assert isinstance(decoder, Decoder)
    state = net.state_dict()
    assert decoder.weights.keys() == state.keys()
    for name, array in decoder.weights.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.array_equal(array, state[name].numpy())
    rest = {"parts": None}
    assert plain._replace(**rest) == model._replace(**rest)
    assert plain.parts["model"].spec == model.parts["model"].spec
    return decoder


def test_a_llama_folder_is_the_same_in_numpy_and_mapped(folder):
    weight = alike(str(folder)).weights["embed_tokens.weight"]
    while not isinstance(weight.base, np.memmap):
        weight = weight.base
    assert weight.base.filename == folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_widened_as_torch_does(folder, dtype):
    file = folder / "model.safetensors"
    save_file({name: t.to(dtype) for name, t in load_file(file).items()}, file)
    alike(str(folder))


def test_a_gpt2_folder_is_turned_and_cut_as_in_torch(folder):
    (folder / "config.json").write_text(json.dumps(GPT2))
    inside = {
        "ln_1.weight": (32,),
        "ln_1.bias": (32,),
        "ln_2.weight": (32,),
        "ln_2.bias": (32,),
        "attn.bias": (1, 1, 64, 64),
        "attn.c_attn.weight": (32, 96),
        "attn.c_attn.bias": (96,),
        "attn.c_proj.weight": (32, 32),
        "attn.c_proj.bias": (32,),
        "mlp.c_fc.weight": (32, 128),
        "mlp.c_fc.bias": (128,),
        "mlp.c_proj.weight": (128, 32),
        "mlp.c_proj.bias": (32,),
    }
    shapes = {"wte.weight": (262, 32), "wpe.weight": (64, 32)}
    shapes |= {"ln_f.weight": (32,), "ln_f.bias": (32,)}
    shapes |= {f"h.{n}.{name}": shape for n in range(2) for name, shape in inside.items()}
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["h.0.attn.bias"] = tensors["h.0.attn.bias"] > 0  # the mask of old, as bool
    save_file(tensors, folder / "model.safetensors")
    alike(str(folder))


def test_shards_are_put_together(folder):
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(stored)
    files = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, mine in files.items():
        save_file({name: stored[name] for name in mine}, folder / file)
    index = {name: file for file, mine in files.items() for name in mine}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    alike(str(folder))
    (folder / "b.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"b\.safetensors: missing"):
        open_plain(str(folder))


def test_what_only_torch_reads_is_left_to_it(folder, net):
    file = folder / "model.safetensors"
    stored = load_file(file)
    narrow = {"model.norm.weight": stored["model.norm.weight"].to(torch.float8_e4m3fn)}
    save_file(stored | narrow, file)
    assert open_plain(str(folder)) is None
    file.unlink()
    torch.save({f"model.{n}": t for n, t in net.state_dict().items()}, folder / "pytorch_model.bin")
    assert open_plain(str(folder)) is None


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"model\.safetensors: not a whole safetensors"):
        open_plain(str(folder))


def test_lost_and_misshapen_tensors_are_named(edit, folder):
    with pytest.raises(FormatError, match="and 4 more"):
        open_plain(edit(num_hidden_layers=3))
    with pytest.raises(MismatchError, match=r"down_proj\.weight is \(32, 48\), .* \(32, 64\)"):
        open_plain(edit(intermediate_size=64))
    save_file({}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="missing tensors: embed_tokens"):
        open_plain(str(folder))


def save(path, net, tokenizer, **fields):
    spec = ModelSpec("gpt", msgspec.to_builtins(net.config), **fields)
    checkpoint.save(path, spec, net, ({"kind": "train", "steps": 3},), tokenizer)
    return str(path)


def test_a_trained_checkpoint_is_the_same_in_numpy(tmp_path, net, tiny):
    source = save(tmp_path / "poet", net, tiny["tokenizer"]().to_str().encode())
    alike(source)
    (tmp_path / "poet" / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors: no such file"):
        open_plain(source)


def test_a_checkpoint_without_a_tokenizer_or_of_changed_layers(tmp_path, net):
    with pytest.raises(NotFoundError, match=r"tokenizer\.json: missing"):
        open_plain(save(tmp_path / "poet", net, None))
    shapes = {"layers.0.mlp.up_proj.weight": (16, 32)}
    assert open_plain(save(tmp_path / "pruned", net, b"{}", shapes=shapes)) is None


def test_another_kind_of_source_is_left_to_torch(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("import torch\n\ndef make():\n    return torch.nn.Linear(2, 2)\n")
    assert open_plain(f"{file}:make") is None
