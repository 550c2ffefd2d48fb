"""Which inputs prove that an exported graph computes the model, and what that makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.bundle import Case, Loop, Text
from edgegen.errors import ParityError
from edgegen.models._numpy import Decoder
from edgegen.runtimes.loops.autoregressive import PastForward, pad_left
from edgegen.runtimes.loops.oneshot import draw
from edgegen.spec import Array, Feed, GraphSpec, Operator
from edgegen.verify import DECODE, LAST_POSITION, contradictions, greedy

# What a bundle keeps; larger cases (a cache filled to the last position) are checked at export.
LARGEST_GOLDEN = 32_000_000
DECODE_TOKENS = 32


def cases(parts: Mapping[str, Any], loop: Loop, prompt: Sequence[int] = ()) -> list[Case]:
    """Inputs and reference outputs for every graph: (module or ONNX file, spec) by name.

    `prompt` are token ids of real text, for the quality figure and for decoding.
    """
    found = []
    for module, graph in parts.values():
        session = Reference(module, graph)
        if not isinstance(loop, Text) or not is_cached(graph):
            found += [_case(session, title, feed) for title, feed in feeds(graph)]
            continue
        ids = np.array(prompt or _random_ids(loop), np.int64)
        for case, feed in text_feeds(session, loop, ids):
            # Without a tokenizer there is no text: the quality figure is left out by its name.
            title = "random-text" if case == "text" and not prompt else case
            found.append(_case(session, title, feed))
        found += _decode_cases(session, loop, ids)
    return found


def is_cached(graph: GraphSpec) -> bool:
    """Does the graph take a key/value cache?"""
    return any(spec.name.startswith("past_key_values.") for spec in graph.inputs)


def _random_ids(loop: Text) -> Array:
    rng = np.random.default_rng(1)
    return rng.integers(0, loop.vocab_size, min(16, loop.max_positions - 1))


def _case(session: Reference, title: str, feed: Feed) -> Case:
    """What the reference answers to `feed`; raises `ParityError` where that is not finite."""
    graph = session.graph.name
    outputs = session.run(feed)
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ParityError(
                f"graph {graph}, case {title}: the model itself gives NaN or infinity as {name} "
                "for inputs drawn at random, so nothing can be proved",
                "say which values its inputs take, as in --input 'sigma:float32[batch]@0.1..80'",
            )
    return Case(graph, title, dict(feed), outputs)


def keep(case: Case) -> bool:
    """Is it small enough to travel in the bundle?"""
    tensors = [*case.inputs.values(), *case.outputs.values()]
    return sum(array.nbytes for array in tensors) <= LARGEST_GOLDEN


class Reference:
    """A `Session` that is the model itself: torch or numpy in fp32, or the foreign file,
    unoptimised."""

    def __init__(self, module: Any, graph: GraphSpec) -> None:
        self.graph = graph
        if isinstance(module, Path):
            self.run = _onnx(module)
        else:
            self.run = (_numpy if isinstance(module, Decoder) else _torch)(module, graph)

    def operators(self) -> tuple[Operator, ...]:
        """Not timed."""
        return ()

    def close(self) -> None:
        """Nothing to give back."""


def _torch(module: Any, graph: GraphSpec) -> Callable[[Feed], dict[str, Array]]:
    import torch

    def run(feed: Feed) -> dict[str, Array]:
        threads = torch.get_num_threads()
        # One token at a time is too little work to share: with a busy neighbour, waiting for the
        # second thread made decoding SmolLM2 17 times slower.
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                out = module(*(torch.from_numpy(feed[spec.name]) for spec in graph.inputs))
        finally:
            torch.set_num_threads(threads)
        values = out if isinstance(out, tuple | list) else (out,)
        return {s.name: v.numpy() for s, v in zip(graph.outputs, values, strict=True)}

    return run


def _numpy(decoder: Decoder, graph: GraphSpec) -> Callable[[Feed], dict[str, Array]]:
    names, inputs = [s.name for s in graph.outputs], [s.name for s in graph.inputs]
    return lambda feed: dict(zip(names, decoder(*(feed[n] for n in inputs)), strict=True))


def _onnx(path: Path) -> Callable[[Feed], dict[str, Array]]:
    import onnxruntime as ort

    config = ort.SessionOptions()
    config.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    config.log_severity_level = 3
    session = ort.InferenceSession(str(path), config, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def feeds(graph: GraphSpec) -> Iterator[tuple[str, Feed]]:
    """Named inputs for a graph without a cache: never only the shape that was traced with."""
    rng = np.random.default_rng(0)
    free = {n for s in graph.inputs for n in s.shape if isinstance(n, str)}
    others = sorted(free - {"batch"})
    plans = (
        {"fixed": {}}
        if not free
        else {
            "one": dict.fromkeys(others, 1) | {"batch": 1},
            "two": {n: min(5, graph.limits.get(n, 5)) for n in others} | {"batch": 2},
            "odd": {n: min(7, graph.limits.get(n, 7)) for n in others} | {"batch": 3},
        }
    )
    if others:
        plans["maximum"] = {n: graph.limits.get(n, 32) for n in others} | {"batch": 1}
    for name, sizes in plans.items():
        yield name, draw(graph, sizes, rng, {})


def text_feeds(session: Reference, loop: Text, ids: Array) -> Iterator[tuple[str, Feed]]:
    """Named inputs for a decoder: length 1, odd and maximum, batch 1 and 2, empty and filled cache.

    A cache is filled by the model itself: what it is not used to, a quantized model answers as
    badly as any other. For the last position one real stretch of it is repeated.
    """
    graph, most = session.graph, loop.max_positions
    odd = min(7, most - 1, len(ids) - 1)
    pair = np.stack([ids[:odd], ids[1 : odd + 1]])
    padded = np.ones((2, odd + 1), np.int64)
    padded[1, : min(2, odd - 1)] = 0
    text = _text_feed(graph, ids[None])
    cache = {n.replace("present", "past_key_values"): a for n, a in session.run(text).items()}
    yield "text", text
    yield "one", _text_feed(graph, ids[:1][None])
    yield "odd", _text_feed(graph, pair, padded[:, :odd])
    yield "filled", _text_feed(graph, pair[:, -1:], padded, _stretch(cache, odd, 2))
    yield "chunk", _text_feed(graph, ids[odd : odd + 3][None], past=_stretch(cache, odd))
    yield LAST_POSITION, _text_feed(graph, ids[:1][None], past=_stretch(cache, most - 1))


def _stretch(cache: Feed, past: int, batch: int = 1) -> dict[str, Array]:
    """The first `past` positions of a cache of batch 1, its later ones repeated where need be.

    The first ones stand once: many models park their attention there.
    """
    found = {}
    for name, array in cache.items():
        if name.startswith("past_key_values."):
            length = array.shape[2]
            start = min(8, length - 1)
            index = np.arange(past)
            index = np.where(index < length, index, start + (index - start) % (length - start))
            found[name] = np.repeat(array[:, :, index], batch, axis=0)
    return found


def _text_feed(
    graph: GraphSpec, ids: Array, mask: Array | None = None, past: Feed | None = None
) -> dict[str, Array]:
    """Mask and positions as a tokenizer makes them; without `past` an empty cache."""
    batch, seq = ids.shape
    filled = next(iter(past.values())).shape[2] if past else 0
    mask = np.ones((batch, filled + seq), np.int64) if mask is None else mask
    sizes = {"batch": batch, "seq": seq, "past": filled, "past+seq": filled + seq}
    given = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, -seq:],
    }
    return draw(graph, sizes, np.random.default_rng(0), given | dict(past or {}))


def _decode_cases(session: Reference, loop: Text, ids: Array) -> Iterator[Case]:
    """Greedy tokens of the reference, alone and as a batch of two whose second prompt is shorter.

    Raises:
        ParityError: its own cached decode is not its own full forward.
    """
    prompt = tuple(int(i) for i in ids[: max(2, loop.max_positions // 2)])
    count = min(DECODE_TOKENS, loop.max_positions - len(prompt))
    ids, mask = pad_left((prompt, prompt[1:]))
    tokens = greedy(PastForward(session), ids, mask, count)
    if off := contradictions(session, ids, mask, tokens, 1e-3):
        raise ParityError(
            f"{off} of {tokens.size} tokens decoded through the cache are not those of the "
            "full forward, in the model itself",
            "the module computes something else with a cache: mend it before exporting",
        )
    # Alone, the longer prompt goes on as it does in the pair: it is not the one that is padded.
    for name, rows in ((f"{DECODE}-one", slice(1)), (f"{DECODE}-two", slice(2))):
        inputs = {"input_ids": ids[rows], "attention_mask": mask[rows]}
        yield Case(session.graph.name, name, inputs, {"tokens": tokens[rows]})
