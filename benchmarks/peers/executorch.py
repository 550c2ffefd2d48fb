"""ExecuTorch: torch.export of a small module, XNNPACK, its own attention over a static cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401, which registers them
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime

POSITIONS = 1024  # of the cache; its attention reads only what is filled
TOLD = {
    "fp32": "fp32",
    "int8": "int8 a row (torchao, 8da8w)",
    "int4": "int4 in groups of 32, head int8 a row (torchao, 8da4w)",
}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    from decoder import Decoder
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    net = Stateful(Decoder(model)).eval()
    if precision != "fp32":
        _quantize(net, precision)
    tokens = torch.export.Dim("tokens", max=POSITIONS)
    ids, positions = torch.ones(1, 3, dtype=torch.long), torch.arange(3)
    shapes = {"ids": {1: tokens}, "positions": {0: tokens}}
    with torch.no_grad():
        program = torch.export.export(net, (ids, positions), dynamic_shapes=shapes)
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        ).to_executorch()
    output.mkdir(parents=True)
    (output / "model.pte").write_bytes(lowered.buffer)
    rest = "" if precision == "fp32" else ", activations int8 a token, embedding fp32"
    return f"{TOLD[precision]}{rest}; XNNPACK, cache fp32, the prompt in one call"


class Stateful(torch.nn.Module):
    """The decoder with ExecuTorch's cache and attention; buffers stay between calls."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        shape = (1, POSITIONS, decoder.kv_heads, decoder.head_size)
        for layer in range(decoder.depth):
            self.register_buffer(f"k{layer}", torch.zeros(shape))
            self.register_buffer(f"v{layer}", torch.zeros(shape))

    def forward(self, ids: Any, positions: Any) -> Any:
        start = positions[0].item()
        torch._check_is_size(start)
        torch._check(start < POSITIONS)
        return self.decoder(ids, start, positions, self.attend)

    def attend(self, layer: int, q: Any, k: Any, v: Any, start: Any) -> Any:
        keys, values = getattr(self, f"k{layer}"), getattr(self, f"v{layer}")
        torch.ops.llama.update_cache(k, keys, start)
        torch.ops.llama.update_cache(v, values, start)
        return torch.ops.llama.custom_sdpa(q, keys, values, start, None, 0, True)


def _quantize(net: Any, precision: str) -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.utils import unwrap_tensor_subclass

    row = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=PerAxis(0)
    )
    group = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    )

    def inner(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and "head" not in name

    def outer(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and "head" in name

    quantize_(net, row if precision == "int8" else group, filter_fn=inner)
    quantize_(net, row, filter_fn=outer)
    unwrap_tensor_subclass(net)


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    if context > POSITIONS:
        raise ValueError(f"{context} tokens do not fit a cache of {POSITIONS}")
    _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path / "model.pte")
    return Text(program.load_method("forward"))


class Text:
    def __init__(self, method: Any) -> None:
        self._method = method

    def _forward(self, ids: list[int], start: int) -> Any:
        positions = torch.arange(start, start + len(ids))
        return self._method.execute([torch.tensor([ids]), positions])[0]

    def generate(self, ids: list[int], count: int) -> list[int]:
        found = [int(self._forward(ids, 0).argmax())]
        while len(found) < count:
            found.append(int(self._forward(found[-1:], len(ids) + len(found) - 1).argmax()))
        return found

    def logits(self, ids: list[int]) -> Any:
        return self._forward(ids, 0).numpy().ravel()
