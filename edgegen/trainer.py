"""A model in training, one step at a time, for every family.

What is random in step n follows from the seed and n alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgegen import batches
from edgegen.batches import Material
from edgegen.errors import MismatchError
from edgegen.resume import Plan
from edgegen.workers import Workers

GRID = 64  # sample images
SMALL_FLOPS = 1e9  # a step below this takes milliseconds: sharing it out costs more than it gains


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """A family's `TRAINING`: what is used where `Options` says nothing."""

    steps: int = 1000
    batch: int = 32
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0


def learning_rate(peak: float, step: int, done: float) -> float:
    """Linear warm-up over 50 steps, then a cosine from `peak` to a hundredth; `done` is in 0..1.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983.
    """
    return peak * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Trainer:
    """A model in training: weights, optimisers, and how far they have come."""

    def __init__(
        self, module: ModuleType, material: Material, plan: Plan, recipe: Recipe, workers: Workers
    ) -> None:
        self.module, self.material, self.plan = module, material, plan
        self.recipe, self.workers = recipe, workers
        torch.manual_seed(plan.seed)
        self.net = module.Net(material.config).to(workers.device)
        self.phases = module.phases(self.net)
        self.optimizers = {
            phase: torch.optim.AdamW(
                parameters, plan.lr, recipe.betas, weight_decay=recipe.weight_decay
            )
            for phase, parameters in self.phases.items()
        }
        self.scaler = torch.amp.GradScaler("cuda", enabled=workers.precision == "fp16")
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []

    def done(self) -> float:
        """The share of the run that is behind us, by steps or by time, whichever is more."""
        plan = self.plan
        by_steps = self.step / plan.steps if plan.steps else 0.0
        by_time = self.seconds / 60 / plan.minutes if plan.minutes else 0.0
        return min(1.0, max(by_steps, self.workers.agreed(by_time) if plan.minutes else 0.0))

    def advance(self, done: float) -> dict[str, Tensor]:
        """One step of every phase; all losses, on the device."""
        began = time.perf_counter()
        batch = self._batch()
        generator = self._generator()
        losses: dict[str, Tensor] = {}
        self.net.train()
        for phase in self.phases:
            losses |= self._phase(phase, batch, generator, done)
        self.scaler.update()
        self.step += 1
        if hasattr(self.module, "after_step"):
            self.module.after_step(self.net, self.step)
        self.seconds += time.perf_counter() - began
        return losses

    def _batch(self) -> Tensor:
        """This process's share of the batch of this step."""
        size, rank = self.plan.batch, self.workers.rank
        whole = batches.take(self.material, size * self.workers.num, self.step, self.plan.seed)
        return torch.from_numpy(whole[rank * size : (rank + 1) * size]).to(self.workers.device)

    def _generator(self) -> torch.Generator:
        """The noise of this step; torch's own generator (dropout) is seeded alike."""
        seeds = np.random.SeedSequence([self.plan.seed, self.step, self.workers.rank])
        own, shared = seeds.generate_state(2, np.uint64).tolist()
        torch.manual_seed(shared >> 1)
        return torch.Generator().manual_seed(own >> 1)

    def _phase(
        self, phase: str, batch: Tensor, generator: torch.Generator, done: float
    ) -> dict[str, Tensor]:
        optimizer, parameters = self.optimizers[phase], self.phases[phase]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.plan.lr, self.step, done)
        optimizer.zero_grad()
        with self.workers.autocast():
            losses: dict[str, Tensor] = self.module.loss(self.net, batch, phase, generator)
        self.scaler.scale(next(iter(losses.values()))).backward()
        self.workers.average([p.grad for p in parameters if p.grad is not None])
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.scaler.step(optimizer)
        return {name: value.detach() for name, value in losses.items()}

    def flops(self) -> int:
        """Floating-point operations of the forward passes of one step."""
        self.net.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as count:
            for phase in self.phases:
                self.module.loss(self.net, self._batch(), phase, self._generator())
        return int(count.get_total_flops())

    @contextlib.contextmanager
    def threads(self) -> Iterator[int]:
        """All of torch's threads in the block, or only one where a step is small.

        Threads that spin while they wait for each other make small steps many times slower as
        soon as the machine has something else to do.
        """
        before = torch.get_num_threads()
        wanted = before if self.flops() > SMALL_FLOPS else 1
        torch.set_num_threads(wanted)
        try:
            yield wanted
        finally:
            torch.set_num_threads(before)

    def validate(self) -> dict[str, float]:
        """The mean of every loss over the held-out data, with noise that is always the same."""
        held, totals = batches.validation(self.material), dict[str, float]()
        generator = torch.Generator().manual_seed(0)
        self.net.eval()
        with torch.no_grad():
            for start in range(0, len(held), self.plan.batch):
                part = torch.from_numpy(held[start : start + self.plan.batch])
                for phase in self.phases:
                    losses = self.module.loss(
                        self.net, part.to(self.workers.device), phase, generator
                    )
                    for name, value in losses.items():
                        totals[name] = totals.get(name, 0.0) + float(value) * len(part) / len(held)
        check_finite(totals, self.step)
        return totals

    def samples(self) -> Tensor | None:
        """A grid's worth of samples, in 0..1, always from the same noise."""
        self.net.eval()
        with torch.no_grad():
            sheet: Tensor | None = self.module.samples(
                self.net, GRID, torch.Generator().manual_seed(0)
            )
        return sheet


def check_finite(losses: dict[str, float], step: int) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise MismatchError(f"{name} is {value} after step {step}", "train with a smaller --lr")
