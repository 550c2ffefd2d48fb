"""A Hugging Face folder: `config.json`, safetensors (sharded or not), `tokenizer.json`.

The weights are mapped here, without transformers: they stay in the page cache until they are
used, and are copied only where they are not float32 or not laid out as ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgegen.errors import FormatError, NotFoundError, UnsupportedError
from edgegen.models.gpt import Config, loop
from edgegen.sources import Model, _sidefiles
from edgegen.sources._decoder import assemble
from edgegen.sources._hfconfig import CONFIGS, ends, reject

INDEX, WEIGHTS, PICKLE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)
LLAMA_BUFFERS = ("rotary_emb.inv_freq",)
GPT2_BUFFERS = (".attn.bias", ".attn.masked_bias")
GPT2_NAMES = {
    "wte": "embed_tokens",
    "wpe": "embed_positions",
    "ln_f": "norm",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def read(source: str, inputs: Sequence[str] = (), pixels: object = None) -> Model:
    """The decoder in a folder, with the files other tools look for.

    Raises:
        NotFoundError: no weights or no `tokenizer.json`.
        UnsupportedError: a `model_type`, or an option of its config, that is not known.
        FormatError: broken JSON, truncated weights, or tensors that are missing or unknown.
    """
    folder = Path(source)
    keys = read_json(folder / "config.json")
    kind = keys.get("model_type")
    if kind not in CONFIGS:
        raise UnsupportedError(
            f"{folder / 'config.json'}: model_type {kind!r} is not supported",
            f"supported: {', '.join(CONFIGS)}; any other goes in as FILE.py:CALLABLE with --input",
        )
    reject(kind, keys, f"{folder / 'config.json'}")
    generation = read_json(folder / "generation_config.json", {})
    bos, eos = ends(generation, keys)
    config = msgspec.structs.replace(CONFIGS[kind](keys), bos_token_id=bos, eos_token_ids=eos)
    settings = read_json(folder / "tokenizer_config.json", {})
    template = _chat_template(folder, settings)
    files = _files(folder, kind, config, template)
    stored = _stored(folder)
    weights = dict(MAPPED[kind](stored, config))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored.values())
    name = folder.resolve().name
    entry = {"kind": "source", "format": "huggingface", "source": name, "stored": dict(dtypes)}
    return assemble(name, config, weights, files, chat_template=template, entry=entry, place=source)


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object; `default` where there is no such file."""
    if default is not None and not path.is_file():
        return default
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise FormatError(f"{path}: not a JSON object: {error}", "restore the file") from error


def _files(folder: Path, kind: str, config: Config, template: str) -> dict[str, bytes]:
    if not (folder / "tokenizer.json").is_file():
        raise NotFoundError(
            f"{folder / 'tokenizer.json'}: missing: text cannot be run without its tokenizer",
            "copy it from where the weights came from, or write it with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    tokenizer = (folder / "tokenizer.json").read_bytes()
    special = _sidefiles.special_of(tokenizer, config)
    made = _sidefiles.all_files(config, loop(config), tokenizer, special, template)
    genai = _sidefiles.genai_config(kind, config, loop(config))
    kept = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).is_file()}
    return made | kept | {"genai_config.json": _sidefiles.to_json(genai)}


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    """From its own file, else from `tokenizer_config.json`: one text, or several with names."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template") or ""
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default", "")
    return str(found)


def _stored(folder: Path) -> dict[str, Tensor]:
    """Every stored tensor under its own name."""
    if (folder / INDEX).is_file():
        shards = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors |= _safetensors(folder / shard)
        return tensors
    if (folder / WEIGHTS).is_file():
        return _safetensors(folder / WEIGHTS)
    if (folder / PICKLE).is_file():
        return _pickle(folder / PICKLE)
    raise NotFoundError(f"{folder}: no {WEIGHTS} in this folder", "download the weights as well")


def _safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NotFoundError(f"{path}: missing, {INDEX} names it", "download this shard as well")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise FormatError(
            f"{path}: not a whole safetensors file: {error}", "copy or download it again"
        ) from error


def _pickle(path: Path) -> dict[str, Tensor]:
    """Old weights. Only tensors are let out of the pickle: anything that would run is refused."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise FormatError(
            f"{path}: not a pickle of nothing but tensors",
            "convert it to model.safetensors where you trust it: safetensors.torch.save_file",
        ) from error
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _llama(stored: Mapping[str, Tensor], config: Config) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stored.items():
        if not name.endswith(LLAMA_BUFFERS) and not _is_tied_head(name, config):
            yield name.removeprefix("model."), tensor


def _gpt2(stored: Mapping[str, Tensor], config: Config) -> Iterator[tuple[str, Tensor]]:
    """GPT-2 keeps its matrices the other way round (`Conv1D`), query, key and value in one."""
    for stored_name, stored_tensor in stored.items():
        name, tensor = stored_name.removeprefix("transformer."), stored_tensor
        if name.endswith(GPT2_BUFFERS) or _is_tied_head(name, config):
            continue
        if ".c_" in name and name.endswith("weight"):
            tensor = tensor.t().contiguous()
        prefix, inner, kind = _split(name)
        if inner == "attn.c_attn":
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{prefix}self_attn.{part}_proj.{kind}", third
        else:
            yield f"{prefix}{GPT2_NAMES.get(inner, inner)}.{kind}", tensor


def _split(name: str) -> tuple[str, str, str]:
    """`h.3.attn.c_proj.weight` -> `layers.3.`, `attn.c_proj`, `weight`."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("h."):
        return "", stem, kind
    _, layer, inner = stem.split(".", 2)
    return f"layers.{layer}.", inner, kind


def _is_tied_head(name: str, config: Config) -> bool:
    """Some files store the embedding a second time, as the head it is tied to."""
    return name == "lm_head.weight" and config.tie_word_embeddings


Mapper = Callable[[Mapping[str, Tensor], Config], Iterator[tuple[str, Tensor]]]
MAPPED: dict[str, Mapper] = {"llama": _llama, "qwen2": _llama, "gpt2": _gpt2}
