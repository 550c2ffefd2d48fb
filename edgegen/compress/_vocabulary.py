"""Fewer tokens: a tokenizer without them, and what each id becomes."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen import rooms
from edgegen.batches import Material
from edgegen.compress._decoder import config_of, rebuilt
from edgegen.compress._groups import Group, Slice, kept
from edgegen.compress._work import Work
from edgegen.errors import MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.spec import Array

LISTED = 512  # tokens that are named in the history


def choose_tokens(work: Work, ratio: float, material: Material | None) -> list[int]:
    """Ids of the share `ratio` of all tokens that is used least; sorted.

    A token goes only when no other is made from it. Bytes, single characters and special tokens
    stay. Without data the tokens that were merged last go first: they were the rarest then.

    Raises:
        UsageError: fewer tokens may go than are asked for.
        UnsupportedError: the tokenizer is no byte-pair encoding.
    """
    file = read(work)
    ids: dict[str, int] = file["model"]["vocab"]
    made: dict[str, list[tuple[str, str]]] = {}
    for pair in merges(file):
        made.setdefault("".join(pair), []).append(pair)
    rank = {token: place for place, token in enumerate(made)}
    special = {added["content"] for added in file.get("added_tokens", [])}
    count = config_of(work.spec).vocab_size
    seen = np.zeros(count) if material is None else np.bincount(material.training, minlength=count)
    order = sorted(set(made) - special, key=lambda t: (seen[ids[t]], -rank[t]))
    named = {*ids.values(), *(added["id"] for added in file.get("added_tokens", []))}
    nameless = sorted(set(range(count)) - named)  # rows that only fill the table up
    wanted = round(count * ratio)
    tokens = _leaves_first(order, _users(merges(file)), made, max(0, wanted - len(nameless)))
    gone = [*nameless, *(ids[token] for token in tokens)][:wanted]
    if len(gone) < wanted:
        raise UsageError(
            f"prune: parts: vocabulary: {wanted} of {count} tokens asked for, but only "
            f"{len(gone)} may go: bytes and special tokens stay",
            f"use a ratio of at most {int(len(gone) / count * 100) / 100}",
        )
    return sorted(gone)


def _users(pairs: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    """Which tokens are merged from each."""
    users: dict[str, set[str]] = {}
    for left, right in pairs:
        for part in (left, right):
            users.setdefault(part, set()).add(left + right)
    return users


def _leaves_first(
    order: Sequence[str],
    users: Mapping[str, set[str]],
    made: Mapping[str, list[tuple[str, str]]],
    wanted: int,
) -> set[str]:
    """The first of `order`, but each only after everything that is made from it."""
    place = {token: n for n, token in enumerate(order)}
    left = {token: len(users.get(token, ())) for token in order}
    free = [place[token] for token in order if not left[token]]
    heapq.heapify(free)
    gone: set[str] = set()
    while free and len(gone) < wanted:
        token = order[heapq.heappop(free)]
        gone.add(token)
        for part in {part for pair in made[token] for part in pair} & left.keys():
            left[part] -= 1
            if not left[part]:
                heapq.heappush(free, place[part])
    return gone


def read(work: Work) -> dict[str, Any]:
    """The tokenizer's file.

    Raises:
        NotFoundError: the model has none.
        UnsupportedError: it is no byte-pair encoding.
    """
    if work.tokenizer is None:
        raise NotFoundError(
            "prune: parts: vocabulary: the model has no tokenizer",
            "restore tokenizer.json, or prune other parts",
        )
    file: dict[str, Any] = json.loads(work.tokenizer)
    kind = file.get("model", {}).get("type")
    if kind != "BPE" or file["model"].get("byte_fallback"):
        raise UnsupportedError(
            f"prune: parts: vocabulary: the tokenizer is of type {kind}, wanted a byte-level BPE",
            "prune other parts: parts = ['heads', 'mlp', 'blocks']",
        )
    return file


def merges(file: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges, in their order; older files write them "left right"."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in file["model"]["merges"])
    return [(left, right) for left, right in pairs]


def without_tokens(work: Work, gone: Sequence[int]) -> tuple[Work, dict[int, int]]:
    """The decoder and its tokenizer without those tokens, and the new id of each that stays."""
    config = config_of(work.spec)
    stay = sorted(set(range(config.vocab_size)) - set(gone))
    new = {old: place for place, old in enumerate(stay)}
    index = torch.arange(config.vocab_size)[:, None]
    state = work.net.state_dict()
    tables = [n for n in ("embed_tokens.weight", "lm_head.weight") if n in state]
    group = Group(
        "vocabulary", config.vocab_size, tuple(Slice(n, 0, index, True) for n in tables), ()
    )
    left = kept(state, [group], {"vocabulary": list(gone)})
    bos = config.bos_token_id
    smaller = msgspec.structs.replace(
        config,
        vocab_size=len(stay),
        bos_token_id=None if bos is None else new[bos],
        eos_token_ids=tuple(new[end] for end in config.eos_token_ids),
    )
    tokenizer = rewritten(read(work), new)
    return rebuilt(work._replace(tokenizer=tokenizer), smaller, left), new


def likewise(original: Work, work: Work) -> Work:
    """`original` with only the tokens that `work` has: it reads the same ids, and its odds are
    those of the tokens that are left.

    Raises:
        MismatchError: `work` has other tokens than a part of those of `original`.
    """
    if original.tokenizer == work.tokenizer:
        return original
    had, have = read(original), read(work)
    config, left = config_of(original.spec), config_of(work.spec).vocab_size
    gone = sorted({*_ids(had).values()} - {_ids(had).get(token, -1) for token in _ids(have)})
    # Rows without a token are the first to go.
    nameless = sorted(set(range(config.vocab_size)) - set(_ids(had).values()))
    gone += nameless[: max(0, config.vocab_size - len(gone) - left)]
    smaller = without_tokens(original, gone)[0] if gone else original
    if config_of(smaller.spec).vocab_size != left or _ids(read(smaller)) != _ids(have):
        raise MismatchError(
            f"the model has {left} tokens, which are not a part of the original's "
            f"{config.vocab_size}: the two cannot be compared",
            "give the model it was made from: --original",
        )
    return smaller


def _ids(file: Mapping[str, Any]) -> dict[str, int]:
    """Every token's id, special ones included."""
    ids: dict[str, int] = dict(file["model"]["vocab"])
    return ids | {added["content"]: added["id"] for added in file.get("added_tokens", [])}


def rewritten(file: dict[str, Any], new: Mapping[int, int]) -> bytes:
    """The tokenizer's file with only the tokens of `new`, under their new ids.

    Raises:
        MismatchError: the new tokenizer does not read a text back as it was.
    """
    model = file["model"]
    vocab = {token: new[i] for token, i in model["vocab"].items() if i in new}
    pairs = [pair for pair in merges(file) if {*pair, "".join(pair)} <= vocab.keys()]
    model |= {"vocab": vocab, "merges": [list(pair) for pair in pairs]}
    file["added_tokens"] = [
        added | {"id": new[added["id"]]} for added in file.get("added_tokens", [])
    ]
    _renumber(file.get("post_processor"), new)
    text = json.dumps(file, ensure_ascii=False)
    _check(text)
    return text.encode()


def _renumber(place: Any, new: Mapping[int, int]) -> None:
    """Ids in what is put around a text: `{"ids": [1]}` or `["<end>", 1]`."""
    if isinstance(place, dict):
        for key, value in place.items():
            if key == "ids":
                place[key] = [new[i] for i in value]
            elif key in ("sep", "cls"):
                place[key] = [value[0], new[value[1]]]
            else:
                _renumber(value, new)
    elif isinstance(place, list):
        for value in place:
            _renumber(value, new)


def _check(text: str) -> None:
    """All characters below U+0250, and some of many bytes, must come back as they were."""
    tokenizer = open_tokenizer(text.encode())
    sample = "".join(map(chr, range(1, 0x250))) + " the sea was calm; 日本 \N{GRINNING FACE}\n\n"
    for added in json.loads(text).get("added_tokens", []):
        sample = sample.replace(added["content"], "")
    back = tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False).ids)
    if back != sample:
        at = next(i for i, (a, b) in enumerate(zip(sample, back + "\0", strict=False)) if a != b)
        raise MismatchError(
            f"prune: parts: vocabulary: the smaller tokenizer loses {sample[at]!r}",
            "it is not a byte-level BPE: prune other parts",
        )


def open_tokenizer(file: bytes) -> Any:
    """A `tokenizers.Tokenizer`."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "text") from error
    return Tokenizer.from_str(file.decode())


def names_of(tokenizer: bytes, ids: Sequence[int]) -> list[str]:
    """The tokens of `ids`, the first few hundred of them."""
    reader = open_tokenizer(tokenizer)
    names = [str(reader.id_to_token(i)) for i in ids[:LISTED]]
    return names + ([f"and {len(ids) - LISTED} more"] if len(ids) > LISTED else [])


def recoded(material: Material, old: bytes, work: Work) -> Material:
    """The same text in the tokens of `work`, whose vocabulary is another than `old` has."""
    assert work.tokenizer is not None
    before, after = open_tokenizer(old), open_tokenizer(work.tokenizer)

    def again(ids: Array) -> Array:
        text = before.decode(ids.tolist(), skip_special_tokens=False)
        return np.array(after.encode(text, add_special_tokens=False).ids, np.int64)

    training, held_out = again(material.training), again(material.held_out)
    return material._replace(
        training=training, held_out=held_out, config=config_of(work.spec), tokenizer=work.tokenizer
    )
