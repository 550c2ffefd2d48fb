import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError
from edgegen.sources import open_source


def test_the_folder_computes_what_was_saved_in_it(folder, net, ids, tiny):
    model = open_source(str(folder))
    module, spec = model.parts["model"]
    assert torch.equal(tiny["logits"](module, ids), tiny["logits"](net, ids))
    assert (model.name, model.family) == ("tiny-llama", "gpt")
    assert model.parameters == sum(weight.numel() for weight in net.parameters())
    assert spec.limits["seq"] == 64
    assert (model.loop.bos, model.loop.eos) == (256, (257,))
    assert model.history[0]["stored"] == {"float32": len(net.state_dict())}


def test_float32_weights_are_not_copied(folder):
    module, _ = open_source(str(folder)).parts["model"]
    weights = list(module.state_dict().values())
    places = sorted(weight.untyped_storage().data_ptr() for weight in weights)
    assert places[-1] - places[0] < 2 * sum(w.nbytes for w in weights)  # one mapping of the file
    assert not any(parameter.is_meta for parameter in module.parameters())


def test_shards_are_put_together(folder, net, ids, tiny):
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": dict(list(stored.items())[:7])}
    halves["b.safetensors"] = dict(list(stored.items())[7:])
    index = {name: file for file, tensors in halves.items() for name in tensors}
    for file, tensors in halves.items():
        save_file(tensors, folder / file)
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    module, _ = open_source(str(folder)).parts["model"]
    assert torch.equal(tiny["logits"](module, ids), tiny["logits"](net, ids))
    (folder / "b.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"b\.safetensors: missing") as error:
        open_source(str(folder))
    assert error.value.hint == "download this shard as well"


def test_the_ends_come_from_the_generation_config_first(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 258]}')
    assert open_source(str(folder)).loop.eos == (257, 258)


def test_the_chat_template_comes_from_either_place(folder):
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"chat_template": "one"}')
    assert open_source(str(folder)).loop.chat_template == "one"
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": several}))
    assert open_source(str(folder)).loop.chat_template == "two"
    (folder / "chat_template.jinja").write_text("three")
    model = open_source(str(folder))
    assert model.loop.chat_template == "three"
    assert model.files["chat_template.jinja"] == b"three"


def test_the_bundle_gets_what_other_tools_look_for(folder):
    files = {name: json.loads(data) for name, data in open_source(str(folder)).files.items()}
    assert files["config.json"]["model_type"] == "llama"
    assert files["tokenizer_config.json"]["eos_token"] == "</s>"
    assert files["generation_config.json"]["eos_token_id"] == [257]
    genai = files["genai_config.json"]["model"]
    assert genai["decoder"]["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert (genai["type"], genai["decoder"]["head_size"], genai["vocab_size"]) == ("llama", 8, 262)


def test_transformers_is_not_needed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert open_source(str(folder)).parts


def test_text_without_tokenizer_names_the_file(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match=r"tokenizer\.json: missing") as error:
        open_source(str(folder))
    assert "copy it from where the weights came from" in error.value.hint


def test_an_unknown_type_says_which_are_known(edit):
    with pytest.raises(UnsupportedError, match="model_type 'mamba' is not supported") as error:
        open_source(edit(model_type="mamba"))
    assert "llama, qwen2, gpt2" in error.value.hint
    assert "FILE.py:CALLABLE" in error.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("quantization_config", {"quant_method": "gptq"}),
    ],
)
def test_an_option_that_changes_the_model_is_refused(edit, key, value):
    with pytest.raises(UnsupportedError, match=f"{key} .* is not supported") as error:
        open_source(edit(**{key: value}))
    assert "supported:" in error.value.hint


def test_an_unknown_rotary_scaling_is_refused(edit):
    with pytest.raises(UnsupportedError, match="'yarn' is not supported") as error:
        open_source(edit(rope_scaling={"type": "yarn", "factor": 2}))
    assert error.value.hint == "supported: default, linear, llama3"


def test_linear_scaling_is_one_factor(edit):
    config = open_source(edit(rope_scaling={"type": "linear", "factor": 2})).config
    assert config["rope_factors"] == (2.0,) * 4


def test_a_key_that_must_be_there_is_named(folder):
    keys = json.loads((folder / "config.json").read_text())
    del keys["hidden_size"]
    (folder / "config.json").write_text(json.dumps(keys))
    with pytest.raises(FormatError, match="'hidden_size' is missing"):
        open_source(str(folder))


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"model\.safetensors: not a whole safetensors") as error:
        open_source(str(folder))
    assert "download it again" in error.value.hint


def test_no_weights_are_said(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"no model\.safetensors in this folder"):
        open_source(str(folder))


def test_lost_and_unknown_tensors_are_named(folder):
    file = folder / "model.safetensors"
    stored = {n: t.clone() for n, t in load_file(file).items()}
    stored["model.extra.weight"] = stored.pop("model.norm.weight")
    save_file(stored, file)
    message = r"missing tensors: norm\.weight; unknown tensors: extra\.weight"
    with pytest.raises(FormatError, match=message):
        open_source(str(folder))


def test_many_lost_tensors_are_counted(edit):
    with pytest.raises(FormatError, match="and 4 more"):
        open_source(edit(num_hidden_layers=3))


def test_a_tensor_of_another_shape_is_named(edit):
    with pytest.raises(MismatchError, match=r"down_proj\.weight is \(32, 48\), .* \(32, 64\)"):
        open_source(edit(intermediate_size=64))


def test_old_weights_are_read_only_where_they_are_nothing_but_tensors(folder, net, ids, tiny):
    (folder / "model.safetensors").unlink()
    pickle = folder / "pytorch_model.bin"
    torch.save({f"model.{n}": t for n, t in net.state_dict().items()}, pickle)
    module, _ = open_source(str(folder)).parts["model"]
    assert torch.equal(tiny["logits"](module, ids), tiny["logits"](net, ids))
    torch.save({"run": print, "weights": Exception()}, pickle)
    with pytest.raises(FormatError, match="not a pickle of nothing but tensors") as error:
        open_source(str(folder))
    assert "model.safetensors" in error.value.hint


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 262,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 262}
ENDS = {"bos_token_id": 256, "eos_token_id": 257}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("Llama", SIZES),
        ("Llama", SIZES | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
        ("Llama", SIZES | {"head_dim": 12}),
        ("Qwen2", SIZES),
        ("GPT2", GPT2),
    ],
    ids=["llama", "llama3-tied", "llama-head-dim", "qwen2", "gpt2"],
)
def test_logits_equal_those_of_transformers(tmp_path, ids, tiny, kind, keys):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**keys, **ENDS)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=0.2)
        theirs.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text(tiny["tokenizer"]().to_str())
        wanted = theirs(ids).logits
    model = open_source(str(tmp_path))
    found = tiny["logits"](model.parts["model"].module, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (model.loop.bos, model.loop.eos) == (256, (257,))
