"""`tokenizer.json` from the token list and merges that a GGUF file carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from edgegen.errors import FormatError, UnsupportedError

CONTROL, USER_DEFINED = 3, 4  # token types of the GGUF specification

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = WORDS % r"\p{N}{1,3}", WORDS % r"\p{N}"

# How text is cut before the merges, by the names llama.cpp gives (llama-vocab.cpp).
CUTS = {
    "default": "gpt-2",
    "gpt-2": "gpt-2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "codeshell": "digits",
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
}


def byte_level(get: Callable[..., Any], place: str) -> bytes:
    """The byte-level BPE tokenizer of a GGUF file whose keys `get(key, default)` reads.

    Raises:
        FormatError: there is no tokenizer in the file, or it is broken.
        UnsupportedError: it is of another kind, or cuts text in a way that is not known.
    """
    kind, cut = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre", "default")
    beside = "put the model's tokenizer.json beside the GGUF file"
    tokens, merges = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.merges")
    if kind is None or tokens is None:
        raise FormatError(f"{place}: there is no tokenizer in the file", beside)
    if kind != "gpt2" or merges is None:
        raise UnsupportedError(f"{place}: tokenizer {kind!r} is not byte-level BPE (gpt2)", beside)
    if cut not in CUTS:
        raise UnsupportedError(
            f"{place}: pre-tokenizer {cut!r} is not known; known: {', '.join(CUTS)}", beside
        )
    try:
        return _build(tokens, merges, cut, get).to_str().encode()
    except Exception as error:  # tokenizers raises no narrower type
        raise FormatError(
            f"{place}: the tokenizer in the file is broken: {error}", beside
        ) from error


def _build(tokens: list[str], merges: list[str], cut: str, get: Callable[..., Any]) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    whole_words = CUTS[cut] == LLAMA3  # Llama 3 takes a word that is a token before any merge
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=whole_words))
    if CUTS[cut] == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(CUTS[cut], get("tokenizer.ggml.add_space_prefix"))
    tokenizer.decoder = decoders.ByteLevel()
    types = get("tokenizer.ggml.token_type", [])
    for kind in (CONTROL, USER_DEFINED):
        added = [token for token, found in zip(tokens, types, strict=False) if found == kind]
        tokenizer.add_tokens(
            [AddedToken(token, special=kind == CONTROL, normalized=False) for token in added]
        )
    if get("tokenizer.ggml.add_bos_token", False):
        bos = tokens[get("tokenizer.ggml.bos_token_id")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, vocabulary[bos])]
        )
    return tokenizer


def _pre_tokenizer(cut: str, prefix: bool | None) -> Any:
    if cut == "gpt-2":
        return ByteLevel(add_prefix_space=bool(prefix))
    if cut == "digits":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=bool(prefix))])
    words = Split(Regex(cut), behavior="isolated")
    return Sequence([words, ByteLevel(add_prefix_space=bool(prefix), use_regex=False)])
