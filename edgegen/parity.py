"""Which inputs prove that an exported graph computes the model, and what torch makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.bundle import Case, Loop, Text
from edgegen.errors import ParityError
from edgegen.runtimes.loops.autoregressive import PastForward, pad_left
from edgegen.runtimes.loops.oneshot import draw
from edgegen.spec import Array, Feed, GraphSpec, Operator
from edgegen.verify import DECODE, contradictions, greedy

# What a bundle keeps; larger cases (a cache filled to the last position) are checked at export.
LARGEST_GOLDEN = 32_000_000
DECODE_TOKENS = 32


def cases(parts: Mapping[str, Any], loop: Loop, prompt: Sequence[int] = ()) -> list[Case]:
    """Inputs and reference outputs for every graph: (module or ONNX file, spec) by name.

    `prompt` are token ids of real text, for the quality figure and for decoding.
    """
    found = []
    for name, (module, graph) in parts.items():
        session = Reference(module, graph)
        for case, feed in feeds(graph, prompt):
            found.append(Case(name, case, dict(feed), session.run(feed)))
        if isinstance(loop, Text) and any(n == "past" for s in graph.inputs for n in s.shape):
            found += _decode_cases(session, loop, prompt)
    return found


def keep(case: Case) -> bool:
    """Is it small enough to travel in the bundle?"""
    tensors = [*case.inputs.values(), *case.outputs.values()]
    return sum(array.nbytes for array in tensors) <= LARGEST_GOLDEN


class Reference:
    """A `Session` that is the model itself: torch in fp32, or the foreign file, unoptimised."""

    def __init__(self, module: Any, graph: GraphSpec) -> None:
        self.graph = graph
        self.run = _onnx(module) if isinstance(module, Path) else _torch(module, graph)

    def operators(self) -> tuple[Operator, ...]:
        """Not timed."""
        return ()

    def close(self) -> None:
        """Nothing to give back."""


def _torch(module: Any, graph: GraphSpec) -> Callable[[Feed], dict[str, Array]]:
    import torch

    def run(feed: Feed) -> dict[str, Array]:
        with torch.inference_mode():
            out = module(*(torch.from_numpy(feed[spec.name]) for spec in graph.inputs))
        values = out if isinstance(out, tuple | list) else (out,)
        return {s.name: v.numpy() for s, v in zip(graph.outputs, values, strict=True)}

    return run


def _onnx(path: Path) -> Callable[[Feed], dict[str, Array]]:
    import onnxruntime as ort

    config = ort.SessionOptions()
    config.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    config.log_severity_level = 3
    session = ort.InferenceSession(str(path), config, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def feeds(graph: GraphSpec, prompt: Sequence[int] = ()) -> Iterator[tuple[str, Feed]]:
    """Named inputs: never only the shape that was traced with."""
    rng = np.random.default_rng(0)
    text = any(spec.name == "attention_mask" for spec in graph.inputs) and any(
        spec.name.startswith("past_key_values.") for spec in graph.inputs
    )
    for name, sizes in _sizes(graph, text):
        feed = draw(graph, sizes, rng, {})
        yield name, _as_text(feed, padded=sizes.get("batch", 1) > 1) if text else feed
    if text and prompt:
        ids = np.array([prompt], np.int64)
        sizes = {"batch": 1, "seq": ids.shape[1], "past": 0, "past+seq": ids.shape[1]}
        yield "text", _as_text(draw(graph, sizes, rng, {"input_ids": ids}), padded=False)


def _sizes(graph: GraphSpec, text: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """Batch 1 and 2, length 1, odd and maximum, empty and filled cache."""
    limits = graph.limits
    free = {n for s in graph.inputs for n in s.shape if isinstance(n, str)}
    if not free:
        yield "fixed", {}
        return
    if text:
        most = limits.get("past+seq", 32)
        odd = min(7, most - 1)
        plans = {
            "one": (1, 1, 0),
            "odd": (2, odd, 0),
            "filled": (2, 1, odd),
            "chunk": (1, min(3, most - odd), odd),
            "last-position": (1, 1, most - 1),
        }
        for name, (batch, seq, past) in plans.items():
            yield name, {"batch": batch, "seq": seq, "past": past, "past+seq": past + seq}
        return
    others = sorted(free - {"batch"})
    yield "one", dict.fromkeys(others, 1) | {"batch": 1}
    yield "two", {n: min(5, limits.get(n, 5)) for n in others} | {"batch": 2}
    yield "odd", {n: min(7, limits.get(n, 7)) for n in others} | {"batch": 3}
    if others:
        yield "maximum", {n: limits.get(n, 32) for n in others} | {"batch": 1}


def _as_text(feed: dict[str, Array], *, padded: bool) -> dict[str, Array]:
    """A mask and positions as a tokenizer makes them; the last row padded on the left by two."""
    mask = np.ones_like(feed["attention_mask"])
    if padded and mask.shape[1] > 2:
        mask[-1, :2] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -feed["input_ids"].shape[1] :]
    return feed | {"attention_mask": mask, "position_ids": positions}


def _decode_cases(session: Reference, loop: Text, prompt: Sequence[int]) -> Iterator[Case]:
    """Greedy tokens of the reference, alone and as a batch of two whose second prompt is shorter.

    Raises:
        ParityError: its own cached decode is not its own full forward.
    """
    rng = np.random.default_rng(1)
    ids = [int(i) for i in prompt or rng.integers(0, loop.vocab_size, 8)]
    ids = ids[: max(2, loop.max_positions // 2)]
    count = min(DECODE_TOKENS, loop.max_positions - len(ids))
    for name, prompts in ((f"{DECODE}-one", [ids]), (f"{DECODE}-two", [ids, ids[1:]])):
        padded, mask = pad_left(tuple(map(tuple, prompts)))
        tokens = greedy(PastForward(session), padded, mask, count)
        if off := contradictions(session, padded, mask, tokens, 1e-3):
            raise ParityError(
                f"{off} of {tokens.size} tokens decoded through the cache are not those of the "
                "full forward, in torch itself",
                "the module computes something else with a cache: mend it before exporting",
            )
        inputs = {"input_ids": padded, "attention_mask": mask}
        yield Case(session.graph.name, name, inputs, {"tokens": tokens})
