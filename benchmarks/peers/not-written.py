"""A peer that installs, but for which nobody has written decoding with a key/value cache here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    raise NotImplementedError(options["why"])


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    raise NotImplementedError(options["why"])
