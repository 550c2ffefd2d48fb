import json

import msgspec
import pytest
import torch

from edgegen import checkpoint, rooms
from edgegen.errors import NotFoundError
from edgegen.sources import open_source
from edgegen.spec import ModelSpec

HISTORY = ({"kind": "train", "steps": 3},)


def save(path, family, net, config, tokenizer=None):
    spec = ModelSpec(family, msgspec.to_builtins(config))
    checkpoint.save(path, spec, net, HISTORY, tokenizer)
    return str(path)


def test_a_text_checkpoint_computes_what_was_trained(tmp_path, net, ids, tiny):
    tokenizer = tiny["tokenizer"]().to_str().encode()
    model = open_source(save(tmp_path / "poet", "gpt", net, net.config, tokenizer))
    module, _ = model.parts["model"]
    assert torch.equal(tiny["logits"](module, ids), tiny["logits"](net, ids))
    assert (model.name, model.family, model.history) == ("poet", "gpt", HISTORY)
    assert model.files["tokenizer.json"] == tokenizer
    assert json.loads(model.files["config.json"])["model_type"] == "llama"
    assert model.loop.eos == (257,)


def test_text_without_tokenizer_names_the_file(tmp_path, net):
    with pytest.raises(NotFoundError, match=r"tokenizer\.json: missing") as error:
        open_source(save(tmp_path / "poet", "gpt", net, net.config))
    assert error.value.hint == "restore the file, or train again"


def test_gpt2_style_is_called_gpt2_in_the_side_files(tmp_path, tiny):
    config = tiny["replace"](tiny["config"], style="gpt2", num_key_value_heads=4)
    tokenizer = tiny["tokenizer"]().to_str().encode()
    files = open_source(save(tmp_path / "old", "gpt", tiny["net"](config), config, tokenizer)).files
    described = json.loads(files["config.json"])
    assert (described["model_type"], described["n_layer"]) == ("gpt2", 2)
    assert json.loads(files["genai_config.json"])["model"]["type"] == "decoder"


def test_ends_that_are_not_known_are_left_out_of_the_side_files(tmp_path, tiny):
    config = tiny["replace"](tiny["config"], bos_token_id=None, eos_token_ids=())
    tokenizer = tiny["tokenizer"]().to_str().encode()
    files = open_source(
        save(tmp_path / "poet", "gpt", tiny["net"](config), config, tokenizer)
    ).files
    assert json.loads(files["generation_config.json"]) == {"do_sample": False}
    assert "eos_token_id" not in json.loads(files["genai_config.json"])["model"]
    assert "eos_token" not in json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize(
    ("family", "graphs"), [("vae", {"encoder", "decoder"}), ("gan", {"generator"})]
)
def test_an_image_family_brings_its_graphs(tmp_path, family, graphs):
    code = rooms.load("edgegen.models", family)
    net = code.Net(code.Config())
    model = open_source(save(tmp_path / family, family, net, code.Config()))
    assert model.parts.keys() == graphs
    assert model.files == {}
    weights = {id(p): p.numel() for part in model.parts.values() for p in part.module.parameters()}
    assert model.parameters == sum(weights.values())
