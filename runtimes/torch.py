"""torch: the reference engine, reads `torch` (an exported program), on CPU or CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import FormatError, NotFoundError
from edgegen.rooms import nearest
from edgegen.spec import Array, Feed, GraphSpec, Operator, Options

READS = "torch"
FIXED_SHAPE_DEVICES = ()


def version() -> str:
    """The version of torch."""
    return str(torch.__version__)


def devices() -> list[str]:
    """`cpu`, and `gpu`, `gpu:1`, ... where CUDA is there."""
    count = torch.cuda.device_count()
    return ["cpu", *(["gpu"] if count else []), *(f"gpu:{i}" for i in range(1, count))]


def open_graph(path: Path, graph: GraphSpec, device: str, options: Options) -> TorchSession:
    """Load the exported program at `path` onto `device`.

    Raises:
        NotFoundError: no such device.
        FormatError: the file cannot be read.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    place = _place(device)
    # Without its guards: torch assumes sizes of 2 and more, the spec has the true limits.
    module = load_program(path).module(check_guards=False).to(place)
    return TorchSession(module, graph, place, options.profile)


def load_program(path: Path) -> Any:
    """The exported program at `path`. A bundle is data: no pickle in it may run code."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        return torch.export.load(path)
    except Exception as error:  # torch.export raises many kinds for a broken archive
        raise FormatError(
            f"{path}: torch {version()} cannot open it: {error}", "export the bundle again"
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _place(device: str) -> Any:
    name, _, index = device.partition(":")
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "cpu"
    if device != "auto" and device not in devices():
        raise NotFoundError(
            f"torch {version()} sees no device {device!r}; it sees: {', '.join(devices())}",
            nearest(device, devices()),
        )
    return torch.device("cpu" if name == "cpu" else f"cuda:{index or 0}")


class TorchSession:
    """A `Session` over an exported program."""

    def __init__(self, module: Any, graph: GraphSpec, place: Any, profiled: bool) -> None:
        self.graph = graph
        self._module = module
        self._place = place
        self._adapter: list[Any] = []
        self._profiler = torch.profiler.profile() if profiled else None
        if self._profiler:
            self._profiler.start()

    def use(self, adapter: Feed) -> None:
        """Hand these tensors over behind the inputs of every run from now on."""
        self._adapter = [torch.from_numpy(array).to(self._place) for array in adapter.values()]

    def run(self, inputs: Feed) -> dict[str, Array]:
        """The graph's outputs by name; returns when the device has finished."""
        self.graph.check(inputs)
        tensors = [torch.from_numpy(inputs[s.name]).to(self._place) for s in self.graph.inputs]
        with torch.inference_mode():
            out = self._module(*tensors, *self._adapter)
        values = out if isinstance(out, tuple) else (out,)
        return {
            spec.name: value.cpu().numpy()
            for spec, value in zip(self.graph.outputs, values, strict=True)
        }

    def operators(self) -> tuple[Operator, ...]:
        """Times from torch's profiler, which this ends."""
        if self._profiler is None:
            return ()
        self._profiler.stop()
        rows, self._profiler = self._profiler.key_averages(), None
        return summed(rows, "cpu" if self._place.type == "cpu" else "gpu")

    def close(self) -> None:
        """Drop the module."""
        self.operators()
        self._module = None


def summed(rows: Any, device: str) -> tuple[Operator, ...]:
    """The profiler's rows as operators, microseconds there.

    On a GPU an operator takes the time of the kernels that it launched. These have rows of their
    own, on the device's side, which would count them twice.
    """
    host = torch.autograd.DeviceType.CPU
    times = [
        (row, row.self_cpu_time_total if device == "cpu" else row.self_device_time_total)
        for row in rows
        if row.device_type == host
    ]
    return tuple(
        Operator(row.key, row.key, device, row.count, us / 1e3) for row, us in times if us > 0
    )
