"""ncnn, converted from torch by pnnx, its attention's own key/value cache; fp32 arithmetic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

HIDDEN = -1e30


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    import pnnx
    from decoder import Decoder

    decoder = Decoder(model).eval()
    output.mkdir(parents=True)
    os.chdir(output)
    pnnx.export(
        without_cache(decoder), "model.pt", _example(decoder, 3), _example(decoder, 5), fp16=False
    )
    file = output / "model.ncnn.param"
    if not file.is_file():
        raise ValueError("pnnx wrote no ncnn model")
    file.write_text(with_cache(file.read_text()))
    if not decoder.gpt2:
        np.save(output / "angles.npy", np.stack([decoder.cos.numpy(), decoder.sin.numpy()]))
    for other in output.glob("*model*"):
        if ".ncnn." not in other.name or other.suffix == ".py":
            other.unlink()
    return "fp32; cache fp32 inside its attention layer, the prompt in one call"


def _example(decoder: Any, tokens: int) -> tuple[Any, ...]:
    import torch

    ids, mask = torch.arange(tokens)[None], torch.zeros(tokens, tokens)
    if decoder.gpt2:
        return ids, mask, torch.arange(tokens)[None]
    angles = torch.zeros(1, tokens, 1, decoder.head_size)
    return ids, mask, angles, angles


def without_cache(decoder: Any) -> Any:
    """The decoder as it is traced; the layers of ncnn are given a cache afterwards."""
    import torch

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, ids: Any, mask: Any, *turn: Any) -> Any:
            def attend(layer: int, q: Any, k: Any, v: Any, start: Any) -> Any:
                three = (t.transpose(1, 2) for t in (q, k, v))
                found = torch.nn.functional.scaled_dot_product_attention(
                    *three, attn_mask=mask, enable_gqa=decoder.heads != decoder.kv_heads
                )
                return found.transpose(1, 2)

            x = decoder.tokens(ids)
            if decoder.gpt2:
                return decoder.after(x + decoder.positions(turn[0]), None, None, attend)
            return decoder.after(x, turn, None, attend)

    return Step().eval()


def with_cache(param: str) -> str:
    """The graph with `7=1` and cache inputs and outputs at every SDPA, as ncnn's guide says."""
    magic, counts, *layers = param.strip().splitlines()
    out, names = [], []
    for line in layers:
        kind, name, inputs, outputs, *rest = line.split()
        if kind == "SDPA":
            n, a = len(names) // 2, int(inputs)
            names += [f"k_in{n}", f"v_in{n}"]
            rest = [
                *rest[:a],
                *names[-2:],
                rest[a],
                f"k_out{n}",
                f"v_out{n}",
                *rest[a + 1 :],
                "7=1",
            ]
            inputs, outputs = str(a + 2), "3"
        rest = ["7=0" if kind == "Gemm" and item == "7=1" else item for item in rest]
        out.append(" ".join([kind, name, inputs, outputs, *rest]))
    if not names:
        raise ValueError("pnnx wrote no SDPA layer")
    layer_count, blob_count = (int(n) for n in counts.split())
    cache = " ".join(["Input", "cache", "0", str(len(names)), *names])
    return "\n".join([magic, f"{layer_count + 1} {blob_count + 2 * len(names)}", cache, *out, ""])


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(path / "model.ncnn.param")) or net.load_model(
        str(path / "model.ncnn.bin")
    ):
        raise ValueError("ncnn does not load what pnnx wrote")
    return Text(net, path, context)


class Text:
    def __init__(self, net: Any, path: Path, context: int) -> None:
        self._cache: dict[str, Any] = {}  # first: gone before the allocator, or ncnn crashes
        self._net, self._context, self._allocator = net, context, ncnn.UnlockedPoolAllocator()
        angles = path / "angles.npy"
        self._angles = np.load(angles) if angles.is_file() else None
        text = (path / "model.ncnn.param").read_text()
        self._layers = text.count("\nSDPA ")

    def _forward(self, ids: list[int], start: int) -> Any:
        positions = np.arange(start, start + len(ids))
        seen = np.arange(start + len(ids))[None] <= positions[:, None]
        fed = [np.array(ids, np.int32), np.where(seen, 0, HIDDEN).astype(np.float32)]
        if self._angles is None:
            fed.append(positions.astype(np.int32))
        else:
            fed += [np.ascontiguousarray(a[positions][:, None]) for a in self._angles]
        with self._net.create_extractor() as extractor:
            extractor.set_kvcache_allocator(self._allocator)
            extractor.set_kvcache_max_seqlen_hint(self._context)
            mats = [ncnn.Mat(array).clone() for array in fed]
            for number, mat in enumerate(mats):
                extractor.input(f"in{number}", mat)
            for name, mat in self._cache.items():
                extractor.input(name, mat)
            self._cache.clear()
            # Type 1 keeps a cache as its layer left it.
            for n in range(self._layers):
                for kind in "kv":
                    self._cache[f"{kind}_in{n}"] = extractor.extract(f"{kind}_out{n}", 1)[1]
            return np.array(extractor.extract("out0")[1]).ravel()

    def logits(self, ids: list[int]) -> Any:
        self._cache.clear()
        return self._forward(ids, 0)

    def generate(self, ids: list[int], count: int) -> list[int]:
        found = [int(self.logits(ids).argmax())]
        while len(found) < count:
            found.append(int(self._forward(found[-1:], len(ids) + len(found) - 1).argmax()))
        return found
