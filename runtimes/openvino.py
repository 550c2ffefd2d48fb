"""OpenVINO: reads `openvino`, on CPU, GPU, NPU, or through AUTO and HETERO.

By default OpenVINO computes in bf16 where the chip has it, quantizes activations beside compressed
weights, and keeps the cache in uint8. Here it is told to do none of that, and asked afterwards
whether it obeyed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgegen.errors import (
    EdgeGenError,
    FormatError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from edgegen.rooms import nearest
from edgegen.runtimes._openvino_checks import cause, check_device, check_precision
from edgegen.runtimes._openvino_counters import Counters
from edgegen.runtimes._openvino_streams import ONE_THREAD_EACH, Streams
from edgegen.runtimes._openvino_text import ROWS, StatefulForward, ready
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options

READS = "openvino"
FIXED_SHAPE_DEVICES = ("npu",)

# Exact settings for the CPU; weights of fp16, int8 and int4 bundles are computed on in fp32, those
# of bf16 in bf16, which its cache then holds without a loss.
EXACT_CPU = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
BF16_CPU = EXACT_CPU | {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
CACHES = {"int8": "u8"}  # with scales and zero points; there is no signed type
WORTH_BINDING = 1 << 16  # numbers; to copy fewer is quicker than to hand over an array
MIXED = ("AUTO", "HETERO", "MULTI", "BATCH")

_core: list[ov.Core] = []


def version() -> str:
    """The version of OpenVINO."""
    return str(ov.__version__).partition("-")[0]


def devices() -> list[str]:
    """What this machine offers: `cpu`, `gpu`, `gpu:1`, `npu`, `auto`, `hetero:...`."""
    return [*(name.lower().replace(".", ":") for name in core().available_devices), "auto"]


def core() -> ov.Core:
    """One core for the process: starting one takes tens of milliseconds."""
    if not _core:
        _core.append(ov.Core())
    return _core[0]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> OvSession:
    """Open `path` on `device` at the precision that was exported.

    Raises:
        NotFoundError: no such device on this machine.
        FormatError: the file cannot be read or compiled.
        FallbackError: it runs on another device than asked, unless `options.allow_fallback`.
        UnsupportedError: a bf16 bundle where there is no bf16.
        MismatchError: OpenVINO would compute at another precision than it was told to.
    """
    target = _target(device)
    if options.precision == "bf16":
        _check_bf16(target, device, options)
    if options.kv_cache and target != "CPU" and not options.allow_fallback:
        raise UnsupportedError(
            f"{path}: a cache in {options.kv_cache} is for the CPU of openvino, not for {device}",
            "pass --allow-fallback to take what that keeps, or export without --kv-cache",
        )
    config = _config(target, options)
    try:
        model = core().read_model(path)
        ready(model)
        compiled = core().compile_model(model, target, config)
    except RuntimeError as error:
        raise FormatError(
            f"{path}: openvino {version()} cannot open it on {target}: {cause(error)}",
            "run: edgegen verify BUNDLE, then export again",
        ) from error
    check_precision(compiled, config, "INFERENCE_PRECISION_HINT", "compute")
    if options.kv_cache:
        check_precision(compiled, config, "KV_CACHE_PRECISION", "keep its cache")
    if not options.allow_fallback:
        check_device(compiled, target, device)
    return OvSession(compiled, graph, options.profile, _streaming(model, target, config))


def _streaming(model: Any, target: str, config: dict[str, Any]) -> Callable[[int], Any] | None:
    """What compiles the model again, for so many streams of one thread; for the CPU alone."""
    if target != "CPU" or "NUM_STREAMS" in config:
        return None
    config = {name: value for name, value in config.items() if name != "PERFORMANCE_HINT"}
    return lambda count: core().compile_model(
        model, target, config | dict.fromkeys(ONE_THREAD_EACH, count)
    )


def _target(device: str) -> str:
    """OpenVINO's name: "gpu:1" -> "GPU.1", "hetero:gpu,cpu" -> "HETERO:GPU,CPU"."""
    head, _, rest = device.upper().partition(":")
    if head in MIXED:
        return f"{head}:{rest}" if rest else head
    target = f"{head}.{rest}" if rest else head
    have = core().available_devices
    if target not in have and f"{target}.0" not in have:
        raise NotFoundError(
            f"openvino {version()} sees no device {device!r}; it sees: {', '.join(have)}",
            nearest(device, devices()),
        )
    return target


def _config(target: str, options: Options) -> dict[str, Any]:
    """Settings for exact, lowest-latency inference on `target`."""
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if target == "CPU":
        bf16 = options.precision == "bf16" and _has_bf16(target)
        config |= BF16_CPU if bf16 else EXACT_CPU
        config |= {"KV_CACHE_PRECISION": CACHES[options.kv_cache]} if options.kv_cache else {}
    elif target == "HETERO:CPU":
        config = {"EXECUTION_MODE_HINT": "ACCURACY"}
    elif target.startswith(MIXED):
        config["EXECUTION_MODE_HINT"] = "ACCURACY"
    elif target.startswith("GPU"):
        config["INFERENCE_PRECISION_HINT"] = "f16" if options.precision == "fp16" else "f32"
    if options.threads and target == "CPU":
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.profile:
        config["PERF_COUNT"] = True
    return config | options.provider


def _has_bf16(target: str) -> bool:
    return target == "CPU" and "BF16" in core().get_property(target, "OPTIMIZATION_CAPABILITIES")


def _check_bf16(target: str, device: str, options: Options) -> None:
    if not _has_bf16(target) and not options.allow_fallback:
        raise UnsupportedError(
            f"openvino {version()} has no bf16 on {device} of this machine: it would compute in "
            "another precision",
            "pass --allow-fallback to accept that, or export at --precision fp16 or fp32",
        )


class OvSession:
    """A `Session` over a compiled model.

    A stateful text model keeps its cache in variables; `run` fills them from the past inputs and
    reads the present outputs back, so it is the same graph as in every other format.
    """

    def __init__(
        self,
        compiled: Any,
        graph: GraphSpec,
        profiled: bool,
        in_streams: Callable[[int], Any] | None = None,
    ) -> None:
        self.graph = graph
        self._request = compiled.create_infer_request()
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._ports = {name: port for port in compiled.outputs for name in port.names}
        self._states = {_past_name(state.name): state for state in self._request.query_state()}
        ran = compiled.get_property("EXECUTION_DEVICES")
        device = ",".join(str(name).lower().strip("()").replace(".", ":") for name in ran)
        self._counters = Counters(device) if profiled else None
        self._streams: Streams | None = None
        alone = in_streams is None or profiled or bool(self._states)
        self.streams = 1 if alone else int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._in_streams = in_streams if self.streams > 1 else None  # it keeps the model's memory
        self._large = {} if self._states else _large_outputs(graph)
        self._bound: dict[str, Array] = {}

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs by name."""
        self.graph.check(inputs)
        feed = {name: array for name, array in inputs.items() if name in self._inputs}
        if self._states:
            self._load_cache(inputs)
        values = self._own_outputs()
        self._infer(feed)
        for spec in self.graph.outputs:
            if spec.name in self._ports and spec.name not in values:
                values[spec.name] = self._request.get_tensor(spec.name).data.copy()
        for name, state in self._states.items():
            values[name.replace("past_key_values", "present")] = state.state.data.copy()
        return values

    def run_beside(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        """`run` for each of `feeds`, up to `streams` of them side by side with a thread each."""
        if self._in_streams is None or self.streams < 2:
            return [self.run(feed) for feed in feeds]
        for feed in feeds:
            self.graph.check(feed)
        if self._streams is None:
            self._streams = Streams(self._in_streams(self.streams), self.streams)
        try:
            return self._streams.run(feeds)
        except RuntimeError as error:
            raise self._failed(error) from error

    def _own_outputs(self) -> dict[str, Array]:
        """New arrays for large outputs of fixed shape, written by the engine without a copy; it
        holds on to them until the next run."""
        self._bound = {n: np.empty(shape, dtype) for n, (shape, dtype) in self._large.items()}
        for name, array in self._bound.items():
            self._request.set_tensor(self._ports[name], ov.Tensor(array, shared_memory=True))
        return dict(self._bound)

    def use(self, adapter: Feed) -> None:
        """Compute with these tensors from now on: the request keeps what it was given once."""
        self.streams = 1  # of all requests this one alone knows them
        for name, array in adapter.items():
            self._request.set_tensor(name, ov.Tensor(np.array(array)))

    def cached(self) -> CachedForward:
        """A forward over OpenVINO's own variables; only for a stateful text model."""
        if not self._states:
            raise EdgeGenError(f"graph {self.graph.name} keeps no state")
        return StatefulForward(self._request, self._inputs, self._guarded)

    def _load_cache(self, inputs: Feed) -> None:
        self._request.reset_state()
        for name, state in self._states.items():
            if inputs[name].shape[2]:  # an empty past is what reset_state leaves
                state.state = ov.Tensor(np.ascontiguousarray(inputs[name]))

    def _infer(self, feed: Feed) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        if "beam_idx" in self._inputs:
            arrays["beam_idx"] = np.arange(len(arrays["input_ids"]), dtype=np.int32)
        if ROWS in self._inputs:
            arrays[ROWS] = np.arange(arrays["input_ids"].shape[1])
        # Without shared outputs it would copy each of them for a result that nobody reads.
        self._guarded(lambda: self._request.infer(arrays, share_inputs=True, share_outputs=True))

    def _guarded(self, infer: Callable[[], Any]) -> None:
        try:
            infer()
        except RuntimeError as error:
            raise self._failed(error) from error
        if self._counters:
            self._counters.note(self._request)

    def _failed(self, error: RuntimeError) -> MismatchError:
        return MismatchError(
            f"openvino {version()} failed in graph {self.graph.name}: {cause(error)}"
        )

    def operators(self) -> tuple[Operator, ...]:
        """Times from OpenVINO's performance counters, summed over all runs so far."""
        return self._counters.operators() if self._counters else ()

    def close(self) -> None:
        """Drop the request and with it the compiled model."""
        self._states = {}
        self._request = self._streams = self._in_streams = None
        self._bound = {}


def _large_outputs(graph: GraphSpec) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every output that is worth binding, by name."""
    fixed = {s.name: ([n for n in s.shape if isinstance(n, int)], s) for s in graph.outputs}
    return {
        name: (sizes, spec.dtype)
        for name, (sizes, spec) in fixed.items()
        if len(sizes) == len(spec.shape) and math.prod(sizes) >= WORTH_BINDING
    }


def _past_name(variable: str) -> str:
    """The past input that a variable "past_key_values.0.keypresent.0.key" stands for."""
    return variable.partition("present.")[0] or variable
