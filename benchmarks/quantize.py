"""Quantized text models against their originals, and mixed precision against uniform int4.

    python benchmarks/quantize.py CHECKPOINT --data text:FILES [--windows 64] [--only NAME]
    python benchmarks/quantize.py SMOLLM2.gguf --data text:FILES --only agreement

Computed in torch, on held-out text: next-token agreement, KL and perplexity against the original,
and the size of the weights. It prints Markdown, to be kept in benchmarks/results. Latency and the
size of files belong to the bundles: `edgegen compress` with its gate measures them, on the device.

    agreement   int8 and int4, by method           (at least 99 % and 95 %)
    mixed       average_bits of uniform int4-g64   (at equal size: half of its gap)
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgegen.batches import validation
from edgegen.compress import Setting, Work
from edgegen.compress._material import read_material
from edgegen.compress._open import open_work
from edgegen.compress._probe import run_text
from edgegen.compress.quantize import Options, apply

PART = 4  # windows at a time
GROUP = 64
UNIFORM_BITS = 4 + (32 + 4) / GROUP  # weight, and a scale and zero point a group
AGREEMENT: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 8, "group_size": 32},
    {"bits": 8, "group_size": 32, "symmetric": False},
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 32, "zero": "whole"},
    {"bits": 4, "group_size": 32, "zero": "whole", "method": "hqq"},
    {"bits": 4, "group_size": 32, "zero": "whole", "method": "awq"},
    {"bits": 4, "group_size": 32, "zero": "whole", "method": "gptq", "clip": True},
]
MIXED: list[dict[str, Any]] = [
    {"bits": 4, "group_size": GROUP, "embedding_bits": 8},
    {"bits": "mixed", "average_bits": UNIFORM_BITS},
    {"bits": 4, "group_size": GROUP, "method": "gptq"},
    {"bits": "mixed", "average_bits": UNIFORM_BITS, "method": "gptq"},
]


def logs(net: nn.Module, ids: Tensor) -> Tensor:
    """Log probabilities of each next token, (windows, time, vocabulary)."""
    with torch.no_grad():
        return run_text(net, ids)[0].log_softmax(-1)


def compare(original: list[Tensor], net: nn.Module, windows: list[Tensor]) -> str:
    """Agreement with its standard error over tokens, KL in nats, and the rise of perplexity."""
    same, kl, rise = [], [], []
    for was, ids in zip(original, windows, strict=True):
        now = logs(net, ids[:, :-1])
        same.append((was.argmax(-1) == now.argmax(-1)).flatten().double())
        change = now - was
        kl.append((was.exp() * (change.expm1() - change)).sum(-1).flatten())
        rise.append(-change.gather(-1, ids[:, 1:, None]).flatten())
    alike = torch.cat(same)
    error = float(alike.std() / math.sqrt(len(alike)))
    more = math.expm1(float(torch.cat(rise).mean()))
    return f"{alike.mean():.4f} ± {error:.4f} | {torch.cat(kl).mean():.3g} | {more:+.2%}"


def main() -> None:
    """Print one line a setting, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("source")
    parser.add_argument("--data", required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--only", choices=["agreement", "mixed"])
    asked = parser.parse_args()
    work: Work = open_work(asked.source)
    material = read_material(work, asked.data)
    held = validation(material)
    rows = np.linspace(0, len(held) - 1, min(asked.windows, len(held))).astype(int)
    ids = torch.from_numpy(held[rows][:, : asked.tokens + 1]).long()
    windows = list(ids.split(PART))
    original = [logs(work.net, part[:, :-1]) for part in windows]
    count = ids[:, 1:].numel()
    print(f"{asked.source}: {count} tokens of {asked.data}, held out\n")  # noqa: T201
    print("| options | MB | agreement | KL, nats | perplexity |\n|---|---|---|---|---|")  # noqa: T201
    chosen = {"agreement": AGREEMENT, "mixed": MIXED}
    for name in [asked.only] if asked.only else list(chosen):
        for options in chosen[name]:
            made = apply(work, Options(**options), Setting(work, material, Path()))
            told = compare(original, made.net, windows)
            said = " ".join(f"{key}={value}" for key, value in options.items())
            size = made.notes["weights_mb"][1]
            print(f"| {said} | {size:.2f} | {told} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
