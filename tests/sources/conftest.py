"""A tiny decoder and tokenizer, and folders and files that hold them."""

import json

import msgspec
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgegen.models import gpt

CONFIG = gpt.Config(
    vocab_size=262,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
    max_position_embeddings=64,
    bos_token_id=256,
    eos_token_ids=(257,),
)
LLAMA = {
    "model_type": "llama",
    "vocab_size": 262,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
SPECIAL = ("<s>", "</s>", "<|user|>", "<|bot|>")


def make_net(config=CONFIG):
    torch.manual_seed(0)
    net = gpt.Net(config).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)
    return net


def logits(net, ids):
    """Of the whole sequence, from an empty cache."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        return net(ids, torch.ones_like(ids), positions, *net.empty_cache(len(ids)))[0]


def make_tokenizer():
    """Bytes, four special tokens and two merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(SPECIAL)}
    vocabulary |= {"th": len(vocabulary), "the": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def ids():
    return torch.randint(256, (2, 9), generator=torch.manual_seed(1))


@pytest.fixture
def folder(tmp_path, net):
    """A Hugging Face folder of type llama."""
    from safetensors.torch import save_file

    path = tmp_path / "tiny-llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA))
    (path / "tokenizer.json").write_text(make_tokenizer().to_str())
    save_file({f"model.{n}": t for n, t in net.state_dict().items()}, path / "model.safetensors")
    return path


@pytest.fixture
def edit(folder):
    """Change keys of the folder's config.json."""

    def change(**keys):
        (folder / "config.json").write_text(json.dumps(LLAMA | keys))
        return str(folder)

    return change


@pytest.fixture
def tiny():
    """What the tests share: the config, and functions on it."""
    return {
        "config": CONFIG,
        "net": make_net,
        "logits": logits,
        "tokenizer": make_tokenizer,
        "replace": msgspec.structs.replace,
    }
