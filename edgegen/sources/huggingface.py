"""A Hugging Face folder: `config.json`, safetensors (sharded or not), `tokenizer.json`.

The weights are mapped here, without transformers: they stay in the page cache until they are
used, and are copied only where they are not float32 or not laid out as ours. Tensors are torch's
or numpy's: what renames and cuts them serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import msgspec
from safetensors import SafetensorError

from edgegen.errors import FormatError, NotFoundError, UnsupportedError
from edgegen.models._decoder import Config, loop
from edgegen.sources import Model, _plain, _sidefiles
from edgegen.sources._hfconfig import CONFIGS, ends, reject

INDEX, WEIGHTS, PICKLE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
AGAIN = "copy or download it again"
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


class Folder(NamedTuple):
    """All that a folder says but the weights."""

    path: Path
    name: str
    kind: str
    config: Config
    files: dict[str, bytes]
    template: str

    def entry(self, stored: Mapping[str, int]) -> dict[str, Any]:
        """Where the model came from, for its history; `stored` counts tensors by type."""
        origin = {"kind": "source", "format": "huggingface", "source": self.name}
        return origin | {"stored": dict(stored)}


def read(source: str, inputs: Sequence[str] = (), pixels: object = None) -> Model:
    """The decoder in a folder, with the files other tools look for.

    Raises:
        NotFoundError: no weights or no `tokenizer.json`.
        UnsupportedError: a `model_type`, or an option of its config, that is not known.
        FormatError: broken JSON, truncated weights, or tensors that are missing or unknown.
    """
    from edgegen.sources._decoder import assemble

    folder = describe(source)
    stored: dict[str, Any] = {}
    for file in weight_files(folder.path):
        stored |= _pickle(file) if file.name == PICKLE else _safetensors(file)
    weights = dict(MAPPED[folder.kind](stored, folder.config))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored.values())
    return assemble(
        folder.name,
        folder.config,
        weights,
        folder.files,
        chat_template=folder.template,
        entry=folder.entry(dtypes),
        place=source,
    )


def plain(source: str) -> Model | None:
    """The same in numpy; None for weights that numpy cannot hold or only torch can read.

    Raises:
        NotFoundError, UnsupportedError, FormatError: as `read`.
    """
    folder = describe(source)
    stored: dict[str, Any] = {}
    dtypes: Counter[str] = Counter()
    for file in weight_files(folder.path):
        found = None if file.name == PICKLE else _plain.read(_there(file), AGAIN)
        if found is None:
            return None
        stored |= found.tensors
        dtypes += found.stored
    return _plain.assemble(
        folder.name,
        folder.config,
        dict(MAPPED[folder.kind](stored, folder.config)),
        folder.files,
        chat_template=folder.template,
        history=(folder.entry(dtypes),),
        place=source,
    )


def describe(source: str) -> Folder:
    """What the model is, and its side files."""
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
    return Folder(folder, folder.resolve().name, kind, config, files, template)


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


def weight_files(folder: Path) -> list[Path]:
    """Every file that holds weights: the shards, the one file, or the pickle of old."""
    if (folder / INDEX).is_file():
        shards = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        return [folder / shard for shard in shards]
    for name in (WEIGHTS, PICKLE):
        if (folder / name).is_file():
            return [folder / name]
    raise NotFoundError(f"{folder}: no {WEIGHTS} in this folder", "download the weights as well")


def _there(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"{path}: missing, {INDEX} names it", "download this shard as well")
    return path


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(_there(path)))
    except SafetensorError as error:
        raise FormatError(f"{path}: not a whole safetensors file: {error}", AGAIN) from error


def _pickle(path: Path) -> dict[str, Any]:
    """Old weights. Only tensors are let out of the pickle: anything that would run is refused."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise FormatError(
            f"{path}: not a pickle of nothing but tensors",
            "convert it to model.safetensors where you trust it: safetensors.torch.save_file",
        ) from error
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _llama(stored: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Any]]:
    for name, tensor in stored.items():
        if not name.endswith(LLAMA_BUFFERS) and not _is_tied_head(name, config):
            yield name.removeprefix("model."), tensor


def _gpt2(stored: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Any]]:
    """GPT-2 keeps its matrices the other way round (`Conv1D`), query, key and value in one."""
    for stored_name, stored_tensor in stored.items():
        name, tensor = stored_name.removeprefix("transformer."), stored_tensor
        if name.endswith(GPT2_BUFFERS) or _is_tied_head(name, config):
            continue
        if ".c_" in name and name.endswith("weight"):
            tensor = tensor.T
        prefix, inner, kind = _split(name)
        if inner == "attn.c_attn":
            third = len(tensor) // 3
            for n, part in enumerate("qkv"):
                rows = tensor[n * third : (n + 1) * third]
                yield f"{prefix}self_attn.{part}_proj.{kind}", rows
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


Mapper = Callable[[Mapping[str, Any], Config], Iterator[tuple[str, Any]]]
MAPPED: dict[str, Mapper] = {"llama": _llama, "qwen2": _llama, "gpt2": _gpt2}
