"""Engines, one file each; and `deploy`, which opens a bundle on one of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, cast, overload

import msgspec
import numpy as np

from edgegen import rooms
from edgegen.bundle import NONE, Bundle, OneShot, Text, check_files, open_bundle
from edgegen.errors import FormatError, MissingExtraError, UnsupportedError, UsageError
from edgegen.runtimes import _adapters, _pictures, _texts
from edgegen.runtimes.loops import autoregressive
from edgegen.spec import Array, Feed, Options, Request, Session
from edgegen.text import Tokenizer, open_tokenizer

ROOM = "edgegen.runtimes"
LOOPS = "edgegen.runtimes.loops"
# Which engine is taken when none is named, by format: the first that is installed and reads one
# of the bundle's. Only that one is imported.
FIRST = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def deploy(
    path: Path | str,
    runtime: str | None = None,
    device: str = "cpu",
    options: Options | None = None,
) -> Deployment:
    """A bundle, opened on an engine and a device; also called `edgegen.load`.

    Without `runtime` the first installed engine that reads the bundle is taken. The precisions of
    `options` are always the bundle's own.

    Raises:
        NotFoundError: no such bundle, engine, device or adapter; or the bundle lacks the engine's
            format.
        MissingExtraError: the engine is not installed.
        FormatError: a file that is to be opened is missing or altered.
        UnsupportedError: the device needs fixed shapes and the bundle's are free.
        FallbackError: the device would not be (fully) used.
    """
    bundle = open_bundle(path)
    name, engine = (runtime, _load(runtime)) if runtime else _first_engine(bundle)
    for graph in bundle.manifest.graphs:
        bundle.artifact(graph.name, engine.READS)
    _check_shapes(bundle, engine, device)
    _check_files(bundle, engine.READS)
    options = msgspec.structs.replace(
        options or Options(),
        precision=bundle.manifest.precision,
        kv_cache=bundle.manifest.kv_cache,
    )
    deployment = Deployment(bundle, name, engine, device, options)
    first = options.adapter or bundle.manifest.adapter
    deployment.use(None if first in ("", NONE) else first)
    deployment.session(_main_graph(bundle))
    return deployment


def _load(runtime: str) -> ModuleType:
    engine = load(runtime)
    if not hasattr(engine, "READS"):
        raise UnsupportedError(f"{ROOM}.{runtime} is no engine: it does not define READS")
    return engine


def load(runtime: str) -> ModuleType:
    """An engine that can run here.

    Raises:
        NotFoundError: no engine of that name.
        MissingExtraError: its library is not installed, or its own code was not compiled.
    """
    engine = rooms.load(ROOM, runtime)
    if hasattr(engine, "built"):
        engine.built()
    return engine


def _first_engine(bundle: Bundle) -> tuple[str, ModuleType]:
    formats = bundle.formats()
    others = [name for name in rooms.names(ROOM) if name not in FIRST.values()]
    hint = f"run: edgegen export SOURCE -o {bundle.path} --to onnx"
    for name in (*(FIRST[kind] for kind in FIRST if kind in formats), *others):
        try:
            engine = _load(name)
        except MissingExtraError as error:
            hint = error.hint
            continue
        if engine.READS in formats:
            return name, engine
    raise MissingExtraError(
        f"{bundle.path} holds {', '.join(formats) or 'nothing'}; no installed engine reads that",
        hint,
    )


def _check_shapes(bundle: Bundle, engine: ModuleType, device: str) -> None:
    """Refuse free dimensions on a device that compiles for fixed ones, before it tries."""
    if device.partition(":")[0] not in getattr(engine, "FIXED_SHAPE_DEVICES", ()):
        return
    inputs = [spec for graph in bundle.manifest.graphs for spec in graph.inputs]
    free = {n for spec in inputs for n in spec.shape if isinstance(n, str)}
    if free:
        loop = bundle.manifest.loop
        seq = f",seq={min(256, loop.max_positions)}" if isinstance(loop, Text) else ""
        raise UnsupportedError(
            f"{bundle.path}: free sizes ({', '.join(sorted(free))}), {device} needs fixed ones",
            f"run: edgegen export SOURCE -o {bundle.path} --static batch=1{seq}",
        )


def _check_files(bundle: Bundle, kind: str) -> None:
    """What the engine is going to open is in the bundle, in the manifest, and as exported."""
    for artifact in bundle.manifest.artifacts:
        parts = PurePosixPath(artifact.path)
        if artifact.path not in bundle.manifest.files or parts.is_absolute() or ".." in parts.parts:
            raise FormatError(
                f"{bundle.path}: the manifest has no hash for {artifact.path!r} inside the bundle",
                "export the bundle again",
            )
    check_files(bundle, bundle.files(kind))


def _main_graph(bundle: Bundle) -> str:
    loop = bundle.manifest.loop
    return "model" if isinstance(loop, Text) else loop.graph


class Deployment:
    """A bundle on one engine and device. Its graphs are opened when they are first needed."""

    def __init__(
        self, bundle: Bundle, engine: str, module: ModuleType, device: str, options: Options
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.device = device
        self.options = options
        self.sessions: dict[str, Session] = {}
        self.adapter = ""  # the one in use
        self._module = module
        self._fed: dict[str, dict[str, Array]] = {}

    def session(self, graph: str) -> Session:
        """The session of one graph."""
        if graph not in self.sessions:
            spec = self.bundle.graph(graph)
            file = self.bundle.path / self.bundle.artifact(graph, self._module.READS).path
            try:
                opened = self._module.open_graph(file, spec, self.device, self.options)
            except ModuleNotFoundError as error:
                raise rooms.missing(error, self.engine) from error
            if graph in self._fed:
                _adapters.feed(opened, self.engine, self._fed[graph])
            self.sessions[graph] = opened
        return self.sessions[graph]

    def use(self, adapter: str | None) -> None:
        """Compute with one of the bundle's adapters from the next run on; None takes it off.

        A text that is being written goes on with it, on the cache of the one before.

        Raises:
            NotFoundError: the bundle has no adapter of that name.
        """
        self._fed = _adapters.read(self.bundle, adapter)
        self.adapter = adapter or ""
        for graph, session in self.sessions.items():
            if graph in self._fed:
                _adapters.feed(session, self.engine, self._fed[graph])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a text bundle."""
        return open_tokenizer(self.bundle)

    @cached_property
    def _loop(self) -> ModuleType:
        """The file of the bundle's way of generating."""
        return rooms.load(LOOPS, str(self.bundle.manifest.loop.__struct_config__.tag))

    def steps(self, request: Request, inputs: Feed | None = None) -> Generator[Any, None, Any]:
        """One yield a token, or a run; the return value is the sample. See the file of the loop.

        The same request gives the same prompts, latents and draws on every engine.
        """
        _check(request)
        loop = self.bundle.manifest.loop
        rng = np.random.default_rng(request.seed)
        steps = self._loop.steps(self.sessions, loop, request, rng, inputs)
        return cast(Generator[Any, None, Any], steps)

    def stream(
        self,
        prompts: Sequence[str],
        *,
        batch: int = 1,
        max_new_tokens: int | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Generator[list[str | None], None, list[str]]:
        """One yield a token: the text that became certain, by prompt; None where it has ended.

        Returns the whole texts. They end after `max_new_tokens`; when that is not said, after 64
        or where the model's positions do. Each prompt goes `batch` times, each time with other
        draws. `options` are chat, and any of temperature, top_k, top_p, min_p and
        repetition_penalty; without the first four it is greedy.
        """
        request = _texts.request(self, prompts, batch, max_new_tokens, seed, **options)
        return _texts.pieces(self, self.steps(request), request, stop)

    def tokens(self, request: Request) -> Array:
        """All ids that `steps` would yield for a text, (steps, batch), in one go: for small models
        faster, as no Python runs between two tokens on an engine that has the loop itself."""
        _check(request)
        rng = np.random.default_rng(request.seed)
        return autoregressive.tokens(self.sessions, self.text_loop(), request, rng)

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...
    @overload
    def generate(self, *, num: int = 16, seed: int = 0) -> Array: ...
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num: int | None = None,
        seed: int = 0,
        stream: Callable[[int, str], None] | None = None,
        **options: Any,
    ) -> str | list[str] | Array:
        """Text after a prompt (or each of several), or `num` images from a seed.

        Text takes the options of `stream`, and `stream`: called with (prompt number, new text).
        Images are float32 (num, channels, height, width), values in the manifest's `pixels`.
        Image i depends on the seed and on i only.
        """
        if prompt is None:
            for name in ("stream", *options):
                if name in options or stream:
                    raise UsageError(f"{name} is for text", f"leave {name} out, or give a prompt")
            return _pictures.generate(self, self._images(), 16 if num is None else num, seed)
        if num is not None:
            raise UsageError("num is for images", "give a list of prompts for several texts")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = _texts.generate(self, prompts, stream, seed=seed, **options)
        return texts[0] if isinstance(prompt, str) else texts

    def reconstruct(self, images: Array) -> Array:
        """`images` through the encoder (its mean) and the decoder; values in `pixels`."""
        return _pictures.reconstruct(self, self._images(), images)

    def interpolate(self, num: int = 16, seed: int = 0) -> Array:
        """`num` images on the arc between the first two latents of `seed`, both ends included."""
        return _pictures.interpolate(self, self._images(), num, seed)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that `reconstruct` takes."""
        source = _pictures.encoder(self.bundle, self._images()).inputs[0]
        channels, height, width = (n for n in source.shape[1:] if isinstance(n, int))
        return channels, height, width

    def text_loop(self) -> Text:
        """How the bundle writes text.

        Raises:
            UsageError: it does not.
        """
        loop = self.bundle.manifest.loop
        if not isinstance(loop, Text):
            raise UsageError(
                f"{self.bundle.path} is no text model, it does not take a prompt",
                "leave the prompt out",
            )
        return loop

    def _images(self) -> OneShot:
        loop = self.bundle.manifest.loop
        if isinstance(loop, Text):
            raise UsageError(f"{self.bundle.path} is a text model", "give a prompt instead")
        if not loop.image:
            raise UsageError(
                f"{self.bundle.path} makes no images",
                "use steps(), or: edgegen run BUNDLE -o out.npz",
            )
        return loop

    def close(self) -> None:
        """Give the engine's memory back."""
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(request: Request) -> None:
    for name, value, least in (("batch", request.batch, 1), ("seed", request.seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}, wanted {least} or more")
