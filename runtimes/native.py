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
from collections.abc import Callable, Iterator, Sequence
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
from edgegen.rooms import nearest
from edgegen.runtimes.loops.autoregressive import dice, pad_left
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options, Sampling

READS = "native"
LIBRARY = "edgegen.runtimes._engine"
SIZES = (
    *("hidden", "heads", "kv_heads", "head_dim", "intermediate", "layers", "vocabulary"),
    *("positions", "rotary", "bits", "outer_bits"),
)
SMALL_BYTES = 4_000_000  # below this, one thread is faster than two that wait for each other
SAID = 200
MOST_THREADS = 64  # that the engine takes
CACHES = {"fp32": 32, "int8": 8}  # bits of a key's or value's number
AHEAD = 64  # random numbers drawn at once
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
    unknown = set(options.provider) - {"kernels", "cache"}
    if unknown:
        raise UnsupportedError(
            f"native has no option {min(unknown)!r}", "its options are kernels=NAME and cache=int8"
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
    library.eg_run_new.argtypes = [pointer, number, number, number, text]
    library.eg_run_new.restype = pointer
    for name in ("keys", "values", "key_scales", "value_scales"):
        read = getattr(library, f"eg_run_{name}")
        read.argtypes, read.restype = [pointer], pointer
    library.eg_run_threads.argtypes = library.eg_run_late.argtypes = [pointer]
    library.eg_run_use.argtypes = [pointer, number]
    library.eg_forward.argtypes = [*[pointer] * 4, *[number] * 3, pointer, text]
    library.eg_write.argtypes = [pointer, pointer, number, *[pointer] * 3, TELL, text]
    return library


TELL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
SILENT = TELL(0)


class _Text(ctypes.Structure):
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
    """Caches, buffers and threads for one batch size. `cache` is fp32, or int8 with scales."""

    def __init__(
        self, model: _Model, batch: int, threads: int, kernels: str, cache: str = "fp32"
    ) -> None:
        self.model, self.batch = model, batch
        library, bits = model.library, CACHES[cache]
        self.handle = library.eg_run_new(model.handle, batch, threads, bits, kernels.encode())
        if not self.handle:
            raise UsageError(
                f"native: no memory for a batch of {batch} with {threads} threads",
                "ask for a smaller batch",
            )
        sizes = model.sizes
        shape = (batch, *(sizes[n] for n in ("layers", "kv_heads", "positions", "head_dim")))
        kind = ctypes.c_float if bits == 32 else ctypes.c_int8
        # (batch, layers, kv_heads, positions, head_dim), written and read in place; scales alike,
        # without the last dimension.
        self._sides = {
            side: _view(getattr(library, f"eg_run_{side}s")(self.handle), kind, shape)
            for side in ("key", "value")
        }
        self._scales = {
            side: _view(
                getattr(library, f"eg_run_{side}_scales")(self.handle), ctypes.c_float, shape[:-1]
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
        stored = self._sides[side][:, layer, :, :end].astype(np.float32)
        if self._scales:
            stored *= self._scales[side][:, layer, :, :end, None]
        return stored

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


def _view(pointer: int, kind: Any, shape: tuple[int, ...]) -> Array:
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), shape)


class NativeSession:
    """A decoder, opened. Its caches are made for the first batch and kept for the next."""

    def __init__(self, model: _Model, graph: GraphSpec, options: Options) -> None:
        self.graph = graph
        self._model: _Model | None = model
        self._kernels = options.provider.get("kernels", "")
        if model.library.eg_kernels(self._kernels.encode()) is None:
            best = model.library.eg_kernels(None).decode()
            raise UsageError(f"this CPU has no kernels {self._kernels!r}", f"its best are {best}")
        self._cache = options.provider.get("cache", options.kv_cache or "fp32")
        if self._cache not in CACHES:
            raise UsageError(f"native: no cache {self._cache!r}", nearest(self._cache, CACHES))
        self.threads = _threads(options.threads, model.weight_bytes)
        self._run: _Run | None = None

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs; the cache goes in and comes out as any other tensor."""
        self.graph.check(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        run, past = self.ready(len(ids)), mask.shape[1] - ids.shape[1]
        pasts = [s.name for s in self.graph.inputs if s.name.startswith("past_key_values.")]
        for name in pasts if past else ():
            _, layer, side = name.split(".")
            run.put(int(layer), side, inputs[name])
        out = {"logits": run.forward(ids, inputs["position_ids"], mask != 0, every=True)}
        for name in pasts:
            _, layer, side = name.split(".")
            out[f"present.{layer}.{side}"] = run.get(int(layer), side, mask.shape[1])
        return out

    def cached(self) -> CachedForward:
        """The decoder with its cache kept here."""
        return _Cached(self)

    def decoder(self, sampling: Sampling, seed: int = 0) -> NativeDecoder:
        """A decoder that draws the next token inside the engine, the same one as any other."""
        return NativeDecoder(self, seed)

    @property
    def pace(self) -> tuple[int, int]:
        """Threads of the next token, and how often one was late so that there were fewer."""
        if self._run is None:
            return self.threads, 0
        library, handle = self._run.model.library, self._run.handle
        return library.eg_run_threads(handle), library.eg_run_late(handle)

    def remarks(self) -> tuple[str, ...]:
        """What happened that nobody asked for: threads left out while their core was busy."""
        late = self.pace[1]
        what = "a thread's core was busy with something else, so that fewer worked for a while"
        return (f"native: {late} times {what}",) if late else ()

    def ready(self, batch: int) -> _Run:
        """Caches for `batch` sequences."""
        if self._model is None:
            raise UsageError("the session is closed", "open the bundle again")
        if self._run is None or self._run.batch != batch:
            self._run = None  # before the next, so that there are never two
            self._run = _Run(self._model, batch, self.threads, self._kernels, self._cache)
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


class NativeDecoder:
    """A `Decoder`: the loop and the choice of tokens are the engine's.

    The random numbers are those of the common loop, one a sequence and step, so the same seed
    gives the tokens that it gives on every engine.
    """

    def __init__(self, session: NativeSession, seed: int) -> None:
        self._session, self._seed = session, seed
        self._text = _Text()

    def start(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> Array:
        """Prefill; the first new token of each sequence, (batch,)."""
        self.begin(prompts, sampling)
        return self.step()

    def begin(self, prompts: tuple[tuple[int, ...], ...], sampling: Sampling) -> None:
        """Take the prompts, padded on the left; the first `write` reads them."""
        self._run = run = self._session.ready(len(prompts))
        ids, mask = pad_left(prompts)
        batch, time = ids.shape
        sizes = run.model.sizes
        wide = np.ones((batch, max(sizes["positions"], time)), np.uint8)
        wide[:, :time] = mask
        positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)
        self._dice = dice(prompts, self._seed)
        self._drawn = np.empty((0, batch))
        self._arrays = {"ids": ids.copy(), "positions": positions, "mask": wide}
        self._arrays["ended"] = np.zeros(batch, np.uint8)
        if sampling.repetition_penalty != 1:
            self._arrays["seen"] = seen = np.zeros((batch, sizes["vocabulary"]), np.uint8)
            for row, prompt in zip(seen, prompts, strict=True):
                row[list(prompt)] = 1
        self._chosen = np.empty(batch, np.int32)
        where = {name: array.ctypes.data for name, array in self._arrays.items()}
        self._text = _Text(**where, stride=wide.shape[1], time=time, **_drawing(sampling))
        self._is_drawn = sampling.temperature != 0

    def step(self) -> Array:
        """The next token of each sequence, (batch,)."""
        found = self.write(1)
        if not len(found):
            raise UsageError("native: the text was cancelled", "start it again")
        ids: Array = found[0]
        return ids

    def write(
        self,
        steps: int,
        ends: Sequence[int] = (),
        tell: Callable[[Array], bool | None] | None = None,
    ) -> Array:
        """Up to `steps` tokens of every sequence in one call of the engine, (steps done, batch).

        It ends early when every sequence has met one of `ends` (which it then repeats), when
        `tell`, called with the tokens of each step (batch,), returns True, or on `cancel`.

        Raises:
            MismatchError: the cache is full, or logits are not finite.
        """
        out = np.empty((steps, len(self._chosen)), np.int64)
        self._arrays["ends"] = stop = np.array(ends, np.int64)
        self._text.ends, self._text.end_count = stop.ctypes.data, len(stop)
        raised: list[BaseException] = []
        said = ctypes.create_string_buffer(SAID)
        random = self._random(steps) if self._is_drawn else None
        done = self._run.model.library.eg_write(
            self._run.handle,
            ctypes.byref(self._text),
            steps,
            random.ctypes.data if random is not None else None,
            *(out.ctypes.data, self._chosen.ctypes.data),
            _teller(tell, out, raised) if tell else SILENT,
            said,
        )
        if raised:
            raise raised[0]
        if done == -1:
            raise MismatchError(f"native: {said.value.decode()}", "ask for fewer new tokens")
        if done < 0:
            raise MismatchError(
                "the model's logits are not finite", "check the bundle with: edgegen verify BUNDLE"
            )
        return out[:done]

    def cancel(self) -> None:
        """Stop a `write` that another thread is in, soon: within 32 tokens of a prompt, or one."""
        self._text.cancel = 1

    def _random(self, steps: int) -> Array:
        """The next random numbers of each sequence, (steps, batch)."""
        if len(self._drawn) < steps:
            more = max(steps - len(self._drawn), AHEAD)
            fresh = np.stack([die.random(more) for die in self._dice], axis=1)
            self._drawn = np.concatenate([self._drawn, fresh])
        now: Array = self._drawn[:steps]
        self._drawn = self._drawn[steps:]
        return now


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """`sampling` as fields of `_Text`."""
    fields = {name: getattr(sampling, name) for name in ("temperature", "top_p", "min_p")}
    return fields | {
        "penalty": sampling.repetition_penalty,
        "top_k": min(sampling.top_k, 2**62),  # more than any vocabulary, as any such number is
    }


def _teller(tell: Callable[[Array], bool | None], out: Array, raised: list[BaseException]) -> Any:
    """`tell` for C: what it raises ends the loop and is kept."""

    def told(step: int) -> int:
        try:
            return int(bool(tell(out[step])))
        except BaseException as error:  # Ctrl-C too; raised again outside of C
            raised.append(error)
            return 1

    return TELL(told)


def _threads(asked: int, weight_bytes: int) -> int:
    """What was asked for; else one for a small model, and all cores that this process may use.

    Raises:
        UsageError: more than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = min(cores or 1, MOST_THREADS)
    if asked > most:
        raise UsageError(f"{asked} threads, this process may use {most}", f"use --threads {most}")
    return asked or (1 if weight_bytes < SMALL_BYTES else most)
