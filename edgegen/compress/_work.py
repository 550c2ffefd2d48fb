"""What a compression step gets and gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from edgegen.batches import Material
from edgegen.spec import ModelSpec, Report, silent


class Work(NamedTuple):
    """A model between two steps. `net` is in eval mode, on the CPU, as `spec` describes it.

    `tokenizer` and `chat_template` are for text. `notes` are what the last step has to say: they
    go into its entry of the history.
    """

    spec: ModelSpec
    net: nn.Module
    tokenizer: bytes | None = None
    chat_template: str = ""
    history: tuple[dict[str, Any], ...] = ()
    notes: dict[str, Any] = {}  # noqa: RUF012  # never written to


class Target(NamedTuple):
    """Where the model is to run: what is measured, is measured there."""

    runtime: str = "onnxruntime"
    device: str = "cpu"
    threads: int = 0


class Setting(NamedTuple):
    """What a step may use beside the model itself.

    `material` is None where no data was given. `original` is the model as it was before the first
    step: the teacher, and what quality is measured against. `folder` is where a long step keeps
    what it needs to go on after it was killed; it is empty when the step begins anew.
    """

    original: Work
    material: Material | None
    folder: Path
    target: Target = Target()
    seed: int = 0
    report: Report = silent
