"""OpenVINO: reads `openvino`, on CPU, GPU, NPU, or through AUTO and HETERO.

By default OpenVINO computes in bf16 where the chip has it, quantizes activations beside compressed
weights, and keeps the cache in uint8. Here it is told to do none of that, and asked afterwards
whether it obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgegen.errors import (
    EdgeGenError,
    FallbackError,
    FormatError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from edgegen.rooms import nearest
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
            f"{path}: openvino {version()} cannot open it on {target}: {_cause(error)}",
            "run: edgegen verify BUNDLE, then export again",
        ) from error
    _check_precision(compiled, config, "INFERENCE_PRECISION_HINT", "compute")
    if options.kv_cache:
        _check_precision(compiled, config, "KV_CACHE_PRECISION", "keep its cache")
    if not options.allow_fallback:
        _check_device(compiled, target, device)
    return OvSession(compiled, graph, options.profile)


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


def _check_precision(compiled: Any, config: dict[str, Any], name: str, does: str) -> None:
    wanted = config.get(name)
    if wanted is None:
        return
    found = compiled.get_property(name)
    kind = found if isinstance(found, str) else found.get_type_name()
    if kind != wanted:
        raise MismatchError(f"openvino was told to {does} in {wanted} but runs in {kind}")


def _check_device(compiled: Any, target: str, device: str) -> None:
    """Raise unless the compiled model runs where it was asked to; AUTO may choose."""
    if target.startswith("AUTO"):
        return
    ran = {str(name).partition(".")[0] for name in compiled.get_property("EXECUTION_DEVICES")}
    asked = {name.partition(".")[0] for name in target.removeprefix("HETERO:").split(",")}
    if not ran <= asked:
        raise FallbackError(
            f"asked for {device}, but openvino runs the graph on {', '.join(sorted(ran))}",
            "pass --allow-fallback to accept that",
        )


def _cause(error: RuntimeError) -> str:
    """The last informative line of OpenVINO's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((s for s in reversed(lines) if not s.startswith("Exception from")), lines[-1])


class OvSession:
    """A `Session` over a compiled model.

    A stateful text model keeps its cache in variables; `run` fills them from the past inputs and
    reads the present outputs back, so it is the same graph as in every other format.
    """

    def __init__(self, compiled: Any, graph: GraphSpec, profiled: bool) -> None:
        self.graph = graph
        self._request = compiled.create_infer_request()
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._outputs = {name for port in compiled.outputs for name in port.names}
        self._states = {_past_name(state.name): state for state in self._request.query_state()}
        self._profiled = profiled
        ran = compiled.get_property("EXECUTION_DEVICES")
        self._device = ",".join(str(name).lower().strip("()").replace(".", ":") for name in ran)
        self._runs = 0
        self._times: dict[tuple[str, str, str], list[float]] = {}

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs by name."""
        self.graph.check(inputs)
        feed = {name: array for name, array in inputs.items() if name in self._inputs}
        if self._states:
            self._load_cache(inputs)
        self._infer(feed)
        out = {s.name: s.name for s in self.graph.outputs if s.name in self._outputs}
        values = {name: self._request.get_tensor(name).data.copy() for name in out}
        for name, state in self._states.items():
            values[name.replace("past_key_values", "present")] = state.state.data.copy()
        return values

    def use(self, adapter: Feed) -> None:
        """Compute with these tensors from now on: the request keeps what it was given once."""
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
        self._guarded(lambda: self._request.infer(arrays, share_inputs=True, share_outputs=True))

    def _guarded(self, infer: Callable[[], Any]) -> None:
        try:
            infer()
        except RuntimeError as error:
            raise MismatchError(
                f"openvino {version()} failed in graph {self.graph.name}: {_cause(error)}"
            ) from error
        if self._profiled:
            self._note_times()

    def _note_times(self) -> None:
        """The CPU's counters are means over all runs since the graph was compiled, in whole
        microseconds; those of other devices are of the last run."""
        self._runs += 1
        means = self._device == "cpu"
        if means:
            self._times = {}
        for info in self._request.get_profiling_info():
            if str(info.status).endswith("EXECUTED"):
                key = info.node_name, info.node_type, info.exec_type
                ms = [info.real_time.total_seconds() * 1e3] * (self._runs if means else 1)
                self._times.setdefault(key, []).extend(ms)

    def operators(self) -> tuple[Operator, ...]:
        """Times from OpenVINO's performance counters, summed over all runs so far.

        On the CPU an operator that takes less than a microsecond is not among them.
        """
        return tuple(
            Operator(name, kind, self._device, len(ms), sum(ms), precision=primitive)
            for (name, kind, primitive), ms in self._times.items()
        )

    def close(self) -> None:
        """Drop the request and with it the compiled model."""
        self._states = {}
        self._request = None


def _past_name(variable: str) -> str:
    """The past input that a variable "past_key_values.0.keypresent.0.key" stands for."""
    return variable.partition("present.")[0] or variable
