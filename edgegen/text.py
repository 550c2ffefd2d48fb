"""Text to token ids and back: the bundle's tokenizer, its chat template, and streaming."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from edgegen import rooms
from edgegen.bundle import Bundle, Text, check_files
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.spec import Array

FILE = "tokenizer.json"
# What decoding gives for bytes that are not (yet) a character.
BROKEN = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A tokenizer and the chat template that goes with it."""

    def __init__(self, place: str, tokenizer: Any, text: Text) -> None:
        self._place = place
        self._tokenizer = tokenizer
        self._text = text

    def encode(self, prompt: str, *, chat: bool = False) -> tuple[int, ...]:
        """Token ids; with `chat`, of the prompt as a user's message in the chat template.

        Raises:
            UsageError: nothing to encode, not valid Unicode, or no chat template.
        """
        written = self.chat(prompt) if chat else prompt
        try:
            ids = self._tokenizer.encode(written, add_special_tokens=not chat).ids
        except (TypeError, UnicodeError) as error:
            raise UsageError("the prompt is not valid UTF-8", "re-encode it as UTF-8") from error
        if not ids and self._text.bos is not None:
            ids = [self._text.bos]
        if not ids:
            raise UsageError("the prompt is empty", "give some text: --prompt 'Once upon a time'")
        return tuple(ids)

    def corpus(self, text: str, end: str) -> tuple[Array, Array]:
        """Ids of a long text, and how many of its UTF-8 bytes each one adds; (tokens,) both.

        `end` stands between two texts: it becomes the model's own end token, of no bytes, or
        where it has none, the beginning of a paragraph.
        """
        mark = self._text.eos[:1]
        ids: list[int] = []
        sizes: list[Array] = []
        for n, part in enumerate(text.split(end) if mark else [text.replace(end, "\n\n")]):
            found = self._tokenizer.encode(part, add_special_tokens=False)
            ids += [*(mark if n else ()), *found.ids]
            sizes += [*([np.zeros(1, np.int64)] if n else []), _bytes(part, found.offsets)]
        return np.array(ids, np.int64), np.concatenate(sizes)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, prompt: str) -> str:
        """`prompt` as a user's message, and the start of the answer.

        The template is data from a stranger: it runs in jinja2's sandbox.
        """
        if not self._text.chat_template:
            raise UsageError(f"{self._place}: there is no chat template", "leave out --chat")
        try:
            import jinja2
        except ModuleNotFoundError as error:
            raise rooms.missing(error, "the chat template") from error
        message = {"role": "user", "content": prompt}
        try:
            template = _sandbox().from_string(self._text.chat_template)
            return str(
                template.render(
                    messages=[message],
                    add_generation_prompt=True,
                    bos_token=self._token(self._text.bos),
                    eos_token=self._token(next(iter(self._text.eos), None)),
                )
            )
        except jinja2.TemplateError as error:
            raise FormatError(
                f"{self._place}: its chat template fails: {error}", "leave out --chat"
            ) from error

    def _token(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.id_to_token(token) or ""


def _sandbox() -> Any:
    """The environment that chat templates are written for, as transformers sets it up."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _bytes(text: str, offsets: Sequence[tuple[int, int]]) -> Array:
    """UTF-8 bytes of `text` up to the end of each token, less those before it; (tokens,).

    Of a character that several tokens share, the first has all bytes.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    upto = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    ends = np.array([stop for _, stop in offsets], np.int64)
    return np.diff(np.maximum.accumulate(upto[ends]), prepend=0)


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a text bundle.

    Raises:
        NotFoundError: the bundle has none.
        FormatError: the file is altered or cannot be read.
        MissingExtraError: the library is not installed.
    """
    if not isinstance(bundle.manifest.loop, Text):
        raise UsageError(f"{bundle.path} is no text model", "give the bundle of a text model")
    if FILE not in bundle.manifest.files:
        raise NotFoundError(
            f"{bundle.path}: a text bundle without a tokenizer ({FILE} is missing)",
            f"put {FILE} beside the model and export again, or give token ids to steps()",
        )
    check_files(bundle, {FILE})
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "text") from error
    file = bundle.path / FILE
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(f"{file}: not a tokenizer: {error}", "export it again") from error
    # Training leaves these in the file; a prompt must be neither cut nor filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokenizer(str(bundle.path), tokenizer, bundle.manifest.loop)


class TextStream:
    """One sequence's text as it grows; what was given out is never taken back.

    Text is held while it is half a character or may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], ends: Sequence[int]) -> None:
        if not all(stop):
            raise UsageError("an empty stop string", "leave it out")
        self.text = ""
        self.done = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._ends = ends
        self._held = ""
        self._ids: list[int] = []
        # Only these few last ids are decoded: some decoders need what stands before a token.
        self._window = self._read = 0

    def feed(self, token: int, *, last: bool = False) -> str:
        """The text that is certain after one more token; `last` gives out all that is held."""
        if token in self._ends:
            last = True
        else:
            self._ids.append(token)
        return self._give(self._fresh(last), last)

    def _fresh(self, last: bool) -> str:
        """What the newest ids add, once it is whole."""
        before = self._tokenizer.decode(self._ids[self._window : self._read])
        now = self._tokenizer.decode(self._ids[self._window :])
        if not last and (now.endswith(BROKEN) or len(now) <= len(before)):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _give(self, fresh: str, last: bool) -> str:
        held = self._held + fresh
        found = [held.index(s) for s in self._stop if s in held]
        if found:
            held = held[: min(found)]
        self.done = last or bool(found)
        keep = 0 if self.done else max((_overlap(held, s) for s in self._stop), default=0)
        given, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += given
        return given


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
