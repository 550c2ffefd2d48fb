"""Where training runs: one device, or one for each process that `accelerate launch` started."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import Tensor

from edgegen import rooms
from edgegen.errors import NotFoundError


class Workers:
    """The processes that train together, and this one's device, rank and precision."""

    def __init__(self, device: str) -> None:
        self.num, self.rank, self.device = 1, 0, pick_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._join()
        self.precision = "fp32"
        if self.device.type == "cuda":
            self.precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"

    def _join(self) -> None:
        try:
            from accelerate import Accelerator
        except ModuleNotFoundError as error:
            raise rooms.missing(error, "training on several devices") from error
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.num, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.device = self.accelerator.device

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision on CUDA; on the CPU nothing, so that every bit stays as it is."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        half = torch.bfloat16 if self.precision == "bf16" else torch.float16
        mixed: contextlib.AbstractContextManager[None] = torch.autocast("cuda", dtype=half)
        return mixed

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.num == 1:
            return
        flat = self.accelerator.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agreed(self, value: float) -> float:
        """One number for all processes: the mean of theirs."""
        if self.num == 1:
            return value
        mine = torch.tensor([value], device=self.device)
        self.average([mine])
        return float(mine)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.num > 1:
            self.accelerator.wait_for_everyone()


def pick_device(name: str) -> torch.device:
    """The torch device of `cpu`, `gpu`, `gpu:1` or `auto` (a GPU where there is one).

    Raises:
        NotFoundError: no such device, or not one that torch can train on.
    """
    kind, _, index = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "gpu" or not (index or "0").isdigit():
        have = ["auto", "cpu", "gpu", "gpu:1"]
        raise NotFoundError(f"no device {name!r} to train on", rooms.nearest(name, have))
    if int(index or 0) >= torch.cuda.device_count():
        raise NotFoundError(
            f"no device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
            "use --device cpu, or run: edgegen devices --doctor",
        )
    return torch.device("cuda", int(index or 0))
