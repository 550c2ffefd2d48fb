"""ExecuTorch, exported by torch.export and lowered to XNNPACK; fp32.

What XNNPACK has no kernel for (transposed convolutions with groups, group norms, ...) runs in
ExecuTorch's portable, unvectorised kernels: how much that is stands beside the precision.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    output.mkdir(parents=True)
    args = tuple(torch.from_numpy(np.asarray(array)) for array in models.drawn(name, 0))
    with torch.no_grad():
        exported = torch.export.export(models.made(name), args)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    nodes = [n for n in edge.exported_program().graph.nodes if n.op == "call_function"]
    rest = sorted({name for n in nodes for name in re.findall(r": (aten\.\w+)", str(n.target))[:1]})
    (output / "model.pte").write_bytes(edge.to_executorch().buffer)
    return "fp32" + (f"; not in XNNPACK: {', '.join(rest)}" if rest else "")


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path / "model.pte").load_method("forward")

    def run(inputs: list[Any]) -> Any:
        return method.execute([torch.from_numpy(np.asarray(array)) for array in inputs])[0].numpy()

    return run
