"""EdgeGen's own engine for text: small decoders, on the CPU, in C (`_native/`).

Built when EdgeGen is installed, where there is a C compiler. The file is mapped into memory and
used as it lies there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.errors import (
    FormatError,
    MismatchError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options, Sampling

READS = "native"
LIBRARY = "edgegen.runtimes._engine"
SIZES = (
    *("hidden", "heads", "kv_heads", "head_dim", "intermediate", "layers", "vocabulary"),
    *("positions", "rotary", "bits", "outer_bits"),
)
SMALL_BYTES = 4_000_000  # below this, one thread is faster than two that wait for each other
SAID = 200
INSTALL = (
    "run: apt-get install gcc, then: pip install --force-reinstall --no-deps edgegen; "
    "or use --runtime onnxruntime"
)


def built() -> str:
    """Where the library lies.

    Raises:
        MissingExtraError: it is not there, or is another system's.
    """
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or not spec.origin:
        raise MissingExtraError(
            "native: its C code is not compiled: no C compiler was found when EdgeGen was installed",
            INSTALL,
        )
    return spec.origin


def version() -> str:
    """The version of EdgeGen, and the kernels that this CPU runs."""
    from edgegen import __version__

    return f"{__version__} {_library().eg_kernels(None).decode()}"


def devices() -> list[str]:
    """The CPU."""
    return ["cpu"]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> NativeSession:
    """Map the file and check every size and number in it.

    Raises:
        NotFoundError: another device than the CPU.
        FormatError: a damaged file; what is wrong with it is named.
        UsageError: more threads than this process may use.
    """
    if device.partition(":")[0] not in ("cpu", "auto"):
        raise NotFoundError(f"native has no device {device!r}, only cpu", "use --device cpu")
    unknown = set(options.provider) - {"kernels"}
    if unknown:
        raise UnsupportedError(
            f"native has no option {min(unknown)!r}", "its one option is kernels=NAME"
        )
    return NativeSession(_Model(path), graph, options)


@cache
def _library() -> Any:
    """The shared library, its functions declared."""
    path = built()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise MissingExtraError(f"native: {path} cannot be loaded: {error}", INSTALL) from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    library.eg_kernels.argtypes, library.eg_kernels.restype = [text], text
    library.eg_model_new.argtypes = [pointer, ctypes.c_float, text]
    library.eg_model_new.restype = pointer
    library.eg_model_set.argtypes = [pointer, text, pointer, ctypes.c_uint64, text]
    library.eg_model_ready.argtypes = [pointer, text]
    library.eg_model_free.argtypes = library.eg_run_free.argtypes = [pointer]
    library.eg_run_new.argtypes = [pointer, number, number, text]
    library.eg_run_new.restype = pointer
    for name in ("eg_run_keys", "eg_run_values"):
        getattr(library, name).argtypes, getattr(library, name).restype = [pointer], pointer
    library.eg_forward.argtypes = [*[pointer] * 4, *[number] * 3, *[pointer] * 2, text]
    return library


class _Model:
    """A mapped file and the engine's view of it; both live as long as this does."""

    def __init__(self, path: Path) -> None:
        self.handle: Any = None
        self.library = _library()
        self._path = path
        self._map = _map(path)
        self._bytes = np.frombuffer(self._map, np.uint8)
        said = ctypes.create_string_buffer(SAID)
        try:
            header, data = _header(self._bytes)
            self.sizes = json.loads(header.pop("__metadata__")["sizes"])
            numbers = (ctypes.c_int32 * len(SIZES))(*(int(self.sizes[name]) for name in SIZES))
            tensors = list(_tensors(header, data, len(self._bytes)))
            epsilon = float(self.sizes["epsilon"])
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error
        self.handle = self.library.eg_model_new(numbers, epsilon, said)
        if not self.handle:
            raise self._broken(said.value.decode())
        start = self._bytes.ctypes.data
        for name, offset, size in tensors:
            where, called = start + offset, name.encode()
            if not self.library.eg_model_set(self.handle, called, where, size, said):
                raise self._broken(said.value.decode(errors="replace"))
        if not self.library.eg_model_ready(self.handle, said):
            raise self._broken(said.value.decode())
        self.weight_bytes = len(self._bytes)

    def _broken(self, why: str) -> FormatError:
        return FormatError(f"{self._path}: {why}", "export or copy the bundle again")

    def __del__(self) -> None:
        if self.handle:
            self.library.eg_model_free(self.handle)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: {error}", "export or copy the bundle again") from error


def _header(content: Array) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    length = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"{len(content)} bytes, the header alone says {length + 8}")
    return json.loads(content[8 : 8 + length].tobytes()), 8 + length


def _tensors(header: dict[str, Any], data: int, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the file, and bytes of every tensor, all of them inside the file."""
    for name, entry in header.items():
        begin, end = map(int, entry["data_offsets"])
        if not 0 <= begin <= end <= size - data or (data + begin) % 4:
            raise ValueError(f"{name} lies at {begin} to {end} of {size - data} bytes")
        yield name, data + begin, end - begin


class _Run:
    """Caches, buffers and threads for one batch size."""

    def __init__(self, model: _Model, batch: int, threads: int, kernels: str) -> None:
        self._model, self.batch = model, batch
        self.handle = model.library.eg_run_new(model.handle, batch, threads, kernels.encode())
        if not self.handle:
            raise UsageError(
                f"native: no memory for a batch of {batch} with {threads} threads",
                "ask for a smaller batch",
            )
        sizes = model.sizes
        shape = (batch, *(sizes[n] for n in ("layers", "kv_heads", "positions", "head_dim")))
        library = model.library
        # (batch, layers, kv_heads, positions, head_dim), written and read in place.
        self.keys = _floats(library.eg_run_keys(self.handle), shape)
        self.values = _floats(library.eg_run_values(self.handle), shape)

    def forward(
        self, ids: Array, positions: Array, mask: Array, *, every: bool, logits: bool = True
    ) -> Array:
        """Logits (batch, time or 1, vocabulary), or the most likely tokens (batch,)."""
        batch, time = ids.shape
        ids, positions = (np.ascontiguousarray(a, np.int64) for a in (ids, positions))
        mask = np.ascontiguousarray(mask, np.uint8)
        shape = (batch, time if every else 1, self._model.sizes["vocabulary"])
        out = np.empty(shape, np.float32) if logits else np.empty(batch, np.int32)
        said = ctypes.create_string_buffer(SAID)
        done = self._model.library.eg_forward(
            self.handle,
            *(a.ctypes.data for a in (ids, positions, mask)),
            time,
            mask.shape[1] - time,
            int(every),
            out.ctypes.data if logits else None,
            None if logits else out.ctypes.data,
            said,
        )
        if not done:
            raise MismatchError(f"native: {said.value.decode()}", "check the request")
        return out

    def __del__(self) -> None:
        if self.handle:
            self._model.library.eg_run_free(self.handle)


def _floats(pointer: int, shape: tuple[int, ...]) -> Array:
    flat = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(flat, shape)


class NativeSession:
    """A decoder, opened. Its caches are made for the first batch and kept for the next."""

    def __init__(self, model: _Model, graph: GraphSpec, options: Options) -> None:
        self.graph = graph
        self._model: _Model | None = model
        self._kernels = options.provider.get("kernels", "")
        if model.library.eg_kernels(self._kernels.encode()) is None:
            best = model.library.eg_kernels(None).decode()
            raise UsageError(f"this CPU has no kernels {self._kernels!r}", f"its best are {best}")
        self.threads = _threads(options.threads, model.weight_bytes)
        self._run: _Run | None = None

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs; the cache goes in and comes out as any other tensor."""
        self.graph.check(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        run, past = self.ready(len(ids)), mask.shape[1] - ids.shape[1]
        sides = {"key": run.keys, "value": run.values}
        pasts = [s.name for s in self.graph.inputs if s.name.startswith("past_key_values.")]
        for name in pasts:
            _, layer, side = name.split(".")
            sides[side][:, int(layer), :, :past] = inputs[name]
        logits = run.forward(ids, inputs["position_ids"], mask != 0, every=True)
        out = {"logits": logits}
        for name in pasts:
            _, layer, side = name.split(".")
            out[f"present.{layer}.{side}"] = sides[side][:, int(layer), :, : mask.shape[1]].copy()
        return out

    def cached(self) -> CachedForward:
        """The decoder with its cache kept here."""
        return _Cached(self)

    def decoder(self, sampling: Sampling) -> GreedyDecoder | None:
        """A decoder that takes the most likely token inside the engine; None for any other way."""
        return GreedyDecoder(self) if sampling == Sampling() else None

    def ready(self, batch: int) -> _Run:
        """Caches for `batch` sequences."""
        if self._model is None:
            raise UsageError("the session is closed", "open the bundle again")
        if self._run is None or self._run.batch != batch:
            self._run = None  # before the next, so that there are never two
            self._run = _Run(self._model, batch, self.threads, self._kernels)
        return self._run

    def operators(self) -> tuple[Operator, ...]:
        """None, even when asked to profile: the engine is one operator."""
        return ()

    def close(self) -> None:
        """Give back caches, threads and the mapping."""
        self._run = self._model = None


class _Cached:
    """A `CachedForward`."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        run = self._session.ready(len(input_ids))
        return run.forward(input_ids, position_ids, attention_mask, every=False)[:, 0]


class GreedyDecoder:
    """A `Decoder`: prompts padded on the left, the most likely token chosen in the engine."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        longest, batch = max(map(len, prompts)), len(prompts)
        limit = self._session.graph.limits.get("past+seq", longest)
        self._mask = np.ones((batch, max(limit, longest)), np.uint8)
        ids = np.zeros((batch, longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            self._mask[row, : longest - len(prompt)] = 0
        self._used = longest
        positions = np.clip(self._mask[:, :longest].cumsum(axis=1, dtype=np.int64) - 1, 0, None)
        self._positions = positions[:, -1:]
        return self._next(ids, positions)

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        self._used += 1
        self._positions = self._positions + 1
        return self._next(self._ids[:, None], self._positions)

    def _next(self, ids: Array, positions: Array) -> Array:
        run = self._session.ready(len(ids))
        mask = self._mask[:, : self._used]
        self._ids = run.forward(ids, positions, mask, every=False, logits=False).astype(np.int64)
        if self._ids.min() < 0:
            raise MismatchError(
                "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
            )
        return self._ids


def _threads(asked: int, weight_bytes: int) -> int:
    """What was asked for; else one for a small model, and all cores that this process may use.

    Raises:
        UsageError: more than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if asked > (cores or 1):
        raise UsageError(f"{asked} threads, this process may use {cores}", f"use --threads {cores}")
    return asked or (1 if weight_bytes < SMALL_BYTES else min(cores or 1, 64))
