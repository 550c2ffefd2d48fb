"""What teacher and student are asked in a step: data where there is some, else drawn inputs.

All of a batch follows from the seed and its number.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from edgegen import batches, checkpoint, rooms
from edgegen.bundle import OneShot
from edgegen.compress._material import _fits as fits
from edgegen.compress._probe import TEXT, check_text, sampled
from edgegen.compress._work import Setting, Work
from edgegen.runtimes.loops.oneshot import draw
from edgegen.spec import GraphSpec

POOL, POOL_TOKENS = 256, 128  # texts that the teacher writes where there is no data
Answers = dict[str, Tensor]


class Questions:
    """Batches of `batch` texts, images, latents or inputs drawn in their range, by number."""

    def __init__(self, teacher: Work, setting: Setting, batch: int) -> None:
        self.material, self.seed, self.batch = setting.material, setting.seed, batch
        self._pool: Tensor | None = None
        self._encoder = self._decoder = ""
        if teacher.spec.family == TEXT and self.material is not None:
            check_text(self.material, int(teacher.spec.config["vocab_size"]))
        elif teacher.spec.family == TEXT:
            net: Any = teacher.net
            longest = min(POOL_TOKENS, net.config.max_position_embeddings)
            self._pool = sampled(net, POOL, longest, self.seed, setting.report)
        elif teacher.spec.family != checkpoint.MODULE:
            family = rooms.load("edgegen.models", teacher.spec.family)
            loop = family.loop(msgspec.convert(teacher.spec.config, family.Config))
            if isinstance(loop, OneShot):
                self._encoder, self._decoder = loop.encoder, loop.graph

    def origin(self) -> str:
        """Where the inputs come from."""
        if self._pool is not None:
            return f"{len(self._pool)} texts that the teacher wrote"
        return "inputs drawn from their range" if self.material is None else "the data"

    def seed_of(self, index: int) -> int:
        """A seed for whatever else is random in a batch."""
        state = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)
        return int(state[0] >> 1)

    def rows(self, index: int) -> Tensor:
        """Images (batch, channels, size, size) in 0..1, or token ids (batch, time + 1)."""
        if self._pool is not None:
            chosen = np.random.default_rng([self.seed, index]).integers(0, POOL, self.batch)
            return self._pool[torch.from_numpy(chosen)]
        assert self.material is not None
        return torch.from_numpy(batches.take(self.material, self.batch, index, self.seed))

    def feed(self, name: str, graph: GraphSpec, index: int, told: Answers) -> dict[str, Tensor]:
        """The inputs of a graph, of images as the first input where it takes them.

        Half of a decoder's latents are of images where there are some: what the encoder said of
        them stands in `told`.
        """
        rng = np.random.default_rng([self.seed, index])
        names = {n for spec in graph.inputs for n in spec.shape if isinstance(n, str)}
        sizes = {n: min(self.batch, graph.limits.get(n, self.batch)) for n in names}
        drawn = {n: torch.from_numpy(a) for n, a in draw(graph, sizes, rng, {}).items()}
        first = graph.inputs[0]
        if self.material is None:
            return drawn
        if fits(self.material.training.shape[1:], first.shape[1:]):
            low, high = first.low or 0.0, 1.0 if first.high is None else first.high
            drawn[first.name] = self.rows(index).float() * (high - low) + low
        elif self._encoder and name == self._decoder:
            mean, logvar = (told[f"{self._encoder}:{n}"] for n in ("mean", "logvar"))
            half = self.batch // 2
            noise = drawn[first.name][:half] * (0.5 * logvar[:half]).exp()
            drawn[first.name] = torch.cat([mean[:half] + noise, drawn[first.name][half:]])
        return drawn
