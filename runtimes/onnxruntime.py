"""ONNX Runtime: reads `onnx`, on the CPU or whichever accelerator providers are installed."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgegen.errors import FallbackError, FormatError, NotFoundError, UnsupportedError
from edgegen.rooms import nearest
from edgegen.spec import Array, CachedForward, Feed, GraphSpec, Operator, Options

READS = "onnx"
FIXED_SHAPE_DEVICES = ("npu", "qnn", "nnapi", "vitisai", "vsinpu", "rknpu")

# Which provider serves a device, best first. Any provider can also be asked for by its own short
# name: "cuda", "tensorrt", "coreml", "dml", "qnn", "xnnpack", ...
SERVES = {
    "gpu": ("CUDA", "MIGraphX", "Dml", "CoreML", "WebGpu"),
    "npu": ("QNN", "VitisAI", "CoreML", "Nnapi"),
}
SUFFIX = "ExecutionProvider"
CPU = f"CPU{SUFFIX}"

ort.disable_telemetry_events()
ort.set_default_logger_severity(3)


def version() -> str:
    """The version of ONNX Runtime."""
    return str(ort.__version__)


def devices() -> list[str]:
    """What this installation can be asked for: `cpu`, `gpu`, `npu`, and providers by name."""
    have = [p.removesuffix(SUFFIX) for p in ort.get_available_providers()]
    served = [device for device, names in SERVES.items() if set(names) & set(have)]
    return ["cpu", *served, *(name.lower() for name in have if name not in ("CPU", "Azure"))]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> OrtSession:
    """Open `path` on `device`, at full activation precision, and check where every node went.

    Raises:
        NotFoundError: no provider for that device in this installation.
        FormatError: the file cannot be read.
        FallbackError: nodes were assigned elsewhere, unless `options.allow_fallback`.
    """
    provider, index = _provider(device)
    settings = dict(options.provider)
    if index and provider != CPU:
        settings.setdefault("device_id", index)
    chosen = [(provider, settings), *([] if provider == CPU else [(CPU, {})])]
    config = _config(options, record=provider != CPU)
    try:
        session = ort.InferenceSession(str(path), config, providers=chosen)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise _explain(error, path, device) from error
    if provider != CPU and not options.allow_fallback:
        _check_placement(session, provider, device)
    return OrtSession(session, graph, options.profile, config.profile_file_prefix)


def _provider(device: str) -> tuple[str, str]:
    """The provider's full name and the device index: "gpu:1" -> ("CUDAExecutionProvider", "1")."""
    have = {p.removesuffix(SUFFIX): p for p in ort.get_available_providers()}
    name, _, index = device.partition(":")
    if name == "auto":
        name = "gpu" if "gpu" in devices() else "cpu"
    for short in SERVES.get(name, ()):
        if short in have:
            return have[short], index
    by_name = {short.lower(): full for short, full in have.items()}
    if name in by_name:
        return by_name[name], index
    raise NotFoundError(
        f"onnxruntime {version()} has no device {device!r}; its providers: {', '.join(have)}",
        nearest(name, devices())
        if name not in SERVES
        else f"install the onnxruntime build for it, or use --device cpu ({name} is not there)",
    )


def _config(options: Options, *, record: bool) -> Any:
    config = ort.SessionOptions()
    config.intra_op_num_threads = options.threads
    # A DequantizeLinear + MatMul pair is otherwise fused with int8 activations, unasked.
    config.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if record:
        config.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.profile:
        config.enable_profiling = True
        config.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "ort")
    return config


def _explain(error: Exception, path: Path, device: str) -> Exception:
    text = str(error).strip().splitlines()[0]
    if "NotImplemented" in type(error).__name__ or "NOT_IMPLEMENTED" in text:
        return UnsupportedError(
            f"{path}: onnxruntime {version()} cannot run this on {device}: {text}",
            "export at another precision (--precision fp32) or use another engine",
        )
    return FormatError(
        f"{path}: onnxruntime {version()} cannot open it: {text}",
        "run: edgegen verify BUNDLE, then export again",
    )


def _check_placement(session: Any, provider: str, device: str) -> None:
    """Raise unless every node is on `provider`."""
    if provider not in session.get_providers():
        raise FallbackError(
            f"onnxruntime could not start {provider}; the graph would run on the CPU",
            "check the driver with: edgegen devices --doctor; or pass --allow-fallback",
        )
    elsewhere = Counter(
        f"{node.op_type} on {part.ep_name.removesuffix(SUFFIX)}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    )
    if elsewhere:
        listed = ", ".join(f"{count} x {what}" for what, count in elsewhere.most_common())
        raise FallbackError(
            f"asked for {device} ({provider.removesuffix(SUFFIX)}), but these ran elsewhere: "
            f"{listed}",
            "pass --allow-fallback to accept that",
        )


class OrtSession:
    """A `Session` over an `InferenceSession`."""

    def __init__(self, session: Any, graph: GraphSpec, profiled: bool, prefix: str) -> None:
        self.graph = graph
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._profiled = profiled
        self._prefix = prefix
        self._adapter: dict[str, Any] = {}

    def use(self, adapter: Feed) -> None:
        """Feed these tensors beside the inputs of every run from now on."""
        self._adapter.clear()  # in place: a cached forward holds the same dictionary
        self._adapter.update({n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in adapter.items()})

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs by name."""
        self.graph.check(inputs)
        values = self._session.run(self._outputs, dict(inputs) | self._adapter)
        return dict(zip(self._outputs, values, strict=True))

    def cached(self) -> CachedForward:
        """A forward that keeps keys and values in ONNX Runtime's own memory between calls."""
        return OrtCache(self._session, self.graph, self._adapter)

    def operators(self) -> tuple[Operator, ...]:
        """Kernel times from ONNX Runtime's own profiler, which this ends."""
        if not self._profiled:
            return ()
        self._profiled = False
        file = Path(self._session.end_profiling())
        events = json.loads(file.read_text())
        file.unlink()
        os.rmdir(file.parent)
        return _sum_kernels(events)

    def close(self) -> None:
        """Drop the session."""
        self.operators()
        self._session = None


def _sum_kernels(events: list[dict[str, Any]]) -> tuple[Operator, ...]:
    """One row a node; times in the trace are microseconds."""
    total: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            args = event["args"]
            key = (
                event["name"].removesuffix("_kernel_time"),
                args["op_name"],
                args["provider"].removesuffix(SUFFIX).lower(),
            )
            total.setdefault(key, []).append(event["dur"] / 1e3)
    return tuple(
        Operator(name, kind, device, len(ms), sum(ms)) for (name, kind, device), ms in total.items()
    )


class OrtCache:
    """A `CachedForward`: the present of one call is the past of the next, and is never copied."""

    def __init__(self, session: Any, graph: GraphSpec, adapter: dict[str, Any]) -> None:
        self._session = session
        self._adapter = adapter
        self._pasts = [spec for spec in graph.inputs if spec.name.startswith("past_key_values.")]
        self._presents = [s.name.replace("past_key_values", "present") for s in self._pasts]
        self._cache: list[Any] = []

    def __call__(
        self, input_ids: Array, attention_mask: Array, position_ids: Array, *, fresh: bool
    ) -> Array:
        """Logits of the last position, (batch, vocabulary)."""
        if fresh or not self._cache:
            self._cache = [_empty(spec.shape, spec.dtype, len(input_ids)) for spec in self._pasts]
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in feed.items()}
        values |= {spec.name: v for spec, v in zip(self._pasts, self._cache, strict=True)}
        values |= self._adapter
        logits, *self._cache = self._session.run_with_ort_values(
            ["logits", *self._presents], values
        )
        return np.asarray(logits.numpy()[:, -1], dtype=np.float32)


def _empty(shape: tuple[int | str, ...], dtype: str, batch: int) -> Any:
    """A cache of no positions: (batch, kv_heads, 0, head_dim)."""
    sizes = [{"batch": batch}.get(n, 0) if isinstance(n, str) else n for n in shape]
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(sizes, dtype))
