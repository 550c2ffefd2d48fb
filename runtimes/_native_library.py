"""The native engine's library as Python sees it: what it was built to, its models and its runs.

A model is a file mapped into memory, every size and number in it checked; a run is the caches,
buffers and threads for one batch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.errors import FormatError, MismatchError, MissingExtraError, UsageError
from edgegen.spec import Array

LIBRARY = "edgegen.runtimes._engine"
SIZES = (
    *("hidden", "heads", "kv_heads", "head_dim", "intermediate", "layers", "vocabulary"),
    *("positions", "rotary", "bits", "outer_bits"),
)
SAID = 200
BLOCK = 16  # positions whose keys lie together; ROWS of engine.h
CACHES = {"fp32": 32, "int8": 8}  # bits of a key's or value's number
INSTALL = (
    "run: pip install --force-reinstall --no-deps edgegen, once there is a compiler "
    "(apt-get install gcc); or use --runtime onnxruntime"
)


def built() -> str:
    """Where the library lies.

    Raises:
        MissingExtraError: it is not there, or is another system's.
    """
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or not spec.origin:
        raise MissingExtraError(
            "native: its C code is not compiled: no C compiler was there to install EdgeGen with",
            INSTALL,
        )
    return spec.origin


@cache
def library() -> Any:
    """The shared library, its functions declared."""
    path = built()
    try:
        found = ctypes.CDLL(path)
    except OSError as error:
        raise MissingExtraError(f"native: {path} cannot be loaded: {error}", INSTALL) from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    found.eg_kernels.argtypes, found.eg_kernels.restype = [text], text
    found.eg_model_new.argtypes = [pointer, ctypes.c_float, text]
    found.eg_model_new.restype = pointer
    found.eg_model_set.argtypes = [pointer, text, pointer, ctypes.c_uint64, text]
    found.eg_model_ready.argtypes = [pointer, text]
    found.eg_model_free.argtypes = found.eg_run_free.argtypes = [pointer]
    found.eg_run_new.argtypes = [pointer, number, number, number, text]
    found.eg_run_new.restype = pointer
    for name in ("keys", "values", "key_scales", "value_scales"):
        read = getattr(found, f"eg_run_{name}")
        read.argtypes, read.restype = [pointer], pointer
    found.eg_run_threads.argtypes = found.eg_run_late.argtypes = [pointer]
    found.eg_run_use.argtypes = [pointer, number]
    found.eg_forward.argtypes = [*[pointer] * 4, *[number] * 3, pointer, text]
    found.eg_write.argtypes = [pointer, pointer, number, *[pointer] * 3, TELL, text]
    return found


TELL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
SILENT = TELL(0)


class Text(ctypes.Structure):
    """`Text` of `_native/write.c`."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("ids", "positions", "mask", "seen", "ended", "ends")
        ),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("end_count", "time", "past", "cancel")),
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "penalty")),
        ("top_k", ctypes.c_int64),
    )


class Model:
    """A mapped file and the engine's view of it; both live as long as this does."""

    def __init__(self, path: Path) -> None:
        self.handle: Any = None
        self.library = library()
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


class Run:
    """Caches, buffers and threads for one batch size. `cache` is fp32, or int8 with scales."""

    def __init__(
        self, model: Model, batch: int, threads: int, kernels: str, cache: str = "fp32"
    ) -> None:
        self.model, self.batch = model, batch
        library, bits = model.library, CACHES[cache]
        self.handle = library.eg_run_new(model.handle, batch, threads, bits, kernels.encode())
        if not self.handle:
            raise UsageError(
                f"native: no memory for a batch of {batch} with {threads} threads",
                "ask for a smaller batch",
            )
        heads = (batch, *(model.sizes[name] for name in ("layers", "kv_heads")))
        blocks, width = -(-model.sizes["positions"] // BLOCK), model.sizes["head_dim"]
        kind = ctypes.c_float if bits == 32 else ctypes.c_int8
        # Both (batch, layers, kv_heads, blocks of positions, position, channel), in place: keys lie
        # the channel before the position, values as they are.
        self._sides = {
            "key": _view(
                library.eg_run_keys(self.handle), kind, (*heads, blocks, width, BLOCK)
            ).swapaxes(-1, -2),
            "value": _view(
                library.eg_run_values(self.handle), kind, (*heads, blocks, BLOCK, width)
            ),
        }
        self._scales = {
            side: _view(
                getattr(library, f"eg_run_{side}_scales")(self.handle),
                ctypes.c_float,
                (*heads, blocks, BLOCK),
            )
            for side in ("key", "value")
            if bits == 8
        }

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache; those never written take no memory."""
        arrays = (*self._sides.values(), *self._scales.values())
        return sum(array.nbytes for array in arrays)

    def put(self, layer: int, side: str, past: Array) -> None:
        """`past` (batch, kv_heads, positions, head_dim) into the cache."""
        past = _blocks(past)
        end = past.shape[2]
        if not self._scales:
            self._sides[side][:, layer, :, :end] = past
            return
        most = np.abs(past).max(axis=-1, initial=0)
        inverse = np.divide(127, most, out=np.zeros_like(most), where=most > 0)
        self._sides[side][:, layer, :, :end] = np.rint(past * inverse[..., None])
        self._scales[side][:, layer, :, :end] = most / np.float32(127)

    def get(self, layer: int, side: str, end: int) -> Array:
        """A copy of the first `end` positions, (batch, kv_heads, end, head_dim) in fp32."""
        blocks = -(-end // BLOCK)
        stored = self._sides[side][:, layer, :, :blocks].astype(np.float32)
        if self._scales:
            stored *= self._scales[side][:, layer, :, :blocks, :, None]
        return stored.reshape(*stored.shape[:2], blocks * BLOCK, -1)[:, :, :end]

    def forward(self, ids: Array, positions: Array, mask: Array, *, every: bool) -> Array:
        """Logits (batch, time or 1, vocabulary)."""
        batch, time = ids.shape
        ids, positions = (np.ascontiguousarray(a, np.int64) for a in (ids, positions))
        mask = np.ascontiguousarray(mask, np.uint8)
        out = np.empty((batch, time if every else 1, self.model.sizes["vocabulary"]), np.float32)
        said = ctypes.create_string_buffer(SAID)
        where = (array.ctypes.data for array in (ids, positions, mask))
        past = mask.shape[1] - time
        done = self.model.library.eg_forward(
            self.handle, *where, time, past, int(every), out.ctypes.data, said
        )
        if not done:
            raise MismatchError(f"native: {said.value.decode()}", "check the request")
        return out

    def __del__(self) -> None:
        if self.handle:
            self.model.library.eg_run_free(self.handle)


def _blocks(past: Array) -> Array:
    """(batch, kv_heads, positions, head_dim) as (batch, kv_heads, blocks, BLOCK, head_dim)."""
    batch, heads, count, width = past.shape
    blocks = -(-count // BLOCK)
    out = np.zeros((batch, heads, blocks * BLOCK, width), np.float32)
    out[:, :, :count] = past
    return out.reshape(batch, heads, blocks, BLOCK, width)


def _view(pointer: int, kind: Any, shape: tuple[int, ...]) -> Array:
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), shape)
