"""What a teacher answered, on disk: one memory-mapped array a tensor, one row a batch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgegen import records
from edgegen.errors import UsageError
from edgegen.spec import Array

KEY, DONE = "key.json", "done.npy"
Answers = dict[str, Tensor]


class TeacherCache:
    """Answers by the number of their batch; those of another key are removed first.

    `key` is everything that decides what the teacher answers.
    """

    def __init__(self, folder: Path, key: dict[str, Any], rows: int) -> None:
        self.folder, self.rows = folder, rows
        text = records.encode(key)
        if not (folder / KEY).is_file() or (folder / KEY).read_bytes() != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _open(folder / DONE, np.dtype(np.uint8), (rows,))
            (folder / KEY).write_bytes(text)
        self._done: Array = np.load(folder / DONE, mmap_mode="r+")
        self._arrays: dict[str, Array] = {
            path.stem: np.load(path, mmap_mode="r+")
            for path in sorted(folder.glob("*.npy"))
            if path.name != DONE
        }

    def get(self, row: int, ask: Callable[[], Answers]) -> Answers:
        """The answers to one batch: read, or asked for and kept.

        Raises:
            UsageError: all rows together would take more than half of the free disk.
        """
        if not self._done[row]:
            self._put(row, ask())
        # A copy: torch does not take arrays that it may not write to, and these it must not.
        return {name: torch.from_numpy(array[row].copy()) for name, array in self._arrays.items()}

    def _put(self, row: int, answers: Answers) -> None:
        if set(self._arrays) != set(answers):
            self._make(answers)
        for name, value in answers.items():
            self._arrays[name][row] = value.numpy()
            self._arrays[name].flush()  # type: ignore[attr-defined]  # a memmap
        self._done[row] = 1  # after the rows: a killed run asks again
        self._done.flush()  # type: ignore[attr-defined]

    def _make(self, answers: Answers) -> None:
        need = self.rows * sum(v.numel() * v.element_size() for v in answers.values())
        free = shutil.disk_usage(self.folder).free
        if need > free / 2:
            raise UsageError(
                f"cache: {need / 1e9:.1f} GB of answers, {free / 1e9:.1f} GB are free in "
                f"{self.folder}",
                "take fewer `batches`, a `top_k`, or cache = false",
            )
        for name, value in answers.items():
            shape = (self.rows, *value.shape)
            self._arrays[name] = _open(self.folder / f"{name}.npy", value.numpy().dtype, shape)


def _open(path: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """A new file of zeros, which takes room on the disk as it is written."""
    made: Array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    return made


def digest(tensors: dict[str, Tensor]) -> str:
    """The sha256 of tensors, names included."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(tensors[name].detach().cpu().numpy()).data)
    return whole.hexdigest()
